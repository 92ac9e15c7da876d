"""What all memories before the decoder have in common: options, frames, chunks, questions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from feature_streams import CFG, FRAMES, SPEC, P, chunk, watch

from jaxmem.bound import question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.step import chunk_step, init_carry, make_program
from jaxmem.memory.features.frames import halve_grid, pool_grid
from jaxmem.memory.features.ma_lmm import MALMM
from jaxmem.memory.features.memory_vla import MemoryVLA
from jaxmem.memory.features.moviechat import MovieChat
from jaxmem.memory.features.with_audio import WithAudio, share_slots
from jaxmem.memory.flash_vstream.flash_vstream import FlashVStream
from jaxmem.memory.flash_vstream.flash_vstream_qwen import FlashVStreamQwen, QwenSizes
from jaxmem.memory.flash_vstream.star import Sizes
from jaxmem.memory.omnimem.budgets import within
from jaxmem.memory.sizes import nbytes

STAR = Sizes(2, 2, 1, 4, 2, 3, 1, 2, buffer=6)
QWEN = QwenSizes(2, 5, 2, bank=6)
MAKE = {
    "star": lambda: FlashVStream(STAR),
    "star_published": lambda: FlashVStream(STAR, form="as_published"),
    "qwen": lambda: FlashVStreamQwen(QWEN),
    "qwen_published": lambda: FlashVStreamQwen(QWEN, form="as_published"),
    "moviechat": lambda: MovieChat(4, long=3),
    "breakpoint": lambda: MovieChat(4, long=3, mode="breakpoint"),
    "ma_lmm": lambda: MALMM(4),
    "memory_vla": lambda: MemoryVLA(4),
    "with_audio": lambda: WithAudio(FlashVStream(STAR), 2, tokens=1),
}
PLAIN = [FlashVStream(), FlashVStreamQwen(), MovieChat(), MALMM(), MemoryVLA()]


@pytest.mark.parametrize("name", MAKE)
def test_equal_options_make_equal_memories(name):
    a, b = MAKE[name](), MAKE[name]()
    assert a == b and hash(a) == hash(b) and a is not b
    assert len({make() for make in MAKE.values()}) == len(MAKE)


@pytest.mark.parametrize("name", MAKE)
def test_padding_and_empty_chunks_change_nothing(name):
    """What padding rows hold is never kept; a chunk without a frame moves the time on at most."""
    states, other = watch(MAKE[name]()), watch(MAKE[name](), junk=9.0)
    idle = states[3]
    if name == "memory_vla":  # one row of text
        idle = idle._replace(aux=idle.aux._replace(next_pos=idle.aux.next_pos - 1))
    for a, b in ((states[-1], other[-1]), (idle, states[2])):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    fresh = jax.tree.map(lambda x: (x.shape, x.dtype), states[-1])
    assert fresh == jax.tree.map(lambda x: (x.shape, x.dtype), MAKE[name]().init(SPEC))


@pytest.mark.parametrize(("name", "chunks"), [("star", 1), ("qwen", 3), ("breakpoint", 3)])
def test_question_after_the_memory_equals_one_pass(name, chunks):
    """The whole path: chunks, read, prefill and question are one pass over both."""
    weights, memory = small.params(CFG), MAKE[name]()
    program = make_program(CFG, memory, SPEC)
    carry = init_carry(program)
    step = jax.jit(lambda c, r: chunk_step(weights, program, c, r)[0])
    for i in range(chunks):
        carry = step(carry, chunk(FRAMES[3 * i : 3 * i + 3]))
    rows = memory.read(SPEC, carry.state)
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
    program = make_program(CFG, MALMM(32), SPEC)
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


def test_rows_of_frames_that_a_chunk_cuts_are_counted():
    memory = MALMM(4)
    rows = chunk(FRAMES[:3])
    short = rows._replace(modality=rows.modality.at[11].set(0))  # the last but two vision rows
    state = memory.write(SPEC, memory.init(SPEC), short)
    assert int(state.aux.dropped) == 3 and int(state.slots.count) == 2


@pytest.mark.parametrize("frame", [(4, 4), (16, 16), (14, 26), (13, 23), (24, 24)], ids=str)
@pytest.mark.parametrize("memory", PLAIN, ids=lambda m: m.name)
def test_frames_of_the_model_are_taken_as_they_are(memory, frame):
    """Nothing about a frame is an option: rows and columns come with the Spec, square or not."""
    tokens = frame[0] * frame[1]
    spec = replace(SPEC, frame=frame, chunk=2 * tokens)
    after = jax.eval_shape(lambda s, e: memory.write(spec, s, e), *_start(memory, spec))
    before = jax.eval_shape(lambda: memory.init(spec))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), before
    )
    with pytest.raises(ValueError, match=f"frames of {tokens} rows.*chunk"):
        memory.init(replace(spec, chunk=tokens - 1))


def _start(memory, spec):
    rows = jax.eval_shape(lambda: chunk(FRAMES[:1]))
    like = lambda x: jax.ShapeDtypeStruct((spec.chunk, *x.shape[1:]), x.dtype)
    rows = rows._replace(x=like(rows.x), pos=like(rows.pos), modality=like(rows.modality))
    return jax.eval_shape(lambda: memory.init(spec)), rows


@pytest.mark.parametrize("memory", PLAIN, ids=lambda m: m.name)
def test_a_budget_of_rows_follows_the_frames_of_the_model(memory):
    """The parts that grow with the budget have as many rows for large frames as for small ones."""
    for frame in ((4, 4), (14, 14), (16, 16), (12, 20)):
        spec = replace(SPEC, frame=frame, chunk=frame[0] * frame[1])
        grow = [nbytes(memory.resized(n, spec), spec) for n in (20_000, 40_000)]
        row = spec.width * 4
        # Parts beside those of the budget are a few times as large, whatever a frame has.
        assert 0.9 < (grow[1] - grow[0]) / (20_000 * row) < 6, (frame, grow)
    small_frames = replace(SPEC, frame=(4, 4), chunk=48)
    assert nbytes(within(memory, small_frames, "64KiB"), small_frames) <= 2**16


def test_budgets_of_the_embedded_model_are_those_of_the_record():
    """The sizes behind the recorded comparison: frames of 4 x 4, 96 slots."""
    spec = replace(SPEC, frame=(4, 4), chunk=48)
    star = FlashVStream().resized(96, spec).sizes
    assert (star.grid, star.side, star.temporal_side) == ((4, 4), (4, 4), (2, 2))
    assert (star.temporal, star.abstract, star.buffer) == (24, 24, 12)
    qwen = FlashVStreamQwen().resized(960, spec).sizes
    assert (qwen.grid, qwen.synopsis, qwen.details, qwen.bank) == ((4, 4), 7, 4, 60)
    assert MovieChat().resized(960, spec) == MovieChat(15, merged=1, long=45)
    assert MALMM().resized(96, spec) == MALMM(6)
    heard = share_slots(MALMM(), 96, replace(spec, audio_tokens=4))
    assert heard == WithAudio(MALMM(3), 12)
    assert share_slots(MALMM(), 96, spec) == MALMM(6)


def test_frames_are_pooled_by_rows_and_columns():
    x = np.arange(2 * 24 * 3, dtype=np.float32).reshape(2, 24, 3)
    got = pool_grid(jnp.asarray(x), (4, 6), (2, 2))
    want = x.reshape(2, 2, 2, 2, 3, 3).mean((2, 4)).reshape(2, 4, 3)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    with pytest.raises(ValueError, match="4 x 6"):
        pool_grid(jnp.asarray(x), (4, 6), (3, 2))
    half = halve_grid(jnp.asarray(x)[:, :15], (3, 5)).reshape(2, 2, 3, 3)
    image = x[:, :15].reshape(2, 3, 5, 3)
    np.testing.assert_allclose(half[:, 0, 1], image[:, :2, 2:4].mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(half[:, 1, 2], image[:, 2, 4], rtol=1e-6)


def test_errors_name_the_repair():
    with pytest.raises(ValueError, match="short of at least 2"):
        MovieChat(1)
    with pytest.raises(ValueError, match="'global', 'breakpoint', got 'now'"):
        MovieChat(mode="now")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames of at least 1"):
        MALMM(0)
    with pytest.raises(ValueError, match="tokens of at least 1"):
        MovieChat(tokens=0)
    for memory in PLAIN:
        with pytest.raises(ValueError, match=r"Spec\.frame"):
            memory.init(replace(SPEC, frame=None))
    longer = MALMM(tokens=P)
    cut = jax.tree.map(lambda x: x[:3] if x.ndim > 1 else x, chunk(FRAMES[:1]))
    with pytest.raises(ValueError, match="whole frames"):
        longer.write(SPEC, longer.init(SPEC), cut._replace(modality=cut.modality[:3]))
