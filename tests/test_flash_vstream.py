"""Memories before the decoder: Flash-VStream in both versions, MovieChat, MA-LMM."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.step import chunk_step, init_carry, make_program
from jaxmem.loop import question_rows
from jaxmem.memory.base import Chunk, Embeds, nbytes
from jaxmem.memory.features.ma_lmm import ma_lmm
from jaxmem.memory.features.moviechat import moviechat
from jaxmem.memory.features.with_audio import with_sound
from jaxmem.memory.flash_vstream import star
from jaxmem.memory.flash_vstream.flash_vstream import flash_vstream
from jaxmem.memory.flash_vstream.flash_vstream_qwen import Sizes, flash_vstream_qwen
from jaxmem.memory.recent import recent

CFG = small.config()
P, E, CHUNK = 4, 24, 15  # tokens of a frame; rows of a chunk: three frames, sound and text
STAR = star.Sizes(2, 2, 1, 4, 2, 3, 1, 2, buffer=6)
QWEN = Sizes(2, 5, 2, bank=6)
RNG = np.random.default_rng(4)
FRAMES = RNG.normal(size=(14, P, E)).astype(np.float32)
SPEC = small.small_spec(CFG, CHUNK)

MEMORIES = {
    "star": flash_vstream(STAR),
    "star_published": flash_vstream(STAR, form="as_published"),
    "qwen": flash_vstream_qwen(QWEN),
    "qwen_published": flash_vstream_qwen(QWEN, form="as_published"),
    "moviechat": moviechat(P, short=4, long=3),
    "breakpoint": moviechat(P, short=4, long=3, mode="breakpoint"),
    "ma_lmm": ma_lmm(4, P),
    "with_sound": with_sound(flash_vstream(STAR), 2, 1),
}


def chunk(frames, junk=0.0):
    """Rows of a chunk: text, then frames with a row of sound between, then padding."""
    x = np.full((CHUNK, E), junk, np.float32)
    kind = np.zeros((CHUNK,), np.int8)
    rows, kinds = [np.ones((1, E))], [1]
    for frame in frames:
        rows += [frame[:2], np.full((1, E), 3.0), frame[2:]] if len(rows) == 1 else [frame]
        kinds += [2, 2, 3, 2, 2] if len(kinds) == 1 else [2] * P
    flat = np.concatenate(rows)
    x[: len(flat)], kind[: len(kinds)] = flat, kinds
    rel = np.arange(CHUNK)[:, None].repeat(3, 1)
    return Embeds(*map(jnp.asarray, (x, rel, kind, np.full((3,), len(flat)))))


def watch(memory, lengths=(3, 3, 2, 0, 3, 3), junk=0.0):
    write, state, at = jax.jit(memory.write), memory.init(SPEC), 0
    states = []
    for n in lengths:
        rows = chunk(FRAMES[at : at + n], junk)
        at += n
        zero = jnp.zeros((3,), jnp.int32)
        seen = Chunk(None, zero, rows.advance, jnp.int32(0), hidden=rows.x, modality=rows.modality)
        state, spill = write(state, seen)
        assert spill is None
        states.append(state)
    return states


@pytest.fixture(scope="module")
def watched():
    return {name: watch(memory) for name, memory in MEMORIES.items()}


@pytest.mark.parametrize("name", MEMORIES)
def test_padding_and_empty_chunks_change_nothing(watched, name):
    """What padding rows hold is never kept; a chunk without a frame leaves the state as it was."""
    states, other = watched[name], watch(MEMORIES[name], junk=9.0)
    for a, b in ((states[-1], other[-1]), (states[3], states[2])):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    fresh = jax.tree.map(lambda x: (x.shape, x.dtype), states[-1])
    assert fresh == jax.tree.map(lambda x: (x.shape, x.dtype), MEMORIES[name].init(SPEC))


@pytest.mark.parametrize(("name", "chunks"), [("star", 1), ("qwen", 3), ("breakpoint", 3)])
def test_question_behind_the_memory_equals_one_pass(name, chunks):
    """The whole path: chunks, recall, prefill and question are one pass over both."""
    weights = small.params(CFG)
    program = make_program(CFG, MEMORIES[name], SPEC)
    carry = init_carry(program)
    step = jax.jit(lambda c, r: chunk_step(weights, program, c, r)[0])
    for i in range(chunks):
        carry = step(carry, chunk(FRAMES[3 * i : 3 * i + 3]))
    rows = MEMORIES[name].recall(carry.state, None, None)
    question = question_rows(weights, np.array([3, 1]), program=program)
    _, h = jax.jit(lambda c, r: prefill(weights, program, c, r, room=1))(carry, question)
    real = np.asarray(rows.modality) != 0
    assert real.any() and (real.all() == (name == "qwen"))  # also with slots that hold nothing
    assert not real[real.sum() :].any() and not np.asarray(rows.x)[~real].any()
    tail = np.asarray(dec.embed(weights, jnp.asarray([3, 1])))
    places = np.asarray(rows.pos)[real], np.asarray(rows.advance) + np.arange(2)[:, None]
    want = small.one_pass(
        weights, CFG, np.concatenate([np.asarray(rows.x)[real], tail]), np.concatenate(places) * 1.0
    )
    np.testing.assert_allclose(h[:2], want[-2:], atol=2e-4, rtol=2e-4)


def test_questions_at_one_moment_share_the_features():
    """Side by side they pass the features through the decoder once, and answer as each alone."""
    weights = small.params(CFG)
    program = make_program(CFG, ma_lmm(32, P), SPEC)
    carry = chunk_step(weights, program, init_carry(program), chunk(FRAMES[:3]))[0]
    ids = [[i, 3, 1, 0] for i in range(8)]
    rows = [question_rows(weights, np.array(q), program=program) for q in ids]
    many = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    one = lambda rows: prefill(weights, program, carry, rows, room=1)[1]
    first = jax.tree.map(lambda x: x[:1], many)
    compiled = [jax.jit(jax.vmap(one)).lower(r).compile() for r in (many, first)]
    flops = [c.cost_analysis()["flops"] for c in compiled]
    assert flops[0] < 3 * flops[1]
    together = compiled[0](many)
    for row, alone in zip(together, rows, strict=True):
        np.testing.assert_allclose(row, one(alone), atol=2e-5, rtol=2e-5)


def test_star_forms_differ_as_documented(watched):
    """Released: weights restart, the stream's first frames come back. Published: neither."""
    released, published = watched["star"][-1].slots, watched["star_published"][-1].slots
    assert float(jnp.sum(released.weights)) == 4 + 3  # old centres and the last chunk
    assert float(jnp.sum(published.weights)) == len(FRAMES)
    assert np.asarray(released.frames).max() < STAR.temporal
    assert np.asarray(published.frames).min() >= len(FRAMES) - STAR.buffer
    for held in (released, published):
        np.testing.assert_array_equal(held.retrieved, FRAMES[np.asarray(held.frames)])
        np.testing.assert_array_equal(held.spatial[0], FRAMES[-1])
    recent = FRAMES[-STAR.buffer :].reshape(STAR.buffer, -1)
    heavy = np.argsort(-np.asarray(published.weights), kind="stable")[: STAR.retrieved]
    centres = np.asarray(published.temporal).reshape(STAR.temporal, -1)[heavy]
    apart = ((centres[:, None] - recent[None]) ** 2).sum(-1)
    first = len(FRAMES) - STAR.buffer
    np.testing.assert_array_equal(published.frames, first + apart.argmin(-1))


