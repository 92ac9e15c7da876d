"""Counters of streams without end: orders by age are moved down, drawn priorities are magnified."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import SPEC, compiled, cut, held, pick, stream

from jaxmem import kv as kvs
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.loop import stream as small_stream
from jaxmem.memory.base import Embeds
from jaxmem.memory.baselines import (
    GOLDEN,
    Full,
    LastFrames,
    RandomSample,
    Recent,
    StreamingLLM,
    Uniform,
)
from jaxmem.memory.parts.prioritized import EDGE, LAST, NONE, STEP, Aux, magnified
from jaxmem.memory.parts.units import FrameCursor, Number

EDGES = [2**30, 2**31, 2**31 + 2**30, 2**32]
BEFORE, LATER = 24, 96  # tokens before a counter jumps, and after it
ONE = Number(np.uint32(1), np.uint32(0))


def number(n):
    return Number(jnp.uint32(n % 2**32), jnp.uint32(n // 2**32))


def jump(state, n):
    """Return a state whose counter of units stands at `n`."""
    cursor = state.aux.cursor
    at = cursor._replace(frames=number(n)) if isinstance(cursor, FrameCursor) else number(n)
    return state._replace(aux=state.aux._replace(cursor=at))


def arrivals(kv):
    return (held(kv) - 1) // 2


def leap(memory, n, kinds=None):
    """Return what is held after every chunk: a few at 0, then the counter jumps to `n`."""
    flat = stream(BEFORE + LATER, 1, kinds=kinds)
    chunks = cut(flat, [8] * ((BEFORE + LATER) // 8), 8)
    early = jax.tree.map(lambda x: x[: BEFORE // 8], chunks)
    later = jax.tree.map(lambda x: x[BEFORE // 8 :], chunks)
    state, _ = laws.run(memory, memory.init(SPEC), early)
    state, trace = laws.run(memory, jump(state, n), later)
    trace = jax.device_get(trace)
    return state, [arrivals(pick(trace, c)) for c in range(LATER // 8)]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("memory", [Recent(12, sinks=2), StreamingLLM(12, sinks=2), Full(12)])
def test_the_window_follows_the_newest_and_sinks_stay(memory, edge):
    sinks = [] if isinstance(memory, Full) else [0, 1]
    state, steps = leap(memory, edge - 40)
    for c, kept in enumerate(steps):
        seen = BEFORE + 8 * c + 8
        want = [*sinks, *range(seen - 12 + len(sinks), seen)]
        np.testing.assert_array_equal(kept, want, err_msg=f"chunk {c}")
    assert int(state.aux.dropped) == BEFORE + LATER - 12
    assert int(state.aux.cursor.low) < EDGE + 8


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("reindex", [False, True])
def test_last_frames_follow_the_newest(edge, reindex):
    """Frames of seven tokens; two whole ones fit, and the part of the one that is arriving."""
    memory = LastFrames(16, frames=2, reindex=reindex)
    state, steps = leap(memory, edge - 6)
    for c, kept in enumerate(steps):
        seen = BEFORE + 8 * c + 8
        last = (seen - 1) // 7
        np.testing.assert_array_equal(kept, np.arange(7 * (last - 1), seen), err_msg=f"chunk {c}")
    assert int(state.aux.cursor.frames.low) < EDGE + 8


def test_no_window_ever_meets_the_end_of_its_numbers():
    """Rebased again and again, as a stream that goes on for years would be."""
    memory, flat = Recent(12, sinks=2), stream(64, 1)
    state, _ = laws.run(memory, memory.init(SPEC), cut(flat, [8] * 8, 8))
    write = compiled(partial(laws.step, memory))
    chunk = pick(cut(flat, [8], 8), 0)
    for _ in range(9):
        low = int(state.aux.cursor.low)
        state = jump(state, int(EDGE) - 3)
        older = np.uint32(int(EDGE) - 3 - low)
        aged = lambda p, older=older: jnp.where((p > 1) & (p <= LAST - older), p - older, p)
        slots = state.slots._replace(priority=aged(state.slots.priority))
        state = state._replace(slots=slots, aux=state.aux._replace(bar=aged(state.aux.bar)))
        for _ in range(3):
            state = write(state, chunk)
        assert STEP <= int(state.aux.cursor.low) < EDGE
        order = np.argsort(np.asarray(state.slots.priority))
        np.testing.assert_array_equal(order, [0, 1, *range(11, 1, -1)])


def smallest(total, many):
    """Return which of the first `total` numbers have the smallest fractions, by their gaps.

    Numbers whose fraction is below a bound lie one of three steps apart: a, b or a + b.
    """
    top = 2**64
    bound = min(top, 2 * many * top // total)
    steps = [1, 2]
    while steps[-1] < 4 * total:
        steps.append(steps[-1] + steps[-2])
    a, up = next((s, s * GOLDEN % top) for s in steps if s * GOLDEN % top < bound)
    b, down = next((s, -s * GOLDEN % top) for s in steps if -s * GOLDEN % top < bound)
    found, n, value = [], 0, 0
    while n < total:
        found.append((value, n))
        moves = [(n + a, value + up)] if value + up < bound else []
        moves += [(n + b, value - down)] if value >= down else []
        n, value = min(moves or [(n + a + b, value + up - down)])
    return [n for _, n in sorted(found)[:many]]


def entries(slots, total):
    """Return the numbers that enter a memory of evenly spaced ones, those before 64 left out."""
    top, kept = 2**64, sorted((n * GOLDEN % top, n) for n in smallest(64, slots))
    found = []
    while True:
        bar = kept[-1][0]
        # The next number below the bar lies one of few steps after one that is held.
        last = max(n for _, n in kept)
        steps = [1, 2]
        while steps[-1] < 2 * total:
            steps.append(steps[-1] + steps[-2])
        now = max(found[-1] if found else 63, 63)
        after = (h + s for _, h in kept for s in steps if now < h + s <= last + steps[-1])
        n = min(n for n in after if n * GOLDEN % top < bar)
        if n >= total:
            return found
        found.append(n)
        kept = sorted([*kept, (n * GOLDEN % top, n)])[:slots]


def test_numbers_that_enter_are_those_that_a_plain_loop_finds():
    top, kept, want = 2**64, smallest(64, 16), []
    assert sorted(kept) == sorted(sorted(range(64), key=lambda n: n * GOLDEN % top)[:16])
    bar = sorted(n * GOLDEN % top for n in kept)
    for n in range(64, 4096):
        if n * GOLDEN % top < bar[-1]:
            want.append(n)
            bar = sorted([*bar, n * GOLDEN % top])[:16]
    assert entries(16, 4096) == want


def test_uniform_stays_evenly_spaced_for_ever():
    """A whole life of 2^42 tokens: only numbers that enter are fed, in chunks that begin before.

    Across 2^32, where the number gets a second word, and far beyond, where all that are held share
    the first 32 bits of their fractions.
    """
    slots, memory = 16, Uniform(16)
    entering = entries(slots, 2**42)
    starts = [0] * 8 + [n - 3 for n in entering]
    starts[:8] = [8 * i for i in range(8)]
    numbers = np.asarray(starts)[:, None] + np.arange(8)[None]
    flat = stream(8 * len(starts), 1)
    chunks = cut(flat, [8] * len(starts), 8)

    def body(state, given):
        chunk, low, high = given
        state = state._replace(aux=state.aux._replace(cursor=Number(low, high)))
        state = laws.step(memory, state, chunk)
        return state, state.slots.kv

    low, high = (jnp.asarray(x, jnp.uint32) for x in zip(*((n % 2**32, n >> 32) for n in starts)))
    final, trace = compiled(partial(jax.lax.scan, body))(memory.init(SPEC), (chunks, low, high))
    trace, checked = jax.device_get(trace), 0
    for c in range(8, len(starts)):
        kept = numbers.reshape(-1)[arrivals(pick(trace, c))]
        following = starts[c + 1] + 2 if c + 1 < len(starts) else 2**42 - 1
        # Numbers are fed once: a chunk that overlaps the last one begins after it.
        if starts[c] <= starts[c - 1] + 8:
            continue
        assert len(kept) == slots, f"after {following} tokens"
        assert sorted(kept) == sorted(smallest(numbers[c, -1] + 1, slots))
        gaps = {b - a for a, b in pairwise(sorted(kept))}
        assert len(gaps) <= 3 and max(gaps) <= 3 * min(gaps)
        checked += 1
    assert checked > 200 and int(final.aux.shift) > 0
