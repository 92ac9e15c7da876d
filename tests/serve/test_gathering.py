"""Pictures and sound that are pushed become the pieces that a reader makes of a file."""

import numpy as np
import pytest

from jaxmem.models.base import MediaFormat
from jaxmem.serve.gathering import LATE, PAUSE, SAMPLE_RATE, Gatherer

MEDIA = MediaFormat(2.0, (2, 2), SAMPLE_RATE, 1.0)
LONG = 10_000  # seconds on a clock


def flat(value):
    return np.full((2, 2, 3), value, np.uint8)


def wave(seconds, first=0):
    return np.arange(first, first + round(seconds * SAMPLE_RATE), dtype=np.float32)


def shown(piece):
    return [int(frame[0, 0, 0]) for frame in piece.frames]


def brute(times, values, pieces):
    """By the rule alone: the last picture by the middle of a frame's time, or else the first."""
    at = [(p + (i + 0.5) / 2) for p in range(pieces) for i in range(2)]
    before = [[v for t, v in zip(times, values, strict=True) if t <= x] for x in at]
    return [b[-1] if b else values[0] for b in before]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("given", [True, False])
def test_pictures_are_those_that_a_reader_would_show(seed, given):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.01, 0.9, 40))
    times -= times[0]
    gatherer, done = Gatherer(MEDIA), []
    for number, t in enumerate(times):
        at = float(t) if given else None
        done += gatherer.picture(flat(number), LONG + float(t), at)
    found = [value for piece in done for value in shown(piece)]
    assert len(done) == int(times[-1]) and found == brute(times, range(40), len(done))
    assert shown(gatherer.unfinished()) == brute(times, range(40), len(done) + 1)[-2:]


@pytest.mark.parametrize("given", [True, False])
def test_sound_is_cut_into_pieces_whatever_its_chunks(given):
    gatherer, done, at = Gatherer(MEDIA), [], 0.0
    for length in (0.1, 0.4, 0.25, 1.75, 0.5, 0.02, 0.98):
        chunk = wave(length, round(at * SAMPLE_RATE))
        done += gatherer.sound(chunk, LONG + at + length, at if given else None)
        at += length
    assert len(done) == 4
    np.testing.assert_array_equal(np.concatenate([p.samples for p in done]), wave(4.0))


def test_a_piece_waits_for_the_slower_of_pictures_and_sound():
    gatherer = Gatherer(MEDIA)
    gatherer.picture(flat(1), 0.0, 0.0)
    gatherer.sound(wave(0.9), 0.9, 0.0)
    assert gatherer.picture(flat(2), 1.0, 1.0) == []  # a tenth of a second of sound is missing
    (piece,) = gatherer.sound(wave(0.5, 14400), 1.4, 0.9)
    np.testing.assert_array_equal(piece.samples, wave(1.0))
    assert shown(piece) == [1, 1]
    assert gatherer.picture(flat(3), 2.0 + LATE / 2, 2.0 + LATE / 2) == []
    (piece,) = gatherer.picture(flat(4), 2.0 + LATE, 2.0 + LATE)  # no sound came any more
    np.testing.assert_array_equal(piece.samples[:6400], wave(0.4, 16000))
    assert not piece.samples[6400:].any() and shown(piece) == [2, 2]


def test_a_pause_is_left_out_and_a_clock_may_begin_anew():
    """A jump of a client's clock, of any size and direction, makes no pieces."""
    gatherer, done = Gatherer(MEDIA), []
    times = [0.0, 0.5, 1.0, 1e9, 1e9 + 0.5, -7.0, -6.5, -6.0]
    for number, at in enumerate(times):
        done += gatherer.picture(flat(number), LONG, at)
    assert [shown(p) for p in done] == [[0, 1], [2, 3], [4, 5]]
    for number in range(3):  # by the clock, a picture every minute
        done += gatherer.picture(flat(100 + number), LONG + 60 * number)
    assert len(done) == 4 and gatherer.reached == 4.5


def test_sound_faster_than_it_lasts_moves_the_clock_on():
    gatherer, done = Gatherer(MEDIA), []
    for i in range(8):  # all within a second of the clock
        done += gatherer.sound(wave(1.0, i * SAMPLE_RATE), LONG + i / 10)
        done += gatherer.picture(flat(i), LONG + i / 10)
    np.testing.assert_array_equal(np.concatenate([p.samples for p in done]), wave(8.0))
    assert [shown(p)[0] for p in done[2:]] == [1, 2, 3, 4, 5, 6]  # each came with the sound


def test_nothing_grows_without_bound():
    """Pictures that no frame shows, and sound of one time again and again."""
    gatherer = Gatherer(MEDIA)
    for i in range(2000):
        gatherer.picture(flat(i % 250), LONG, 0.9 * i / 2000)
        gatherer.sound(wave(0.1), LONG, 0.5)
    assert len(gatherer._pictures) <= 6 and len(gatherer._wave) < (1 + 2 * PAUSE) * SAMPLE_RATE


def test_a_flush_ends_the_piece_and_what_follows_begins_there():
    gatherer = Gatherer(MEDIA, 3)
    assert gatherer.flush() == [] and gatherer.unfinished() is None
    gatherer.picture(flat(1), LONG)
    assert [shown(p) for p in gatherer.flush()] == [[1, 1]]
    assert gatherer.reached == 4.0 and gatherer.unfinished() is None
    gatherer.picture(flat(2), LONG + 0.1)
    assert [shown(p) for p in gatherer.flush()] == [[2, 2]]


def test_sound_is_resampled_for_a_model_of_another_rate():
    gatherer = Gatherer(MediaFormat(1.0, (2, 2), 24_000, 1.0))
    tone = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    (piece,) = gatherer.sound(tone, LONG, 0.0)
    wanted = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    assert np.abs(piece.samples - wanted)[100:-100].max() < 0.01
