"""Times of what is held, where chunks were dropped."""

import numpy as np

from jaxmem.serve.gaps import MOST, Gaps


def test_times_are_moved_by_what_was_dropped_before_them():
    """Chunks 0 1 x x 2 3 x 4 of the stream: numbers are those written, x was dropped."""
    gaps = Gaps()
    gaps.add(2, 1)
    gaps.add(2, 1)
    gaps.add(4, 1)
    stream = [0, 1, 4, 5, 7]
    for each in (1.0, 2.5):
        time = np.arange(5) * each
        np.testing.assert_allclose(gaps.stream_time(time, each), np.array(stream) * each)
        inside = gaps.stream_time(time + 0.4 * each, each)
        np.testing.assert_allclose(inside, (np.array(stream) + 0.4) * each)
    assert gaps.total == 3 and Gaps(gaps.plain()).total == 3
    assert Gaps().stream_time(time, 1.0) is time


def test_many_gaps_stay_few():
    gaps = Gaps()
    for i in range(3 * MOST):
        gaps.add(i, 1)
    assert len(gaps.plain()) <= MOST and gaps.total == 3 * MOST
    late = gaps.stream_time(np.array([3.0 * MOST]), 1.0)
    np.testing.assert_allclose(late, 6.0 * MOST)
