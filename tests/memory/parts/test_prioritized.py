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
from jaxmem.memory.baselines import (
    GOLDEN,
    Full,
    LastFrames,
    RandomSample,
    Recent,
    StreamingLLM,
    Uniform,
)
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.parts.prioritized import EDGE, LAST, NONE, STEP, Aux, magnified
from jaxmem.memory.parts.units import FrameCursor, Number

EDGES = [2**30, 2**31, 2**31 + 2**30, 2**32]
BEFORE, LATER = 56, 96  # tokens before a counter jumps (whole frames and chunks), and after it


def number(n):
    return Number(jnp.uint32(n % 2**32), jnp.uint32(n // 2**32))


def jump(state, n):
    """Return a state whose counter of units stands at `n`."""
    cursor = state.aux.cursor
    at = cursor._replace(frames=number(n)) if isinstance(cursor, FrameCursor) else number(n)
    return state._replace(aux=state.aux._replace(cursor=at))


def arrivals(kv):
    return (held(kv) - 1) // 2


@partial(compiled, static_argnums=0)
def feed(memory, state, chunks):
    """Write chunks that begin where the memory says, as the loop does; return what was held."""

    def body(state, chunk):
        base = memory.view(SPEC, state, None).base
        moved = base - chunk.base
        tokens = chunk.tokens._replace(pos=chunk.tokens.pos + moved[None, None])
        chunk = chunk._replace(tokens=tokens, base=base, end=chunk.end + moved)
        state = laws.step(memory, state, chunk)
        return state, state.slots.kv

    return jax.lax.scan(body, state, chunks)


def leap(memory, n, kinds=None):
    """Return what is held after every chunk: a few at 0, then the counter jumps to `n`."""
    flat = stream(BEFORE + LATER, 1, kinds=kinds)
    chunks = cut(flat, [8] * ((BEFORE + LATER) // 8), 8)
    early = jax.tree.map(lambda x: x[: BEFORE // 8], chunks)
    later = jax.tree.map(lambda x: x[BEFORE // 8 :], chunks)
    state, _ = feed(memory, memory.init(SPEC), early)
    state, trace = feed(memory, jump(state, n), later)
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


TOP = 2**64
STEPS = [1, 2]
while STEPS[-1] < 2**36:
    STEPS.append(STEPS[-1] + STEPS[-2])


def fraction(n):
    """Return frac(n / golden ratio) as an integer of 64 bits."""
    return n * GOLDEN % TOP


def entries(slots, total):
    """Yield the numbers that enter a memory of evenly spaced ones, and what it holds then.

    Numbers whose fraction is below a bar lie one of three steps apart, Fibonacci numbers.
    """
    first = 4 * slots
    kept = sorted((fraction(n), n) for n in range(first))[:slots]
    while True:
        bar, last = kept[-1][0], max(n for _, n in kept[:-1])
        entering = next(last + step for step in STEPS if fraction(last + step) < bar)
        if entering >= total:
            return
        kept = sorted([*kept[:-1], (fraction(entering), entering)])
        yield entering, sorted(n for _, n in kept)


def test_a_plain_loop_finds_the_same_entries():
    found, kept = [], sorted((fraction(n), n) for n in range(64))[:16]
    for n in range(64, 4096):
        if fraction(n) < kept[-1][0]:
            kept = sorted([*kept[:-1], (fraction(n), n)])
            found.append((n, sorted(m for _, m in kept)))
    assert list(entries(16, 4096)) == found


def test_uniform_stays_evenly_spaced_for_years():
    """A life of 2^34 tokens, of which only those are fed that enter.

    Across 2^32 numbers take a second word, and far beyond all fractions that are held share their
    first bits.
    """
    memory, life = Uniform(16), list(entries(16, 2**34))
    enter = np.asarray([*range(64), *(n for n, _ in life)], np.uint64)
    flat = stream(len(enter), 1)
    chunks = cut(flat, [1] * len(enter), 1)

    def body(state, given):
        chunk, cursor = given
        state = laws.step(memory, state._replace(aux=state.aux._replace(cursor=cursor)), chunk)
        return state, state.slots.kv

    cursors = Number(*(jnp.asarray(x, jnp.uint32) for x in (enter % 2**32, enter >> 32)))
    run = compiled(partial(jax.lax.scan, body))
    final, trace = run(memory.init(SPEC), (chunks, cursors))
    trace = jax.device_get(trace)
    for c, (n, kept) in enumerate(life, 64):
        ours = enter[arrivals(pick(trace, c))].tolist()
        assert ours == kept, f"after {n}"
        gaps = [b - a for a, b in pairwise(kept)]
        assert len(set(gaps)) <= 3 and max(gaps) <= 3 * min(gaps)
    assert int(final.aux.shift) == 24 and int(final.aux.bar) >= 2**24


@pytest.mark.parametrize("edge", [2**32, 2**33, 2**40])
def test_numbers_have_two_words(edge):
    """Across an edge of 2^32, priorities go on as those of numbers of 64 bits."""
    n = np.arange(edge - 5, edge + 5)
    fresh = stream(10).tokens
    got, cursor = Uniform(4).numbering.number(number(edge - 5), fresh, jnp.int32(4))
    words = Uniform(4).fraction(got, None)
    value = [int(h) * 2**32 + int(l) for h, l in zip(words.high, words.low, strict=True)]
    assert value == [fraction(int(i)) for i in n]
    assert int(cursor.high) * 2**32 + int(cursor.low) == edge + 5


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_magnified_fractions_are_bits_further_down(shift):
    rng = np.random.default_rng(0)
    values = [int(v) >> int(s) for v, s in zip(rng.integers(0, 2**63, 99), rng.integers(0, 40, 99),
              strict=True)]  # fmt: skip
    words = Number(*(jnp.asarray([f(v) for v in values], jnp.uint32)
                     for f in (lambda v: v % 2**32, lambda v: v >> 32)))  # fmt: skip
    want = [v << shift >> 32 if v << shift < TOP else int(LAST) for v in values]
    np.testing.assert_array_equal(magnified(words, jnp.uint32(shift)), np.asarray(want, np.uint32))


@pytest.mark.parametrize("memory", [Uniform(12), RandomSample(12, seed=3)])
def test_priorities_are_magnified_together(memory):
    """What is held, the bar and what arrives keep their order; no bar: nothing is magnified."""
    state, _ = laws.run(memory, memory.init(SPEC), cut(stream(64, 1), [8] * 8, 8))
    slots, aux = memory.rebased(*state)
    assert (int(aux.shift), int(aux.bar)) == (0, int(state.aux.bar))
    small_ones = state.slots._replace(priority=state.slots.priority >> np.uint32(16))
    sunk = state.aux._replace(bar=(state.aux.bar >> np.uint32(16)) + np.uint32(1))
    for _ in range(4):
        slots, aux = memory.rebased(small_ones, sunk)
        more = int(aux.shift) - int(sunk.shift)
        assert more == (8 if int(sunk.bar) < 2**24 else 0)
        np.testing.assert_array_equal(slots.priority, small_ones.priority << np.uint32(more))
        assert int(aux.bar) == int(sunk.bar) << more and np.all(slots.priority < aux.bar)
        small_ones, sunk = slots, aux
    assert int(sunk.bar) >= 2**24
    never = state.aux._replace(bar=jnp.asarray(NONE))
    assert int(memory.rebased(state.slots, never)[1].shift) == 0


def test_random_draws_differ_wherever_the_number_has_a_second_word():
    """Numbers that agree in their low word, or whose words were once folded into one."""
    memory = RandomSample(8, seed=3)
    low = np.arange(64, dtype=np.uint32)
    folded = low ^ np.uint32(0x9E3779B9)
    aux: Aux = memory.init(SPEC).aux
    draws = [
        np.asarray(memory.priority(Number(jnp.asarray(x), jnp.full((64,), h, jnp.uint32)), aux))
        for x, h in ((low, 0), (low, 1), (folded, 1), (low, 2))
    ]
    assert len({int(d) for one in draws for d in one}) == 4 * 64


@pytest.mark.parametrize("edge", [2**31, 2**32, 2**33])
@pytest.mark.parametrize("kind", [Uniform, RandomSample])
def test_samples_do_not_depend_on_chunks_across_an_edge(kind, edge):
    memory, flat = kind(12), stream(96, 1)
    one, two = (
        laws.run(memory, jump(memory.init(SPEC), edge - 40), cut(flat, cuts, 8))[0]
        for cuts in ([8] * 12, [3, 8, 5, 8, 8, 8, 8, 7, 8, 8, 8, 8, 8, 1])
    )
    laws.assert_same(one, two, "another cut")
    assert len(arrivals(one.slots.kv)) == 12
    end = one.aux.cursor
    assert int(end.high) * 2**32 + int(end.low) == edge + 56


def frames_of_pictures(count, tokens, axes=3):
    """Return frames of vision tokens with neither text nor audio between them."""
    flat = stream(count * tokens, kinds=np.full(count * tokens, kvs.VISION))
    time = np.arange(count * tokens) // tokens
    flat.tokens.pos[:, 0] = np.stack([time, *[np.arange(count * tokens) % tokens] * (axes - 1)],
                                     -1)  # fmt: skip
    return flat._replace(end=flat.tokens.pos[:, 0] + 1)


FRAMED = {
    "last_frames": partial(LastFrames, 16, frames=3),
    "uniform": partial(Uniform, 16, unit="frame"),
    "random": partial(RandomSample, 16, unit="frame"),
}


@pytest.mark.parametrize("width", [4, 8, 6])
@pytest.mark.parametrize("name", FRAMED)
def test_frames_are_counted_by_arrival_where_positions_are_renumbered(name, width):
    """Frames of four tokens that only their time tells apart, in chunks that may cut them."""
    flat, cuts = frames_of_pictures(12, 4), [width] * (48 // width)
    states = []
    for reindex in (False, True):
        memory = FRAMED[name](reindex=reindex)
        state, _ = feed(memory, memory.init(SPEC), cut(flat, cuts, 8))
        states.append(state)
        assert int(state.aux.cursor.frames.low) == 12
    np.testing.assert_array_equal(*(arrivals(s.slots.kv) for s in states))
    if name == "last_frames":
        np.testing.assert_array_equal(arrivals(states[1].slots.kv), np.arange(36, 48))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "last_frames" else ()) for n in FRAMED],
)
def test_frames_are_counted_by_arrival_in_the_loop(name):
    """Rows with several axes, a frame in each chunk."""
    cfg, frames, rng = small.config(), 12, np.random.default_rng(0)
    pos = np.zeros((frames, 4, 3), np.int32)
    pos[..., 1], pos[..., 2] = [0, 0, 1, 1], [0, 1, 0, 1]
    rows = Embeds(
        rng.normal(size=(frames, 4, cfg.width)).astype(np.float32),
        pos,
        np.full((frames, 4), kvs.VISION, np.int8),
        np.full((frames, 3), 2, np.int32),
    )
    held_frames = []
    for reindex in (False, True):
        program = make_program(cfg, FRAMED[name](reindex=reindex), spec_of(cfg, chunk=4))
        carry = small_stream(small.params(cfg), init_carry(program), rows, program=program)
        np.testing.assert_array_equal(carry.state.aux.cursor.frames.low, [frames] * cfg.layers)
        kv = jax.tree.map(lambda x: x[:16], carry.state.slots.kv)  # of the first layer
        held_frames.append(held(kv))
    np.testing.assert_array_equal(*held_frames)
    assert len(held_frames[0]) == (12 if name == "last_frames" else 16)
