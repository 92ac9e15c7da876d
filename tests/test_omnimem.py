"""OmniMem: the laws of every memory, and what its score, caps and sketches promise."""

from functools import cache

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from laws import CUTS, LAWS, SPEC, compiled, cut, held, pick, run, see, standard, stream

from jaxmem import kv as tk
from jaxmem.kv import AUDIO, SUMMARY, TEXT, VISION
from jaxmem.memory.base import nbytes, slots
from jaxmem.memory.omnimem import avba
from jaxmem.memory.omnimem import sign_sketch as projection
from jaxmem.memory.omnimem.omnimem import gather, omnimem
from jaxmem.memory.omnimem.sketch import agreement
from jaxmem.memory.parts import scores

CAPS = [[3, 8], [5, 2]]  # (audio, visual) of two layers

VARIANTS = {
    "pair": {"text": 4},
    "joint": {"text": 4, "joint": True},
    "similarity": {"text": 4, "lam": 0.0},
    "exact": {"text": 4, "importance": "exact", "lam": 0.3},
    "sum": {"text": 4, "form": "sum", "lam": 8.0},
}


@cache
def variant(name, budget=laws.BUDGET):
    return omnimem(budget, **VARIANTS[name])


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
    return omnimem(CAPS, text=4, **more)


def watch(memory, kinds):
    """Return the final state after 64 tokens of the given kinds; shapes as the standard stream."""
    flat = stream(64, kinds=np.resize(kinds, 64))
    return run(memory, memory.init(SPEC), cut(flat, (8,) * 8, 8))[0]


def test_ample_caps_keep_everything():
    laws.check_ample_budget(omnimem([[40, 40]] * 2, text=40))


def kinds_held(trace):
    """Return [chunks, 5], how many tokens of each kind are held after each chunk."""
    kind = np.asarray(trace.modality[..., 0])
    return np.stack([np.sum(kind == k, axis=1) for k in range(5)], axis=1)


@pytest.mark.parametrize("layer", [0, 1])
def test_caps_hold_and_are_used_up_in_every_layer(layer):
    assert slots(pair(), SPEC) == (15, 11)
    _, trace = run(pair(), pair().init(SPEC.at(layer)), standard())
    counts = kinds_held(trace)
    flat = stream(sum(CUTS)).tokens.modality[:, 0]
    for c, seen in enumerate(np.cumsum(CUTS)):
        for kind, cap in zip((AUDIO, VISION, TEXT), (*CAPS[layer], 4), strict=True):
            assert counts[c, kind] == min(cap, np.sum(flat[:seen] == kind))


def test_joint_cap_lets_one_kind_take_all():
    assert len(held(watch(pair(joint=True), [AUDIO]).slots.tokens)) == sum(CAPS[0])


@pytest.mark.parametrize(("absent", "present"), [(AUDIO, VISION), (VISION, AUDIO)])
def test_a_stream_without_one_kind_leaves_its_cap_empty(absent, present):
    final = watch(pair(), [TEXT, *[present] * 9])
    kind = np.asarray(final.slots.tokens.modality[:, 0])
    assert np.sum(kind == present) == CAPS[0][0 if present == AUDIO else 1]
    assert np.sum(kind == absent) == 0 and np.sum(kind == TEXT) == 4


def test_summaries_compete_as_vision():
    kind = np.asarray(watch(pair(), [SUMMARY, VISION]).slots.tokens.modality)
    assert np.sum(kind != 0) == CAPS[0][1] and {SUMMARY, VISION} <= set(kind[kind != 0])


def test_text_overflow_drops_the_oldest_and_is_counted():
    final = watch(pair(), [TEXT, VISION, VISION, VISION])
    tokens = final.slots.tokens
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
        seen = seen._replace(mass=seen.mass._replace(chunk=chunk))
    new, _ = compiled(memory.write)(state, seen)
    return (held(new.slots.tokens) - 1) // 2


def test_repeated_neighbours_go_first():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((24, SPEC.width))
    hidden[8:16] = hidden[8]  # rows 9..14 repeat both neighbours
    for name in ("pair", "similarity"):
        memory = omnimem([[0, 18]] * 2, **VARIANTS[name])
        kept = one_chunk(hidden, np.full(24, VISION), memory)
        np.testing.assert_array_equal(kept, np.delete(np.arange(24), np.arange(9, 15)))