def test_qwen_details_are_frames_of_the_bank_at_their_time(watched):
    memory, state = MEMORIES["qwen_published"], watched["qwen_published"][-1]
    rows, held = memory.recall(state, None, None), state.slots
    details = np.asarray(rows.x)[: QWEN.details * P].reshape(-1, P, E)
    time = np.asarray(rows.pos)[: QWEN.details * P : P, 0]
    assert (time >= len(FRAMES) - QWEN.bank).all()
    np.testing.assert_array_equal(details, FRAMES[time])
    n = QWEN.details * P
    synopsis = np.asarray(rows.pos)[n:]
    np.testing.assert_array_equal(synopsis[:, 0], np.round(held.times) + n)
    np.testing.assert_array_equal(synopsis[:, 1:], n)
    assert int(rows.advance[0]) == n + QWEN.synopsis
    # Times are those of the stream: their weighted mean is that of all its frames.
    assert float(held.weights.sum()) == len(FRAMES)
    mean = float((held.weights * held.times).sum() / held.weights.sum())
    assert mean == pytest.approx((len(FRAMES) - 1) / 2, abs=1e-4)
    drifted = watched["qwen"][-1].slots.times
    assert float(drifted.max()) <= QWEN.synopsis + 3 - 1


def merge_once(entries, sizes, similarity, weighted):
    sim = [similarity(a, b) for a, b in pairwise(entries)]
    i = int(np.argmax(sim))
    share = sizes[i] / (sizes[i] + sizes[i + 1]) if weighted else 0.5
    entries[i : i + 2] = [share * entries[i] + (1 - share) * entries[i + 1]]
    sizes[i : i + 2] = [sizes[i] + sizes[i + 1]]


