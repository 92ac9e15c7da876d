"""The laws over the methods people compare with, and what each of them promises beyond."""

from functools import partial

import jax
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, cut, held, pick, standard, stream

from jaxmem import kv as tk
from jaxmem.decoder.answer import prefill
from jaxmem.loop import init_carry, make_program, spec_of
from jaxmem.loop import stream as small_stream
from jaxmem.memory.compression.h2o import h2o
from jaxmem.memory.compression.knorm import keydiff, knorm
from jaxmem.memory.compression.snapkv import snapkv
from jaxmem.memory.compression.tova import tova
from jaxmem.memory.last_frames import last_frames
from jaxmem.memory.omnimem.omnimem import omnimem
from jaxmem.memory.parts.positions import ruled
from jaxmem.memory.random import random
from jaxmem.memory.recent import recent
from jaxmem.memory.streaming_llm import streaming_llm
from jaxmem.memory.uniform import uniform
from jaxmem.memory.video.infinipot_v import infinipot_v
from jaxmem.memory.video.rekv import rekv
from jaxmem.rope import rope_1d

BUDGET = 16
ROPE = rope_1d(SPEC.head_dim)
MEMORIES = {
    "snapkv": snapkv(BUDGET, window=3, audio_share=0.25),
    "snapkv_shared": snapkv(BUDGET, window=3, per_head=False, per_kind=False),
    "h2o": h2o(BUDGET, audio_share=0.25),
    "tova": tova(BUDGET, audio_share=0.25),
    "knorm": knorm(BUDGET, audio_share=0.25),
    "keydiff": keydiff(BUDGET, rotary=ROPE, audio_share=0.25),
    "keydiff_shared": keydiff(BUDGET, per_head=False, per_kind=False),
    "streaming_llm": streaming_llm(BUDGET, sinks=2, positions="keep"),
    "rekv": rekv(BUDGET, block=4, topk=2, sinks=2),
    "infinipot_v": infinipot_v(BUDGET, (2, 2), audio_share=0.25),
    "infinipot_v_pooled": infinipot_v(BUDGET, (2, 2), pooling=True, rotary=ROPE, per_kind=False),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", MEMORIES)
def test_law(name, law):
    if name == "infinipot_v_pooled" and law == "padding_and_room":
        pytest.skip("the pooling window depends on how many frames a chunk can hold")
    LAWS[law](MEMORIES[name])


def after(memory, chunks):
    state, _ = laws.run(memory, memory.init(SPEC), chunks)
    return jax.device_get(state)


def of_heads(tokens):
    """Return the arrival numbers that every head holds; the stream's order is 2 * arrival + 1."""
    groups = tokens.modality.shape[1]
    return [(held(laws.of_head(tokens, g)) - 1) // 2 for g in range(groups)]


@pytest.mark.parametrize("name", ["snapkv", "h2o", "knorm", "keydiff", "infinipot_v"])
def test_heads_keep_different_tokens(name):
    one, two = of_heads(after(MEMORIES[name], standard()).slots.tokens)
    assert len(one) == len(two) and set(one.tolist()) != set(two.tolist())


def test_knorm_is_the_smallest_norms_of_the_whole_stream():
    """A norm never changes, so what is held is the best of everything seen."""
    flat = stream(sum(CUTS))
    state = after(knorm(BUDGET, per_kind=False), standard())
    norms = np.linalg.norm(flat.tokens.k, axis=-1)
    for g, kept in enumerate(of_heads(state.slots.tokens)):
        np.testing.assert_array_equal(kept, np.sort(np.argsort(norms[:, g])[:BUDGET]))


def test_audio_has_its_own_part_of_the_budget():
    """Loud pictures cannot push sound out: the audio part holds audio's own best."""
    flat = stream(sum(CUTS))
    quiet = flat.tokens.modality[:, 0] == tk.AUDIO
    k = flat.tokens.k * np.where(quiet, 100.0, 1.0)[:, None, None].astype(np.float32)
    chunks = cut(flat._replace(tokens=flat.tokens._replace(k=k)), CUTS, 8)
    for per_kind, want in ((True, 4), (False, 0)):
        memory = knorm(BUDGET, per_kind=per_kind, audio_share=0.25)
        kinds = after(memory, chunks).slots.tokens.modality
        np.testing.assert_array_equal(np.sum(kinds == tk.AUDIO, axis=0), [want, want])


def test_h2o_adds_up_what_every_row_gave():
    """Against a plain loop over chunks with Python sets and a dictionary of sums."""
    memory = h2o(BUDGET, per_kind=False)
    state, chunks = memory.init(SPEC), standard()
    sums = [{}, {}]
    write = compiled(lambda s, c: (laws.see(memory, s, c), laws.step(memory, s, c)))
    for c in range(len(CUTS)):
        seen, state = jax.device_get(write(state, pick(chunks, c)))
        for g, total in enumerate(sums):
            before = sorted(total)
            for i, number in enumerate(before):
                total[number] += seen.mass.memory[g, i]
            for t, number in enumerate(seen.tokens.index[: CUTS[c], g].tolist()):
                total[number] = seen.mass.chunk[g, t]
            numbers = sorted(total)
            newest = numbers[-8:]
            rest = sorted(numbers[:-8], key=lambda i: -total[i])[: BUDGET - len(newest)]
            sums[g] = {i: total[i] for i in sorted(newest + rest)}
            tokens = laws.of_head(state.slots.tokens, g)
            np.testing.assert_array_equal(held(tokens), sorted(sums[g]))
            n = len(sums[g])
            want = [sums[g][i] for i in sorted(sums[g])]
            np.testing.assert_allclose(state.slots.received[:n, g], want, rtol=1e-6)


def test_contiguous_positions_count_what_is_held():
    memory, kept = streaming_llm(BUDGET, sinks=2), recent(BUDGET, sinks=2)
    state = after(memory, standard())
    laws.assert_same(state.slots, after(kept, standard()).slots, "the same tokens as recent")
    for view in (memory.view(state, None, None), memory.recall(state, None, None)):
        np.testing.assert_array_equal(view.tokens.pos[:, 0], np.arange(BUDGET)[:, None] + [[0] * 3])
        np.testing.assert_array_equal(view.base, [BUDGET] * 3)
    early = pick(standard(), 0)
    state = laws.step(memory, memory.init(SPEC), early)
    np.testing.assert_array_equal(memory.view(state, None, None).base, [CUTS[0]] * 3)


PLACED = {
    "recent": partial(recent, BUDGET, 2),
    "last_frames": partial(last_frames, budget=BUDGET),
    "uniform": partial(uniform, BUDGET),
    "random": partial(random, BUDGET, jax.random.key(0)),
    "omnimem": partial(omnimem, BUDGET, text=BUDGET),
}


@pytest.mark.parametrize("name", PLACED)
def test_positions_are_a_choice(name):
    kept, numbered = PLACED[name](), PLACED[name](positions="contiguous")
    one, two = after(kept, standard()), after(numbered, standard())
    laws.assert_same(one.slots.tokens.index, two.slots.tokens.index, "the same tokens")
    view = numbered.recall(two, None, None)
    held = int(tk.count(two.slots.tokens))
    np.testing.assert_array_equal(view.tokens.pos[:held, 0, 1], np.arange(held))
    np.testing.assert_array_equal(view.base, [held] * 3)
    with pytest.raises(ValueError, match="contiguous"):
        PLACED[name](positions="dense")


def test_what_stands_still_is_dropped_and_what_moves_is_kept():
    """TaR alone: frames of four tokens, three of which never change."""
    frames, rng = 8, np.random.default_rng(0)
    flat = stream(4 * frames, kinds=np.full(4 * frames, tk.VISION))
    place = np.arange(4 * frames) % 4
    k = np.where((place == 3)[:, None, None], flat.tokens.k, rng.normal(size=(4, 2, 4))[place])
    chunks = cut(
        flat._replace(tokens=flat.tokens._replace(k=k.astype(np.float32))), [4 * frames], 4 * frames
    )
    memory = infinipot_v(16, (2, 2), tar_ratio=1.0, query_ratio=0.25, per_kind=False)
    for kept in of_heads(laws.step(memory, memory.init(SPEC), pick(chunks, 0)).slots.tokens):
        older = kept[kept < 4 * (frames - 2)]
        assert len(kept) == 16 and len(older) == 8
        np.testing.assert_array_equal(older[older % 4 == 3], np.arange(3, 24, 4))


@pytest.mark.parametrize("name", ["h2o", "rekv"])
def test_ample_budget_is_full_attention_in_the_decoder(name):
    """Through the loop: attention per KV head, and recall of everything from the bank."""
    cfg = small.config(axes=1)
    weights = small.params(cfg)
    rows = small.stream_rows(cfg, 3, 8, lengths=[8, 5, 7])
    memory = h2o(64, audio_share=0.5) if name == "h2o" else rekv(64, block=4, topk=8, sinks=4)
    program = make_program(cfg, memory, spec_of(cfg, chunk=8, bank=40))
    carry = small_stream(weights, init_carry(program), rows, program=program)
    question = small.chunk(small.stream_rows(cfg, 1, 4, seed=1), 0)
    h = jax.jit(prefill, static_argnames=("program", "room"))(
        weights, program, carry, question, room=1
    )[1]
    x, pos, end = small.flat(rows)
    x, pos = np.concatenate([x, question.x]), np.concatenate([pos, np.asarray(question.pos) + end])
    want = small.one_pass(weights, cfg, x, pos)[-4:]
    np.testing.assert_allclose(h, want, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: snapkv(8, window=9), "window <= budget"),
        (lambda: snapkv(8, window=2, kernel=4), "odd"),
        (lambda: h2o(8, recent=1.5), "recent"),
        (lambda: knorm(0), "at least 1"),
        (lambda: knorm(8, audio_share=2.0), "audio_share"),
        (lambda: streaming_llm(4), "sinks=4 and budget=4"),
        (lambda: infinipot_v(8, (0, 2)), "grid"),
        (lambda: infinipot_v(8, (2, 2), tar_ratio=2.0), "between 0 and 1"),
        (lambda: rekv(8, topk=2, chunk_blocks=3), "chunk_blocks"),
        (lambda: ruled(knorm(8), "dense"), "'dense'"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
