"""Log-mel frames as Whisper's feature extractor makes them (arXiv 2212.04356, 2.2).

Frame j is centred on sample j * hop. Whisper looks at a whole clip at once: it mirrors the sound at
both ends and cuts everything below its loudest value by 8 (80 dB). A stream comes piece by piece.
Here a piece sees the sound before it, is mirrored at its own end only (which touches frames whose
window ends after it: one, of the released models) and takes the loudest value of its own.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from jaxmem.typing import Float


@cache
def mel_filters(bins: int, rate: int, fft: int) -> Float[np.ndarray, "f M"]:
    """Return triangles of area 1 on Slaney's mel scale: linear to 1 kHz, logarithmic above."""
    step = 27 / np.log(6.4)
    top = 15 + step * np.log(rate / 2 / 1000)
    mels = np.linspace(0, top, bins + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) / step))
    f = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    rise = (f - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None]
    fall = (edges[None, 2:] - f) / (edges[2:] - edges[1:-1])[None]
    return np.minimum(rise, fall).clip(0) * (2 / (edges[2:] - edges[:-2]))[None]


@dataclass(frozen=True)
class LogMel:
    """Static description of the frames."""

    bins: int  # M
    rate: int = 16_000  # samples per second
    fft: int = 400  # samples of a window
    hop: int = 160  # samples between frames

    @property
    def past(self) -> int:
        """Return the samples before a piece that its frames need."""
        return self.fft // 2

    def __call__(
        self, samples: Float[np.ndarray, "n"], past: Float[np.ndarray, "p"] | None
    ) -> Float[np.ndarray, "J M"]:
        """Return the n / hop frames of a piece of mono sound, float32; n is a multiple of `hop`.

        `past` are the samples before it; None at the beginning of the sound, which is mirrored.
        """
        half = self.fft // 2
        before = samples[half:0:-1] if past is None else past[len(past) - half :]
        sound = np.concatenate([before, samples, samples[-2 : -half - 2 : -1]])
        frames = np.lib.stride_tricks.sliding_window_view(sound, self.fft)[:: self.hop]
        hann = np.hanning(self.fft + 1)[:-1]
        power = np.abs(np.fft.rfft(frames[: len(samples) // self.hop] * hann[None])) ** 2
        mel = np.log10(np.maximum(power @ mel_filters(self.bins, self.rate, self.fft), 1e-10))
        return ((np.maximum(mel, mel.max() - 8) + 4) / 4).astype(np.float32)