def test_ma_lmm_merges_every_place_by_itself(watched):
    held = watched["ma_lmm"][-1].slots
    for place in range(P):
        entries, sizes = [], []
        for frame in FRAMES:
            entries.append(frame[place].astype(np.float64))
            sizes.append(1)
            if len(entries) > 4:
                merge_once(
                    entries,
                    sizes,
                    lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b)),
                    weighted=True,
                )
        np.testing.assert_allclose(held.x[:, place], entries, atol=1e-5)
        np.testing.assert_array_equal(held.size[:, place], sizes)


def test_moviechat_averages_fragments(watched):
    def alike(a, b):
        return np.mean(a @ b.T)

    long = []
    for at in range(0, 12, 4):
        part = [f.astype(np.float64) for f in FRAMES[at : at + 4]]
        while len(part) > 2:
            merge_once(part, [1] * len(part), alike, weighted=False)
        for frame in part:
            long.append(frame)
            if len(long) > 3:
                merge_once(long, [1] * len(long), alike, weighted=False)
    held = watched["moviechat"][-1].slots
    np.testing.assert_allclose(held.long.x, long, atol=1e-5)
    assert int(held.short.count) == 2
    rows = MEMORIES["breakpoint"].recall(watched["breakpoint"][-1], None, None)
    want = np.concatenate([np.concatenate(long), FRAMES[12], FRAMES[13]])
    np.testing.assert_allclose(rows.x[: 5 * P], want, atol=1e-5)
    assert int(rows.advance[0]) == 5 * P


def test_sound_is_kept_beside_frames(watched):
    """Chunks hold one row of sound, or none; the two most alike neighbours are averaged."""
    loud = with_sound(ma_lmm(4, P), 2, 1)
    state, (a, b, c) = loud.init(SPEC), np.eye(3, E, dtype=np.float32)
    for row in (a, b, b + 0.1 * c):
        rows = chunk(FRAMES[:1])
        x = rows.x.at[jnp.argmax(rows.modality == 3)].set(row)
        seen = Chunk(None, None, None, jnp.int32(0), hidden=x, modality=rows.modality)
        state, _ = loud.write(state, seen)
    prompt = loud.recall(state, None, None)
    kinds = np.asarray(prompt.modality)
    np.testing.assert_array_equal(kinds, [2] * 3 * P + [3] * 2 + [0] * P)
    np.testing.assert_array_equal(prompt.pos[:14, 0], np.arange(14))
    assert int(prompt.advance[0]) == 14
    np.testing.assert_allclose(prompt.x[3 * P : 3 * P + 2], [a, b + 0.05 * c], atol=1e-6)
    plain = ma_lmm(4, P)
    assert nbytes(loud, SPEC) > nbytes(plain, SPEC) + 2 * E * 4
    with pytest.raises(ValueError, match="keep sound themselves"):
        with_sound(recent(8), 2, 1)


def test_default_sizes_are_the_papers():
    memory = flash_vstream(form="as_published")
    spec = small.small_spec(CFG, 256 * 4)
    rows = jax.eval_shape(lambda: memory.recall(memory.init(spec), None, None))
    assert rows.x.shape == (25 + 25 * 16 + 4 * 64, E)  # 681
    qwen = flash_vstream_qwen()
    rows = jax.eval_shape(lambda: qwen.recall(qwen.init(spec), None, None))
    assert rows.x.shape == (30 * 256 + 60 * 64, E)  # 11 520
    assert nbytes(qwen, spec) > 512 * (256 + 64) * E * 4


def test_errors_name_the_repair():
    with pytest.raises(ValueError, match="as_released"):
        flash_vstream(form="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divide each other"):
        flash_vstream(star.Sizes(grid=16, side=6))
    with pytest.raises(ValueError, match="details at most synopsis"):
        flash_vstream_qwen(Sizes(details=61))
    with pytest.raises(ValueError, match="merged at most short"):
        moviechat(P, short=1)
    with pytest.raises(ValueError, match="whole frames"):
        watch(flash_vstream(star.Sizes()), (1,))
    with pytest.raises(ValueError, match="no view"):
        MEMORIES["star"].view(None, None, None)  # type: ignore[arg-type]
