"""Play a stream of `world.world`: events, distractors and a noise floor as 16 kHz samples."""

from collections.abc import Callable
from functools import cache

import numpy as np

from jaxmem.data.world.scene import DISTRACTORS, SOUNDS, Stream

RATE = 16_000
RAMP = 160  # samples of fade at both ends of a sound
# Weights of harmonics.
_BUZZ = 1 / np.arange(1, 25, dtype=np.float32) ** 0.5
_HORN = np.array([1, 0.9, 0.7, 0.5, 0.3, 0.2])
_HUM = np.array([0.4, 1, 0.2, 0.5, 0.1, 0.3])


def sound(stream: Stream) -> np.ndarray:
    """The sound track, float32 [seconds * 16000] in about -1..1."""
    n = stream.seconds * RATE
    offset = int(np.random.default_rng(stream.seed[-1]).integers(1 << 19))
    out = _gain(stream.noise_db) * _stretch(n, offset)
    e = stream.events
    for i in np.flatnonzero(e.sound >= 0):
        pitch, loud, delay, early = e.variant[i]
        begin = int((e.start[i] + 0.25 * delay) * RATE)
        length = int((e.end[i] - 0.25 * early) * RATE) - begin
        wave = _VOICES[SOUNDS[e.sound[i]]](length, float(pitch), np.random.default_rng(e.seed[i]))
        _add(out, begin, wave, -26 + 12 * loud)
    d = stream.distractors
    for i in range(len(d.kind)):
        begin = int(d.start[i] * RATE)
        length = int(d.end[i] * RATE) - begin
        if length <= 2 * RAMP:
            continue
        pitch, loud = d.variant[i]
        voice, low, high = _BACKGROUND[DISTRACTORS[d.kind[i]]]
        wave = voice(length, float(pitch), np.random.default_rng(d.seed[i]))
        _add(out, begin, wave, low + (high - low) * loud)
    return out.astype(np.float32)


def _gain(decibel: float) -> np.float32:
    return np.float32(10 ** (decibel / 20))


def _add(out: np.ndarray, begin: int, wave: np.ndarray, decibel: float) -> None:
    """Add a wave at that root mean square level (dB of full scale) with short fades, in place."""
    rms = float(np.sqrt(np.mean(wave * wave))) + 1e-9
    fade = np.minimum(np.arange(1, RAMP + 1, dtype=np.float32) / RAMP, 1)
    wave = wave * np.float32(_gain(decibel) / rms)
    wave[:RAMP] *= fade
    wave[-RAMP:] *= fade[::-1]
    out[begin : begin + len(wave)] += wave


@cache
def _noise() -> np.ndarray:
    """White noise of unit variance, float32 [2**19] (33 s): every noise is a stretch of it."""
    return np.random.default_rng(20).standard_normal(1 << 19, dtype=np.float32)


