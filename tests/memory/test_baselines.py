"""The laws over the memories that go by order of arrival, and what each promises beyond them."""

from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from laws import (
    ALL_MEMORIES,
    CUTS,
    LAWS,
    SPEC,
    compiled,
    cut,
    held,
    memory_of,
    pick,
    run,
    run_many,
    side_by_side,
    standard,
    stream,
)

from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.kv import count as count_of
from jaxmem.memory.baselines import Full, LastFrames, RandomSample, Recent, StreamingLLM, Uniform
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.parts.units import Frame

KEPT = ["full", "recent", "last_frames", "uniform", "random"]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ALL_MEMORIES)
def test_law(name, law):
    LAWS[law](memory_of(name))


def arrivals(tokens):
    """Return the arrival numbers of the valid slots; the stream's order is 2 * arrival + 1."""
    return (held(tokens) - 1) // 2


def after_chunks(trace):
    """Return the arrival numbers held after each chunk."""
    trace = jax.device_get(trace)
    return [arrivals(pick(trace, c)) for c in range(trace.modality.shape[0])]


def watch(memory, flat, cuts, width=8):
    """Return the arrival numbers held after each chunk of a stream."""
    return after_chunks(run(memory, memory.init(SPEC), cut(flat, cuts, width))[1])


def watch_two(memory, chunks, starts=None):
    """Return the final states of two streams and what each held; shapes as in `usual`."""
    starts = side_by_side(*(starts or [memory.init(SPEC)] * 2))
    final, trace = run_many(memory, starts, side_by_side(*chunks))
    return (
        pick(final, 0),
        pick(final, 1),
        after_chunks(pick(trace, 0)),
        after_chunks(pick(trace, 1)),
    )


@pytest.mark.parametrize("name", KEPT)
def test_kept_set_does_not_depend_on_how_the_stream_is_cut(name):
    """Frames that were turned away half arrived stay away: the result is one of the stream."""
    cuts = [(1, 2, 7, 3, 8, 8, 8, 3), (0, 8, 6, 6, 8, 5, 1, 6)]
    flat = stream(sum(CUTS))
    one, two, *steps = watch_two(memory_of(name), [cut(flat, c, 8) for c in cuts])
    usual = pick(laws.usual(memory_of(name))[1][0], 0)
    laws.assert_same(one, usual, "other cut")
    laws.assert_same(two, usual, "third cut")
    assert int(one.aux.dropped) == sum(CUTS) - len(steps[0][-1])


def test_full_keeps_the_newest_and_counts_what_was_lost():
    final, trace = laws.usual(memory_of("full"))[1]
    for kept, seen in zip(after_chunks(pick(trace, 0)), np.cumsum(CUTS), strict=True):
        np.testing.assert_array_equal(kept, np.arange(max(0, seen - 16), seen))
    assert int(final.aux.dropped[0]) == sum(CUTS) - 16


def test_recent_keeps_sinks_and_a_window():
    _, trace = laws.usual(memory_of("recent"))[1]
    for kept, seen in zip(after_chunks(pick(trace, 0)), np.cumsum(CUTS), strict=True):
        first = np.arange(min(2, seen))
        window = np.arange(max(2, seen - 14), seen)
        np.testing.assert_array_equal(kept, np.concatenate([first, window]))


def frames_by_hand(kinds, times, room, tokens_per_frame=None):
    """Number frames one token at a time, straight from the rule's words."""
    frames, vision, size, number = -1, 0, 0, []
    for i, kind in enumerate(kinds):
        before = kinds[i - 1] if i else None
        begins = i == 0 or (kind == TEXT and before != TEXT)
        begins |= kind == VISION and before == AUDIO
        begins |= kind == VISION and before == VISION and times[i] != times[i - 1]
        if begins or (kind == VISION and vision == tokens_per_frame):
            begins, vision = True, 0
        if begins or size == room:
            frames, size = frames + 1, 0
        vision += kind == VISION
        size += 1
        number.append(frames)
    return np.array(number)


def irregular(length, seed):
    """Return a stream whose runs of kinds have irregular lengths, and times that jump."""
    rng = np.random.default_rng(seed)
    runs = [np.full(rng.integers(1, 7), rng.integers(1, 4)) for _ in range(length)]
    flat = stream(length, kinds=np.concatenate(runs)[:length])
    flat.tokens.pos[:, 0, 0] = np.cumsum(rng.random(length) < 0.2)
    return flat


@pytest.mark.parametrize("tokens_per_frame", [None, 3])
def test_frame_numbers_follow_the_rule(tokens_per_frame):
    unit, room = Frame(tokens_per_frame), 6
    number = compiled(unit.number)
    for seed in range(4):
        flat = irregular(60, seed)
        chunks = cut(flat, [7, 8, 0, 1, 8, 8, 8, 8, 8, 4], 8)
        cursor, got = unit.init(SPEC), []
        for c in range(10):
            tokens = jax.tree.map(lambda x, c=c, chunks=chunks: x[c], chunks.tokens)
            numbers, cursor = number(cursor, tokens, jnp.int32(room))
            got += np.asarray(numbers.low)[tokens.modality[:, 0] != 0].tolist()
        kinds, times = flat.tokens.modality[:, 0], flat.tokens.pos[:, 0, 0]
        np.testing.assert_array_equal(got, frames_by_hand(kinds, times, room, tokens_per_frame))


