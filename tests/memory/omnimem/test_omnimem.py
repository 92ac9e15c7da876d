"""OmniMem: the laws of every memory, and what its score, caps and sketches promise."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from laws import CUTS, LAWS, SPEC, compiled, cut, held, pick, run, see, standard, stream

from jaxmem import kv as tk
from jaxmem.kv import AUDIO, SUMMARY, TEXT, VISION
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.omnimem import sign_sketch
from jaxmem.memory.omnimem.omnimem import OmniMem, gather
from jaxmem.memory.parts import scores
from jaxmem.memory.sizes import nbytes, slots

CAPS = ((3, 8), (5, 2))  # (audio, visual) of two layers

VARIANTS = {
    "pair": {"text": 4},
    "joint": {"text": 4, "audio_share": None},
    "similarity": {"text": 4, "lam": 0.0},
    "exact": {"text": 4, "importance": "exact", "lam": 0.3},
    "sum": {"text": 4, "form": "sum", "lam": 8.0},
}


written = compiled(
    lambda memory, spec, state, seen: memory.write(spec, state, seen), static_argnums=(0, 1)
)


@cache
def variant(name, budget=laws.BUDGET):
    return OmniMem(budget, **VARIANTS[name])


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("joint", "static_and_ordered"),
        ("joint", "padding_and_room"),
        ("similarity", "subset"),
        ("exact", "subset"),
        ("sum", "subset"),
    ],
)
def test_law_of_variants(name, law):
    LAWS[law](variant(name))


@cache
def pair(**more):
    return OmniMem(CAPS, text=4, **more)


def streamed(memory, kinds):
    """Return the final state after 64 tokens of the given kinds; shapes as the standard stream."""
    flat = stream(64, kinds=np.resize(kinds, 64))
    return run(memory, memory.init(SPEC), cut(flat, (8,) * 8, 8))[0]


def test_ample_caps_keep_everything():
    laws.check_ample_budget(OmniMem([[40, 40]] * 2, text=40))


def kinds_held(trace):
    """Return [chunks, 5], how many tokens of each kind are held after each chunk."""
    kind = np.asarray(trace.modality[..., 0])
    return np.stack([np.sum(kind == k, axis=1) for k in range(5)], axis=1)


@pytest.mark.parametrize("layer", [0, 1])
def test_caps_hold_and_are_used_up_in_every_layer(layer):
    assert slots(pair(), SPEC) == (15, 11)
    _, trace = run(pair(), pair().init(SPEC, layer), standard())
    counts = kinds_held(trace)
    flat = stream(sum(CUTS)).tokens.modality[:, 0]
    for c, seen in enumerate(np.cumsum(CUTS)):
        for kind, cap in zip((AUDIO, VISION, TEXT), (*CAPS[layer], 4), strict=True):
            assert counts[c, kind] == min(cap, np.sum(flat[:seen] == kind))


def test_joint_cap_lets_one_kind_take_all():
    for memory in (pair(audio_share=None), OmniMem([sum(c) for c in CAPS], text=4)):
        assert len(held(streamed(memory, [AUDIO, VISION]).slots.kv)) == sum(CAPS[0])
    kept = np.asarray(streamed(memory, [AUDIO]).slots.kv.modality)
    assert np.sum(kept == AUDIO) == sum(CAPS[0])


@pytest.mark.parametrize(("absent", "present"), [(AUDIO, VISION), (VISION, AUDIO)])
def test_a_stream_without_one_kind_lends_its_cap(absent, present):
    final = streamed(pair(), [TEXT, *[present] * 9])
    kind = np.asarray(final.slots.kv.modality[:, 0])
    assert np.sum(kind == present) == sum(CAPS[0])
    assert np.sum(kind == absent) == 0 and np.sum(kind == TEXT) == 4


def test_a_cap_is_its_own_again_when_its_kind_comes():
    """Audio after a long silence takes its slots back at once, and lends them when it is gone."""
    kinds = np.asarray([VISION] * 32 + [AUDIO] * 8 + [VISION] * 24)
    chunks = cut(stream(64, kinds=kinds), (8,) * 8, 8)
    counts = kinds_held(run(pair(), pair().init(SPEC), chunks)[1])
    audio, visual = CAPS[0]
    np.testing.assert_array_equal(counts[2:4, VISION], audio + visual)
    np.testing.assert_array_equal(counts[4:, [AUDIO, VISION]], [[audio, visual]] * 4)


def test_text_neither_lends_nor_borrows():
    kept = np.asarray(streamed(OmniMem(CAPS, text=4), [VISION]).slots.kv.modality)
    assert np.sum(kept == VISION) == sum(CAPS[0])
    final = streamed(OmniMem(CAPS, text=4), [TEXT])
    assert len(held(final.slots.kv)) == 4 and int(final.aux.dropped) == 60


def test_summaries_compete_as_vision():
    kind = np.asarray(streamed(pair(), [SUMMARY, VISION]).slots.kv.modality)
    assert np.sum(kind != 0) == sum(CAPS[0]) and {SUMMARY, VISION} <= set(kind[kind != 0])


def test_text_overflow_drops_the_oldest_and_is_counted():
    final = streamed(pair(), [TEXT, VISION, VISION, VISION])
    tokens = final.slots.kv
    text = np.asarray(tokens.index)[np.asarray(tokens.modality) == TEXT]
    np.testing.assert_array_equal(text, 2 * np.asarray([48, 52, 56, 60]) + 1)
    assert int(final.aux.dropped) == 16 - 4


def one_chunk(hidden, kinds, memory, importance=None):
    """Return the arrival numbers that a memory keeps of a single chunk."""
    n = len(kinds)
    flat = stream(n, kinds=kinds)._replace(hidden=np.asarray(hidden, np.float32))
    state = memory.init(SPEC)
    seen = see(memory, state, pick(cut(flat, (n,), n), 0))
    if importance is not None:
        chunk = jnp.asarray(importance, jnp.float32)[None]
        seen = seen._replace(received=seen.received._replace(chunk=chunk))
    new, _ = written(memory, SPEC, state, seen)
    return (held(new.slots.kv) - 1) // 2


def test_repeated_neighbours_go_first():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((24, SPEC.width))
    hidden[8:16] = hidden[8]  # rows 9..14 repeat both neighbours
    for name in ("pair", "similarity"):
        memory = OmniMem([[0, 18]] * 2, **VARIANTS[name])
        kept = one_chunk(hidden, np.full(24, VISION), memory)
        np.testing.assert_array_equal(kept, np.delete(np.arange(24), np.arange(9, 15)))


def test_exact_repeats_give_finite_scores():
    s = jnp.asarray([1.0 + 2e-7, 1.0, 0.5])
    score = scores.product(jnp.asarray([1.0, 0.0, 1.0]), s, 0.02, 0.5)
    np.testing.assert_allclose(score, [0.0, 0.0, np.sqrt(0.5)])
    assert np.isfinite(scores.additive(jnp.zeros(3), s, 1.0)).all()


def test_without_importance_the_least_similar_stay():
    memory = variant("similarity")
    assert memory.requires.attention is None and memory.requires.hidden
    hidden = np.random.default_rng(1).standard_normal((40, SPEC.width)).astype(np.float32)
    kept = one_chunk(hidden, np.full(40, VISION), memory)
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    after = np.sum(unit[1:] * unit[:-1], axis=1)
    similarity = np.append(1.0, after) + np.append(after, 1.0)
    np.testing.assert_array_equal(kept, np.sort(np.argsort(similarity)[: laws.BUDGET]))


def test_released_and_published_exponents_rank_alike():
    rng = np.random.default_rng(2)
    hidden, a = rng.standard_normal((40, SPEC.width)), rng.uniform(1e-3, 10.0, 40)
    kinds = rng.choice([AUDIO, VISION], 40)
    sets = [
        one_chunk(hidden, kinds, OmniMem(16, lam=lam, power=power), a).tolist()
        for lam, power in ((0.5, 0.5), (1.0, 1.0), (0.5, 1.0))
    ]
    assert sets[0] == sets[1] != sets[2]


def test_importance_is_averaged_with_the_past_and_a_silent_chunk_leaves_it():
    memory = OmniMem(16, text=4)
    state = memory.init(SPEC)
    chunks = cut(stream(12), (8, 4), 8)
    first = see(memory, state, pick(chunks, 0))
    state, _ = written(memory, SPEC, state, first)
    second = see(memory, state, pick(chunks, 1))
    pool = gather(state.slots, second)
    old = 0.5 * (np.asarray(state.slots.importance)[:8] + np.asarray(second.received.memory[0, :8]))
    np.testing.assert_allclose(pool.importance[:8], old, rtol=1e-6)
    np.testing.assert_allclose(pool.importance[8:12], second.received.chunk[0, :4], rtol=1e-6)
    kind = jnp.zeros_like(second.kv.modality)
    nothing = second._replace(
        kv=second.kv._replace(modality=kind),
        next_pos=state.aux.next_pos,
        received=jax.tree.map(jnp.zeros_like, second.received),
    )
    same, _ = written(memory, SPEC, state, nothing)
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_block_redundancy_sees_repeats_that_are_not_neighbours():
    rng = np.random.default_rng(3)
    unit = rng.standard_normal((40, 16)).astype(np.float32)
    unit[::2] = unit[0]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    got = scores.block_redundancy(jnp.asarray(unit), block=32, nearest=4)
    for start in (0, 32):
        rows = unit[start : start + 32]
        cosine = np.zeros((32, 32))
        cosine[: len(rows), : len(rows)] = rows @ rows.T - np.diag(np.sum(rows * rows, axis=1))
        want = np.sort(cosine[: len(rows)], axis=1)[:, -4:].mean(axis=1)
        np.testing.assert_allclose(got[start : start + 32], want, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"importance": "median"},
        {"form": "mean"},
        {"carry": 2.0},
        {"lam": -1.0},
        {"power": 0.0},
        {"sketch": 48},
        {"lam": float("nan")},
        {"newest": -1},
        {"text": -1},
        {"audio_share": 1.5},
        {"unit_dtype": "half a byte"},
    ],
)
def test_options_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        OmniMem(16, **bad)


def test_budgets_are_checked_against_the_model():
    with pytest.raises(ValueError, match="3 layers but the model has 2"):
        OmniMem([[1, 2]] * 3).init(SPEC)
    with pytest.raises(ValueError, match="at least one slot"):
        OmniMem(0).init(SPEC)
    for bad in (-1, 16.5, "table.json", [[1, 2, 3]]):
        with pytest.raises(ValueError, match="budget"):
            OmniMem(bad)


@pytest.mark.parametrize("share", [0.25, None])
def test_the_newest_are_held_inside_the_caps(share):
    """A floor of 3 tokens of audio and of vision each, or of both where they share a cap."""
    memory, plain = (OmniMem(16, audio_share=share, newest=n) for n in (3, 0))
    chunks = cut(stream(64, kinds=np.resize([AUDIO, VISION], 64)), (8,) * 8, 8)
    trace = run(memory, memory.init(SPEC), chunks)[1]
    for c in range(8):
        now = set(held(pick(trace, c)).tolist())
        newest = 2 * (8 * (c + 1) - np.arange(6 if share else 3)) - 1
        assert now >= set(newest.tolist())
        of_each = 4 * (c + 1)
        assert len(now) == (min(4, of_each) + min(12, of_each) if share else min(16, 2 * of_each))
    other = run(plain, plain.init(SPEC), chunks)[1]
    assert any(set(held(pick(other, c))) != set(held(pick(trace, c))) for c in range(8))


def test_a_floor_beyond_a_cap_is_a_window():
    memory = OmniMem([[2, 5]] * 2, newest=99)
    final = streamed(memory, [AUDIO, VISION])
    order, kind = (np.asarray(x)[:, 0] for x in (final.slots.kv.index, final.slots.kv.modality))
    np.testing.assert_array_equal(order[kind == AUDIO], 2 * np.arange(60, 64, 2) + 1)
    np.testing.assert_array_equal(order[kind == VISION], 2 * np.arange(55, 64, 2) + 1)


@pytest.mark.parametrize(("budget", "text"), [(16, 8), (96, 32), (((6, 30), (20, 40)), 16)])
def test_text_has_slots_where_time_stamps_come(budget, text):
    memory, stamped = OmniMem(budget), replace(SPEC, timestamps=True)
    assert memory.quotas(SPEC, 0)[0] == 0 and memory.quotas(stamped, 0)[0] == text
    assert OmniMem(budget, text=3).quotas(stamped, 1)[0] == 3
    assert slots(memory, stamped)[0] == slots(memory, SPEC)[0] + text


def test_equal_options_are_one_memory():
    """However a table is given: arrays, lists, numpy numbers. Tables come back as tuples."""
    table = np.asarray(CAPS)
    same = {OmniMem(table), OmniMem(table.tolist()), OmniMem(CAPS), OmniMem(table.astype(float))}
    assert len(same) == 1 and same.pop().budget == CAPS
    joint = {OmniMem(table.sum(1)), OmniMem([11, 7]), OmniMem((11, 7))}
    assert len(joint) == 1 and joint.pop().budget == (11, 7)
    assert OmniMem(np.int64(16)) == OmniMem(16) and type(OmniMem(np.int64(16)).budget) is int
    kinds = {OmniMem(16, unit_dtype=d) for d in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16"))}
    assert len(kinds) == 1


def walk(length, width, step, seed=0):
    """A random walk of directions: neighbours that repeat each other more or less."""
    rng = np.random.default_rng(seed)
    steps = step * rng.lognormal(0.0, 1.0, (length, 1)) * rng.standard_normal((length, width))
    return np.cumsum(steps, axis=0).astype(np.float32)


def test_projection_is_fixed_and_keeps_distances():
    matrix = np.asarray(sign_sketch.signs(192, 64))
    assert set(np.unique(matrix)) == {-1.0, 1.0} and abs(matrix.mean()) < 0.05
    np.testing.assert_array_equal(matrix, sign_sketch.signs(192, 64))
    x = walk(200, 192, 0.1)
    y = np.asarray(sign_sketch.project(jnp.asarray(x), 64)) / 8.0
    ratio = np.sum(np.diff(y, axis=0) ** 2, axis=1) / np.sum(np.diff(x, axis=0) ** 2, axis=1)
    assert abs(ratio.mean() - 1) < 0.1 and ratio.std() < 1.3 * np.sqrt(2 / 64)


def test_wide_inputs_are_sketched_where_asked_and_narrow_ones_are_not():
    wide = replace(SPEC, width=192)
    assert OmniMem(16).init(wide).slots.unit.shape[1] == 192  # as released
    assert OmniMem(16, sketch=64).init(wide).slots.unit.shape[1] == 64
    assert OmniMem(16, sketch=128).init(SPEC).slots.unit.shape[1] == SPEC.width
    half = OmniMem(16, sketch=128, unit_dtype="bfloat16")
    assert half.init(wide).slots.unit.dtype == jnp.bfloat16
    assert nbytes(OmniMem(16), wide) - nbytes(half, wide) == 2 * 16 * (192 * 4 - 128 * 2)


def similarity_kept(hidden, kinds, **more):
    """Return the sets that a memory of similarity alone keeps after every chunk of 32."""
    memory = OmniMem(48, lam=0.0, audio_share=0.5, **more)
    spec = replace(SPEC, layers=1, width=hidden.shape[1])
    flat = stream(len(kinds), spec=spec, kinds=kinds)._replace(hidden=hidden)
    state, sets = memory.init(spec), []
    chunks = cut(flat, (32,) * (len(kinds) // 32), 32)
    for c in range(len(kinds) // 32):
        chunk = pick(chunks, c)
        seen = Chunk(chunk.tokens, chunk.end, hidden=chunk.hidden)
        state, _ = written(memory, spec, state, seen)
        sets.append(set(held(state.slots.kv).tolist()))
    return sets


def test_sketched_memory_keeps_nearly_the_same_tokens():
    """Jaccard index of the sets that whole and sketched vectors keep, once some are dropped."""
    hidden, kinds = walk(160, 192, 0.1), np.resize([VISION, VISION, VISION, AUDIO], 160)
    whole = similarity_kept(hidden, kinds)

    def agreement(**more):
        pairs = zip(whole[1:], similarity_kept(hidden, kinds, **more)[1:], strict=True)
        return np.mean([len(a & b) / len(a | b) for a, b in pairs])

    chance = 48 / (2 * 96 - 48)
    assert agreement(unit_dtype="bfloat16") > 0.9
    assert agreement(sketch=128) > 0.7 > chance


def test_next_chunk_begins_after_the_prefix():
    spec = replace(SPEC, prefix=9)
    view = OmniMem(16).view(spec, OmniMem(16).init(spec), None)
    np.testing.assert_array_equal(view.base, [9, 9, 9])
    assert int(tk.count(view.kv)) == 0