def _stretch(n: int, offset: int) -> np.ndarray:
    noise = _noise()
    copies = -(-(offset + n) // len(noise))
    return (np.tile(noise, copies) if copies > 1 else noise)[offset : offset + n]


def _hiss(n: int, rng: np.random.Generator) -> np.ndarray:
    return _stretch(n, int(rng.integers(1 << 19)))


def _time(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32) / RATE


def _harmonics(phase: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_k weights[k] sin((k + 1) phase), by the recurrence of sin(k x)."""
    double = 2 * np.cos(phase)
    before, now = np.zeros_like(phase), np.sin(phase)
    out = weights[0] * now
    for w in weights[1:]:
        before, now = now, double * now - before
        out += w * now
    return out


def _turns(frequency: np.ndarray | float, n: int) -> np.ndarray:
    """Phase (rad) of an oscillator with that frequency (Hz), kept small for float32."""
    if np.ndim(frequency) == 0:
        cycles = np.arange(n) * (float(frequency) / RATE)
    else:
        cycles = np.cumsum(frequency, dtype=np.float64) / RATE
    return ((cycles % 1) * (2 * np.pi)).astype(np.float32)


def _bell(n: int, pitch: float, rng: np.random.Generator):
    t, f = _time(n), 650 + 350 * pitch
    out = np.zeros(n, np.float32)
    for ratio, weight, decay in ((1, 1, 1.5), (2.76, 0.7, 2.5), (5.4, 0.4, 4.0)):
        out += weight * np.sin(_turns(f * ratio, n)) * np.exp(-decay * t)
    return out


def _chirp(n: int, pitch: float, rng: np.random.Generator):
    sweep = (_time(n) * (4 + 2 * pitch)) % 1
    return np.sin(_turns(1200 + 400 * pitch + 2600 * sweep, n)) * (sweep < 0.75)


def _drum(n: int, pitch: float, rng: np.random.Generator):
    beat = ((_time(n) * (3.5 + 1.5 * pitch)) % 1) / (3.5 + 1.5 * pitch)
    tone = np.sin(_turns(70 + 50 * pitch + 60 * np.exp(-40 * beat), n))
    return np.exp(-14 * beat) * tone + 0.3 * np.exp(-60 * beat) * _hiss(n, rng)


def _siren(n: int, pitch: float, rng: np.random.Generator):
    swing = np.sin(2 * np.pi * (2 + pitch) * _time(n) + rng.uniform(0, 6.28))
    return np.sin(_turns(850 + 150 * pitch + 350 * swing, n))


def _whistle(n: int, pitch: float, rng: np.random.Generator):
    swing = np.sin(2 * np.pi * 6 * _time(n))
    return np.sin(_turns(2000 + 700 * pitch + 15 * swing, n))


def _rattle(n: int, pitch: float, rng: np.random.Generator):
    beat = (_time(n) * (11 + 6 * pitch)) % 1
    noise = _hiss(n + 1, rng)
    return np.diff(noise) * np.exp(-6 * beat)


def _plain_hiss(n: int, pitch: float, rng: np.random.Generator):
    noise = _hiss(n + 1, rng)
    return noise[1:] + np.float32(2 * pitch - 1) * noise[:-1]


def _clicks(n: int, pitch: float, rng: np.random.Generator):
    out = np.zeros(n, np.float32)
    at = rng.integers(0, n, 1 + int((2 + 4 * pitch) * n / RATE))
    out[at] = rng.choice([-1.0, 1.0], len(at))
    return np.convolve(out, np.exp(-np.arange(40, dtype=np.float32) / 8), mode="same")


def _babble(n: int, pitch: float, rng: np.random.Generator):
    """Speech-like: a voiced pulse train through two formants that change with every syllable."""
    out = np.zeros(n, np.float32)
    begin = 0
    while begin < n:
        length = min(int(rng.uniform(0.12, 0.3) * RATE), n - begin)
        f0 = (95 + 110 * pitch) * rng.uniform(0.85, 1.15)
        slope = rng.uniform(-0.15, 0.15)
        partials = np.arange(1, 21) * f0
        first, second = rng.uniform(300, 800), rng.uniform(900, 2400)
        weights = np.exp(-(((partials - first) / 130) ** 2))
        weights += 0.6 * np.exp(-(((partials - second) / 200) ** 2)) + 0.02
        ramp = np.linspace(0, 1, length, dtype=np.float32)
        wave = _harmonics(_turns(f0 * (1 + slope * ramp), length), weights.astype(np.float32))
        loud = np.float32(rng.uniform(0.3, 1)) * np.sin(np.pi * ramp)
        out[begin : begin + length] = loud * wave
        begin += length + int(rng.uniform(0.01, 0.15) * RATE)
    return out


_VOICES: dict[str, Callable[..., np.ndarray]] = {
    "bell": _bell,
    "buzz": lambda n, pitch, rng: _harmonics(_turns(90 + 50 * pitch, n), _BUZZ),
    "chirp": _chirp,
    "drum": _drum,
    "horn": lambda n, pitch, rng: _harmonics(_turns(260 + 90 * pitch, n), _HORN),
    "siren": _siren,
    "whistle": _whistle,
    "rattle": _rattle,
}
# What is played, and the range of its level in dB.
_BACKGROUND: dict[str, tuple[Callable[..., np.ndarray], float, float]] = {
    "hiss": (_plain_hiss, -48, -34),
    "hum": (lambda n, pitch, rng: _harmonics(_turns(50 + 10 * (pitch > 0.5), n), _HUM), -42, -30),
    "clicks": (_clicks, -46, -36),
    "babble": (_babble, -40, -29),
}
