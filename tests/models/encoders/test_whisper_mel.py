"""Whisper's log-mel frames against the plain sums."""

import numpy as np

from jaxmem.models.encoders.whisper_mel import LogMel, mel_filters


def test_log_mel_is_whispers():
    """Triangles of area 1 with peaks on Slaney's scale; frames by the plain sums."""
    filters = mel_filters(20, 16_000, 4000)  # 4 Hz a bin
    np.testing.assert_allclose(filters.sum(0) * 4, 1, rtol=0.02)
    edges = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 22)
    hertz = [m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in edges[1:-1]]
    assert np.abs(filters.argmax(0) * 4 - hertz).max() <= 4
    sound = np.random.default_rng(0).normal(size=960)
    mel, filters = LogMel(8), mel_filters(8, 16_000, 400)
    expected = np.zeros((6, 8))
    for j in range(6):
        for f in range(201):
            total = 0j
            for i in range(400):
                at = abs(j * 160 - 200 + i)
                at = 2 * 959 - at if at > 959 else at
                window = 0.5 - 0.5 * np.cos(2 * np.pi * i / 400)
                total += sound[at] * window * np.exp(-2j * np.pi * f * i / 400)
            expected[j] += abs(total) ** 2 * filters[f]
    expected = np.log10(expected)
    expected = (np.maximum(expected, expected.max() - 8) + 4) / 4
    np.testing.assert_allclose(mel(sound, None), expected, atol=1e-5)
    late = mel(sound[480:], sound[:480])
    np.testing.assert_allclose(late, expected[3:], atol=1e-5)  # the loudest frame is among both