def test_exact_repeats_give_finite_scores():
    s = jnp.asarray([1.0 + 2e-7, 1.0, 0.5])
    score = scores.product(jnp.asarray([1.0, 0.0, 1.0]), s, 0.02, 0.5)
    np.testing.assert_allclose(score, [0.0, 0.0, np.sqrt(0.5)])
    assert np.isfinite(scores.additive(jnp.zeros(3), s, 1.0)).all()


def test_without_importance_the_least_similar_stay():
    memory = variant("similarity")
    assert memory.requires.mass is None and memory.requires.hidden
    hidden = np.random.default_rng(1).standard_normal((40, SPEC.width)).astype(np.float32)
    kept = one_chunk(hidden, np.full(40, VISION), memory)
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    after = np.sum(unit[1:] * unit[:-1], axis=1)
    similarity = np.append(1.0, after) + np.append(after, 1.0)
    cap = laws.BUDGET - round(laws.BUDGET / 6)
    np.testing.assert_array_equal(kept, np.sort(np.argsort(similarity)[:cap]))


def test_released_and_published_exponents_rank_alike():
    rng = np.random.default_rng(2)
    hidden, a = rng.standard_normal((40, SPEC.width)), rng.uniform(1e-3, 10.0, 40)
    kinds = rng.choice([AUDIO, VISION], 40)
    sets = [
        one_chunk(hidden, kinds, omnimem(16, lam=lam, power=power), a).tolist()
        for lam, power in ((0.5, 0.5), (1.0, 1.0), (0.5, 1.0))
    ]
    assert sets[0] == sets[1] != sets[2]


def test_importance_is_averaged_with_the_past_and_a_silent_chunk_leaves_it():
    memory = omnimem(16, text=4)
    state = memory.init(SPEC)
    chunks = cut(stream(12), (8, 4), 8)
    first = see(memory, state, pick(chunks, 0))
    write = compiled(memory.write)
    state, _ = write(state, first)
    second = see(memory, state, pick(chunks, 1))
    pool = gather(state.slots, second)
    old = 0.5 * (np.asarray(state.slots.imp)[:8] + np.asarray(second.mass.memory[0, :8]))
    np.testing.assert_allclose(pool.importance[:8], old, rtol=1e-6)
    np.testing.assert_allclose(pool.importance[8:12], second.mass.chunk[0, :4], rtol=1e-6)
    kind = jnp.zeros_like(second.tokens.modality)
    nothing = second._replace(
        tokens=second.tokens._replace(modality=kind),
        end=state.aux.next_pos,
        mass=jax.tree.map(jnp.zeros_like, second.mass),
    )
    same, _ = write(state, nothing)
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
    ],
)
def test_options_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        omnimem(16, **bad)


def test_budgets_are_checked_against_the_model():
    with pytest.raises(ValueError, match="3 layers but the model has 2"):
        omnimem([[1, 2]] * 3).init(SPEC)
    with pytest.raises(ValueError, match="at least one slot"):
        omnimem(0, text=0).init(SPEC)


def walk(length, width, step, seed=0):
    """A random walk of directions: neighbours that repeat each other more or less."""
    rng = np.random.default_rng(seed)
    steps = step * rng.lognormal(0.0, 1.0, (length, 1)) * rng.standard_normal((length, width))
    return np.cumsum(steps, axis=0).astype(np.float32)


def test_projection_is_fixed_and_keeps_distances():
    matrix = np.asarray(projection.signs(192, 64))
    assert set(np.unique(matrix)) == {-1.0, 1.0} and abs(matrix.mean()) < 0.05
    np.testing.assert_array_equal(matrix, projection.signs(192, 64))
    x = walk(200, 192, 0.1)
    y = np.asarray(projection.project(jnp.asarray(x), 64)) / 8.0
    ratio = np.sum(np.diff(y, axis=0) ** 2, axis=1) / np.sum(np.diff(x, axis=0) ** 2, axis=1)
    assert abs(ratio.mean() - 1) < 0.1 and ratio.std() < 1.3 * np.sqrt(2 / 64)


