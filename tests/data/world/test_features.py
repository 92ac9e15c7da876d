"""Log-mel frames: causal, streamable, the right pitch; pictures shrink by averaging."""

import numpy as np
import pytest

from jaxmem.data.world import features as f


def test_frames_are_causal_and_stream():
    samples = np.random.default_rng(0).normal(0, 0.1, 3 * f.RATE).astype(np.float32)
    whole = f.log_mel(samples)
    assert whole.shape == (300, f.BINS) and whole.dtype == np.float32
    first = f.log_mel(samples[: f.RATE])
    np.testing.assert_allclose(whole[:100], first, atol=1e-5)
    second = f.log_mel(samples[f.RATE : 2 * f.RATE], past=samples[f.RATE - f.PAST : f.RATE])
    np.testing.assert_allclose(whole[100:200], second, atol=1e-5)


def test_against_the_definition():
    """One frame by a plain discrete Fourier transform in float64."""
    samples = np.random.default_rng(1).normal(0, 0.1, 800).astype(np.float32)
    begin = 3 * f.HOP + f.HOP - f.WINDOW  # frame 3 ends at sample 640
    frame = samples[begin : begin + f.WINDOW].astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(f.WINDOW) / f.WINDOW)
    k, n = np.arange(f.FFT // 2 + 1)[:, None], np.arange(f.WINDOW)[None, :]
    power = np.abs((frame * window * np.exp(-2j * np.pi * k * n / f.FFT)).sum(1)) ** 2
    expected = (np.log(power @ f.mel_filters().astype(float) + 1e-6) + 6) / 4
    np.testing.assert_allclose(f.log_mel(samples)[3], expected, atol=1e-4)


@pytest.mark.parametrize("hertz", [150, 600, 2500, 6000])
def test_a_tone_lights_its_bin(hertz):
    t = np.arange(f.RATE) / f.RATE
    mel = f.log_mel(0.2 * np.sin(2 * np.pi * hertz * t).astype(np.float32))
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 26) / 2595) - 1)
    nearest = np.abs(centres[1:-1] - hertz).argmin()
    assert abs(int(mel[50].argmax()) - int(nearest)) <= 1


def test_filters_cover_the_band_evenly():
    filters = f.mel_filters()
    assert filters.shape == (257, f.BINS)
    assert filters.min() >= 0 and (filters.sum(0) > 0).all()
    inside = filters.sum(1)[8:230]
    np.testing.assert_allclose(inside, 1, atol=1e-5)  # triangles of neighbours add up to one


def test_silence_is_finite():
    assert np.isfinite(f.log_mel(np.zeros(1600, np.float32))).all()
    assert f.log_mel(np.zeros(0, np.float32)).shape == (0, f.BINS)


def test_shrink_averages():
    frames = np.random.default_rng(0).integers(0, 256, (2, 192, 192, 3)).astype(np.uint8)
    small = f.shrink(frames)
    assert small.shape == (2, 48, 48, 3)
    expected = frames[1, 4:8, 8:12, 2].astype(float).mean()
    assert abs(small[1, 1, 2, 2] - expected) <= 0.51


def test_errors_name_the_repair():
    with pytest.raises(ValueError, match="mono"):
        f.log_mel(np.zeros((1600, 2), np.float32))
    with pytest.raises(ValueError, match="multiple of 160"):
        f.log_mel(np.zeros(1601, np.float32))
    with pytest.raises(ValueError, match="240"):
        f.log_mel(np.zeros(1600, np.float32), past=np.zeros(10, np.float32))
    with pytest.raises(ValueError, match="resize"):
        f.shrink(np.zeros((1, 100, 100, 3), np.uint8))
