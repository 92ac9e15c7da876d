"""What a model of this library reads: log-mel frames of sound and small square pictures.

Audio frames are causal: frame j covers the 25 ms that END at (j + 1) * 10 ms, so a second of sound
gives exactly 100 frames and needs only the 240 samples before it (`PAST`).
"""

from functools import cache

import numpy as np
import scipy.fft

RATE = 16_000
HOP = 160
WINDOW = 400
FFT = 512
PAST = WINDOW - HOP
BINS = 24


@cache
def mel_filters(bins: int = BINS, rate: int = RATE, fft: int = FFT) -> np.ndarray:
    """Triangular filters on the mel scale 2595 log10(1 + f / 700), float32 [fft / 2 + 1, bins]."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    f = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    rise = (f - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None, :]
    fall = (edges[None, 2:] - f) / (edges[2:] - edges[1:-1])[None, :]
    return np.minimum(rise, fall).clip(0).astype(np.float32)


@cache
def _hann() -> np.ndarray:
    return np.hanning(WINDOW + 1)[:-1].astype(np.float32)


def log_mel(samples: np.ndarray, past: np.ndarray | None = None) -> np.ndarray:
    """Log-mel frames of mono sound at 16 kHz.

    Args:
        samples: float32 [n] in about -1..1, n a multiple of 160.
        past: float32 [240], the samples before the first one; default silence.

    Returns:
        float32 [n / 160, 24]: (ln(power + 1e-6) + 6) / 4, about -2 (silence) to 2 (loud).

    Raises:
        ValueError: wrong rank, length or `past`.
    """
    if samples.ndim != 1 or len(samples) % HOP:
        raise ValueError(
            f"samples must be mono with a multiple of {HOP} samples, got shape {samples.shape}: "
            "mix channels and pad to whole frames first"
        )
    if past is None:
        past = np.zeros(PAST, np.float32)
    if past.shape != (PAST,):
        raise ValueError(f"past must hold {PAST} samples, got shape {past.shape}")
    if not len(samples):
        return np.zeros((0, BINS), np.float32)
    padded = np.concatenate([past, samples]).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    # Pieces of 40 frames fit the cache, and BLAS multiplies them without waking its threads, which
    # would wait for a processor that training keeps busy.
    parts = [_log_mel(frames[i : i + 40]) for i in range(0, len(frames), 40)]
    return np.concatenate(parts)


def _log_mel(frames: np.ndarray) -> np.ndarray:
    spectrum = np.asarray(scipy.fft.rfft(frames * _hann(), FFT, axis=-1))
    power = np.square(np.real(spectrum)) + np.square(np.imag(spectrum))
    return (np.log(power @ mel_filters() + np.float32(1e-6)) + 6) / 4


def shrink(frames: np.ndarray, side: int = 48) -> np.ndarray:
    """Resize square pictures by averaging, uint8 [F, n * side, n * side, 3] -> [F, side, side, 3].

    Raises:
        ValueError: the side is no whole multiple of `side`.
    """
    f, height, width, channels = frames.shape
    if height % side or width % side:
        raise ValueError(
            f"frames of {height}x{width} are no whole multiple of {side}x{side}: resize them first"
        )
    blocks = frames.reshape(f, side, height // side, side, width // side, channels)
    return (blocks.mean((2, 4), dtype=np.float32) + 0.5).astype(np.uint8)