def test_wide_inputs_are_sketched_and_narrow_ones_are_not():
    wide = laws.Spec(**{**vars(SPEC), "width": 192})
    assert omnimem(16).init(wide).slots.unit.shape[1] == 128
    assert omnimem(16, sketch=64).init(wide).slots.unit.shape[1] == 64
    assert omnimem(16, sketch=None).init(wide).slots.unit.shape[1] == 192
    assert omnimem(16).init(SPEC).slots.unit.shape[1] == SPEC.width
    half = omnimem(16, unit_dtype=jnp.bfloat16)
    assert half.init(wide).slots.unit.dtype == jnp.bfloat16
    assert nbytes(omnimem(16), wide) - nbytes(half, wide) == 2 * (16 + 8) * 128 * 2


def test_sketched_memory_keeps_nearly_the_same_tokens():
    hidden = jnp.asarray(walk(160, 192, 0.1))
    kind = np.resize([VISION, VISION, VISION, AUDIO], 160)
    common = {"budget": 48, "chunk": 32}
    half, _ = agreement(hidden, kind, sketch=None, unit_dtype=jnp.bfloat16, **common)
    sketched, _ = agreement(hidden, kind, sketch=128, **common)
    chance = 48 / (2 * 96 - 48)
    assert half > 0.9 and sketched > 0.7 > chance
    with pytest.raises(ValueError, match="do not divide"):
        agreement(hidden[:150], kind[:150], sketch=64, **common)


def test_recorder_streams_as_its_memory_and_averages_its_signals():
    plain, recorded = omnimem(16, text=4), avba.recorder(omnimem(16, text=4), skip=2)
    chunks = standard()
    want, _ = run(plain, plain.init(SPEC), chunks)
    got, _ = run(recorded, recorded.init(SPEC), chunks)
    jax.tree.map(np.testing.assert_array_equal, got.slots, want.slots)
    jax.tree.map(np.testing.assert_array_equal, got.aux.inner, want.aux)
    assert int(got.aux.seen) == sum(c > 0 for c in CUTS)

    state, rows, write, pooled = plain.init(SPEC), [], compiled(plain.write), compiled(gather)
    for c in range(len(CUTS)):
        seen = see(plain, state, pick(chunks, c))
        pool = pooled(state.slots, seen)
        if CUTS[c] and sum(n > 0 for n in CUTS[:c]) >= 2:
            kind = np.asarray(pool.modality)
            rows.append([signal(pool, g) for g in ([AUDIO], [VISION], [AUDIO, VISION])])
            assert np.sum(kind == AUDIO) >= 2
        state, _ = write(state, seen)
    mean = np.mean(rows, axis=0)
    stacked = got._replace(aux=jax.tree.map(lambda x: x[None], got.aux))
    signals = avba.signals_of([stacked, stacked])
    np.testing.assert_allclose(signals.entropy_audio, mean[0, :1], rtol=1e-5)
    np.testing.assert_allclose(signals.entropy_visual, mean[1, :1], rtol=1e-5)
    np.testing.assert_allclose(signals.entropy_all, mean[2, :1], rtol=1e-5)
    np.testing.assert_allclose(signals.cosine_audio, mean[0, 1:], rtol=1e-5)
    np.testing.assert_allclose(signals.cosine_visual, mean[1, 1:], rtol=1e-5)


def signal(pool, group):
    """Return the normalised entropy of importance and the mean cosine of a group's tokens."""
    mine = np.isin(np.asarray(pool.modality), group)
    p = np.asarray(pool.importance, np.float64)[mine]
    p = p[p > 0] / p.sum()
    return -np.sum(p * np.log(p)) / np.log(mine.sum()), np.asarray(pool.redundancy)[mine].mean()


def test_recorder_refuses_what_it_cannot_record():
    with pytest.raises(ValueError, match="lam > 0"):
        avba.recorder(omnimem(16, lam=0.0))
    recorded = avba.recorder(omnimem(16, text=4), skip=99)
    final, _ = run(recorded, recorded.init(SPEC), standard())
    with pytest.raises(ValueError, match="no chunk was recorded"):
        avba.signals_of(final._replace(aux=jax.tree.map(lambda x: x[None], final.aux)))


def test_next_chunk_begins_behind_the_prefix():
    spec = laws.Spec(**{**vars(SPEC), "prefix": 9})
    view = omnimem(16).view(omnimem(16).init(spec), None, None)
    np.testing.assert_array_equal(view.base, [9, 9, 9])
    assert int(tk.count(view.tokens)) == 0