def last_by_hand(number, room, most):
    """Return the last whole frames that fit, newest first, at most `most` of them."""
    kept = np.array([], int)
    for frames, last in enumerate(range(number[-1], -1, -1)):
        tokens = np.flatnonzero(number == last)
        if frames == most or len(tokens) + len(kept) > room:
            break
        kept = np.concatenate([tokens, kept])
    return kept


@pytest.mark.parametrize("most", [2, None])
def test_last_frames_are_whole_and_last(most):
    memory = memory_of("last_frames") if most is None else LastFrames(16, frames=most)
    flats = [irregular(sum(CUTS), seed) for seed in (5, 6)]
    _, _, *steps = watch_two(memory, [cut(flat, CUTS, 8) for flat in flats])
    for flat, held_after in zip(flats, steps, strict=True):
        number = frames_by_hand(flat.tokens.modality[:, 0], flat.tokens.pos[:, 0, 0], 16)
        for kept, seen in zip(held_after, np.cumsum(CUTS), strict=True):
            np.testing.assert_array_equal(kept, last_by_hand(number[:seen], 16, most))


def test_last_frames_without_pictures_are_never_empty():
    """Audio alone is one endless frame; it is cut at the memory's size."""
    chunks = cut(stream(40, kinds=np.full(40, AUDIO)), [8, 8, 8, 8, 8, 0, 0, 0], 8)
    _, _, steps, _ = watch_two(memory_of("last_frames"), [chunks, chunks])
    assert [len(kept) for kept in steps[:5]] == [8, 16, 8, 16, 8]
    assert all(kept[-1] == 8 * c + 7 for c, kept in enumerate(steps[:5]))


