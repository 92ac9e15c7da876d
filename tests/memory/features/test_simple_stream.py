"""SimpleStream: whole last frames, as if nothing had come before them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.features.simple_stream import SimpleStream
from jaxmem.memory.sizes import nbytes

FRAME = (TEXT, VISION, VISION, VISION, VISION, AUDIO)
CFG = small.config()
SPEC = small.small_spec(CFG, 6, frame=(2, 2), prefix=3)
GRID = [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]
WRITE = jax.jit(SimpleStream.write, static_argnums=(0, 1))


def watch(memory, frames, lengths, spec=SPEC, rows=None):
    """Stream frames of six rows, cut anywhere; a frame is one tick of the clock."""
    x = np.random.default_rng(1).normal(size=(6 * frames, CFG.width)).astype(np.float32)
    x = x if rows is None else rows
    time, row = np.arange(6 * frames) // 6, np.arange(6 * frames) % 6
    pos = np.stack([time, *np.array(GRID)[row].T], 1)
    state, at = memory.init(spec), 0
    for n in lengths:
        here = slice(at, at + n)
        rows, end = np.zeros((6, CFG.width), np.float32), time[at : at + n + 1].max()
        rows[:n] = x[here]
        place, kind = np.zeros((6, 3), np.int32), np.zeros(6, np.int8)
        begin = np.array([time[at], 0, 0])
        place[:n], kind[:n] = pos[here] - begin, np.array(FRAME)[row[here]]
        move = np.array([(end if at + n < 6 * frames else frames) - time[at], 0, 0], np.int32)
        state = WRITE(memory, spec, state, Embeds(*map(jnp.asarray, (rows, place, kind, move))))
        at += n
    return state, x


@pytest.mark.parametrize("lengths", [(6,) * 5, (4, 6, 6, 6, 6, 2)], ids=["whole", "cut"])
def test_the_last_frames_are_read_as_a_stream_of_their_own(lengths):
    clock = replace(SPEC, step=(1, 0, 0))
    memory = SimpleStream(100, frames=2)
    state, x = watch(memory, 5, lengths, clock)
    got = memory.read(clock, state)
    assert got.x.shape[0] == 2 * clock.chunk  # no more than two frames can have
    np.testing.assert_array_equal(got.x, x[-12:])
    np.testing.assert_array_equal(got.modality, FRAME * 2)
    want = np.stack([np.arange(12) // 6, *np.array(GRID * 2).T], 1)
    np.testing.assert_array_equal(got.pos, want)  # the first of them at 0
    np.testing.assert_array_equal(got.advance, [2, 0, 0])


def test_nothing_of_what_came_before_is_left():
    """Two frames after five others are read as they are at the start of a stream."""
    memory = SimpleStream(100, frames=2)
    late, x = watch(memory, 7, (6,) * 7)
    early, _ = watch(memory, 2, (6,) * 2, rows=x[-12:])
    for a, b in zip(memory.read(SPEC, late)[:4], memory.read(SPEC, early)[:4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_text_that_advances_all_axes_follows_the_largest_position():
    memory = SimpleStream(100, frames=1)
    got = memory.read(SPEC, watch(memory, 3, (6,) * 3)[0])
    np.testing.assert_array_equal(got.pos[0], [0, 0, 0])
    np.testing.assert_array_equal(got.advance, [2, 2, 2])  # the grid's last is at 1


def test_a_frame_that_does_not_fit_is_left_out_whole():
    memory = SimpleStream(11, frames=None)
    got = memory.read(SPEC, watch(memory, 4, (6,) * 4)[0])
    assert int((got.modality != 0).sum()) == 6 and got.x.shape[0] == 11
    empty = memory.read(SPEC, memory.init(SPEC))
    assert not empty.modality.any() and not empty.advance.any()


def test_bytes_are_those_of_the_rows():
    held = [nbytes(SimpleStream(n, frames=None), SPEC) for n in (10, 11)]
    assert held[1] - held[0] == 4 * CFG.width + 4 * 3 + 4 + 1 + 4  # position, number, kind, order
    assert nbytes(SimpleStream(1000), SPEC) == nbytes(SimpleStream(24), SPEC)


def test_sizes_are_checked():
    for wrong in ({"budget": 0}, {"budget": 8, "frames": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            SimpleStream(**wrong)


@pytest.mark.slow
def test_a_budget_for_everything_is_full_attention():
    small.assert_full_attention(*small.streamed(SimpleStream(64, frames=None)))