def test_uniform_is_evenly_spaced_at_every_length():
    """At most three gaps, the longest at most three times the shortest, and every slot filled."""
    length = 1200
    steps = watch(memory_of("uniform"), stream(length), [3] * (length // 3))
    weyl = np.arange(length, dtype=np.uint64) * 2654435769 % 2**32
    for c, kept in enumerate(steps):
        seen = 3 * c + 3
        np.testing.assert_array_equal(kept, np.sort(np.argsort(weyl[:seen])[:16]))
        gaps = np.diff(kept)
        assert len(kept) == min(16, seen) and len(set(gaps)) <= 3
        if len(gaps):
            assert gaps.max() <= 3 * gaps.min()
            assert kept[0] == 0 and seen - kept[-1] <= gaps.max()


def test_uniform_frames_are_whole_and_evenly_spaced():
    frames = 90
    cuts = [8, 6] * (7 * frames // 14)
    steps = watch(Uniform(37, unit="frame"), stream(7 * frames), cuts)
    for kept, seen in zip(steps, np.cumsum(cuts), strict=True):
        number, size = np.unique(kept // 7, return_counts=True)
        complete = number < seen // 7
        assert (size[complete] == 7).all() and (size[~complete] == seen % 7).all()
        if seen >= 37 + 7:
            gaps = np.diff(number)
            assert len(number) >= 5 and len(set(gaps)) <= 3 and gaps.max() <= 3 * gaps.min()


def last_orders(memory, keys, length, cuts):
    """Return the order numbers that are held at the end, drawn with so many keys."""
    chunks = cut(stream(length), cuts, max(cuts))

    def sample(key):
        start = memory.init(SPEC)
        start = start._replace(aux=start.aux._replace(seed=jax.random.key_data(key)))
        state, _ = laws.scan(memory, start, chunks)
        return state.slots.kv.index[:, 0], state.slots.kv.modality[:, 0]

    order, kind = compiled(jax.vmap(sample))(jax.random.split(jax.random.key(0), keys))
    assert np.asarray(kind).all()
    return np.asarray(order)


def test_random_is_uniform_over_the_stream():
    """Each token and each pair is held as often as in a uniform sample, within 4.5 sigma."""
    keys, length, budget = 2000, 13, 4
    order = last_orders(RandomSample(budget), keys, length, [5, 3, 5])
    held = np.zeros((keys, length), np.int64)
    np.put_along_axis(held, (order - 1) // 2, 1, axis=1)
    assert (held.sum(axis=1) == budget).all()
    pairs = held.T @ held
    one, two = budget / length, budget * (budget - 1) / (length * (length - 1))
    for count, p in [(np.diag(pairs), one), (pairs[~np.eye(length, dtype=bool)], two)]:
        assert np.abs(count - keys * p).max() < 4.5 * np.sqrt(keys * p * (1 - p))


def test_random_replacement_is_a_loop_over_slots_whatever_the_cut():
    """A new token takes the slot of a random one; the same key, the same result."""
    memory, length = RandomSample(6, seed=5, draw="replace"), sum(CUTS)
    flat = stream(length)
    key, slots = jax.random.key(5), {}
    for i in range(length):
        bits = int(jax.random.bits(jax.random.fold_in(key, i), dtype="uint32"))
        slots[i if i < 6 else bits % 6] = i
    cuts = [CUTS, (1, 2, 7, 3, 8, 8, 8, 3), (0, 8, 6, 6, 8, 5, 1, 6)]
    one, two, three = (watch(memory, flat, c)[-1] for c in cuts)
    for kept in (one, two, three):
        np.testing.assert_array_equal(kept, sorted(slots.values()))
    other = watch(RandomSample(6, seed=6, draw="replace"), flat, CUTS)[-1]
    assert not np.array_equal(other, one)


def test_random_replacement_forgets_geometrically():
    """A token of age a is held with probability (1 - 1/S)^a, within 4.5 sigma."""
    keys, length, budget = 2000, 24, 4
    order = last_orders(RandomSample(budget, draw="replace"), keys, length, [8, 8, 8])
    age = length - 1 - (order - 1) // 2
    counts = np.bincount(age.ravel(), minlength=length)[: length - budget]
    p = (1 - 1 / budget) ** np.arange(length - budget)
    assert np.abs(counts - keys * p).max() < 4.5 * np.sqrt(keys * 0.25)
    assert counts[0] == keys  # the newest is always there


@pytest.mark.parametrize("per_layer", [False, True])
def test_random_layers_share_or_differ(per_layer):
    """The draw is data in the state, so one function serves both."""
    memory = RandomSample(16, seed=3, per_layer=per_layer)
    starts = [memory.init(SPEC, layer) for layer in range(2)]
    _, _, one, two = watch_two(memory_of("random"), [standard(), standard()], starts)
    assert np.array_equal(one[-1], two[-1]) is not per_layer


def after(memory, chunks):
    return jax.device_get(run(memory, memory.init(SPEC), chunks)[0])


def test_streaming_llm_counts_what_is_held():
    memory, kept = StreamingLLM(16, sinks=2), Recent(16, sinks=2)
    state = after(memory, standard())
    laws.assert_same(state.slots, after(kept, standard()).slots, "the same tokens as recent")
    for view in (memory.view(SPEC, state, None), memory.recall(SPEC, state, None)):
        np.testing.assert_array_equal(view.kv.pos[:, 0], np.arange(16)[:, None] + [[0] * 3])
        np.testing.assert_array_equal(view.base, [16] * 3)
    state = laws.step(memory, memory.init(SPEC), pick(standard(), 0))
    np.testing.assert_array_equal(memory.view(SPEC, state, None).base, [CUTS[0]] * 3)


PLACED = {
    "recent": partial(Recent, 16, sinks=2),
    "last_frames": partial(LastFrames, 16),
    "uniform": partial(Uniform, 16),
    "random": partial(RandomSample, 16),
    "omnimem": partial(OmniMem, 16, text=16),
}


@pytest.mark.parametrize("name", PLACED)
def test_positions_are_a_choice(name):
    kept, numbered = PLACED[name](), PLACED[name](reindex=True)
    one, two = after(kept, standard()), after(numbered, standard())
    laws.assert_same(one.slots.kv.index, two.slots.kv.index, "the same tokens")
    view = numbered.recall(SPEC, two, None)
    held = int(count_of(two.slots.kv))
    np.testing.assert_array_equal(view.kv.pos[:held, 0, 1], np.arange(held))
    np.testing.assert_array_equal(view.base, [held] * 3)


@pytest.mark.parametrize(
    "build", [*PLACED.values(), lambda: Full(16), lambda: StreamingLLM(16, sinks=2)]
)
def test_equal_options_are_equal(build):
    assert build() == build() and hash(build()) == hash(build())


@pytest.mark.parametrize("budget", [1, 2])
@pytest.mark.parametrize("kind", [Full, Recent, StreamingLLM, LastFrames, Uniform, RandomSample])
def test_one_slot_is_a_memory(kind, budget):
    """Sinks leave a slot to the stream, whatever their number."""
    state = after(kind(budget), standard())
    many = len(arrivals(state.slots.kv))
    assert many == budget or (kind is LastFrames and many > 0)
    if kind not in (Uniform, RandomSample):
        assert arrivals(state.slots.kv)[-1] == sum(CUTS) - 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Full(0), "at least 1"),
        (lambda: Recent(4, sinks=-1), "sinks of at least 0"),
        (lambda: StreamingLLM(0), "at least 1"),
        (lambda: LastFrames(0, frames=8), "at least 1"),
        (lambda: LastFrames(8, tokens_per_frame=0), "tokens_per_frame"),
        (lambda: LastFrames(8, frames=0), "at least 1"),
        (lambda: Uniform(8, unit="clip"), "'clip'"),
        (lambda: Uniform(8, tokens_per_frame=4), 'unit="frame"'),
        (lambda: RandomSample(-1), "got budget=-1"),
        (lambda: RandomSample(8, draw="drop"), "'reservoir', 'replace'"),
        (lambda: RandomSample(8, draw="replace", unit="frame"), 'give unit="token"'),
    ],
)
def test_wrong_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
