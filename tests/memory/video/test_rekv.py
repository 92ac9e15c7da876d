"""ReKV: its laws, what a question sees of the stream, and the decoder."""

from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, pick, standard, stream

from jaxmem import kv as kvs
from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.loop import stream as small_stream
from jaxmem.memory.bank.bank import append, footprint, init_bank, of_layer
from jaxmem.memory.exchange import Question
from jaxmem.memory.video.rekv import BLOCK, ReKV

SIZES = {"block": 4, "topk": 2, "sinks": 2}
TOTAL = np.cumsum(CUTS)
LAYER = jnp.zeros((), jnp.int32)


@pytest.mark.parametrize("law", LAWS)
def test_law(law):
    LAWS[law](ReKV(16, **SIZES))


def question(rows=3):
    q = np.random.default_rng(0).normal(size=(rows, laws.HEADS, SPEC.head_dim))
    return Question(jnp.asarray(q, jnp.float32), jnp.ones((rows,), bool), None)


@cache
def writer(memory):
    @compiled
    def write(state, bank, chunk):
        state, evicted = memory.write(SPEC, state, laws.see(memory, state, chunk))
        return state, append(bank, LAYER, evicted)

    return write


def watched(memory, chunks):
    """Return state and bank of layer 0 after so many chunks of the standard stream."""
    state, bank = memory.init(SPEC), init_bank(memory, SPEC)
    for c in range(chunks):
        state, bank = writer(memory)(state, bank, pick(standard(), c))
    return state, bank


@cache
def reader(memory):
    return compiled(lambda s, bank: memory.recall(SPEC, s, question(), of_layer(bank, LAYER)))


def numbers(kv):
    """Return which tokens of the stream are read; the stream's index is 2 * arrival + 1."""
    return (laws.held(kv) - 1) // 2


OPEN = {
    "in the window": ReKV(16, block=6, topk=1, sinks=2),
    "in the bank": ReKV(8, block=11, topk=1, sinks=2, space="device"),
    "in the host's bank": ReKV(8, block=11, topk=1, sinks=2),
    "of a short stream": ReKV(16, block=80, topk=1, sinks=2),
}


@pytest.mark.parametrize("chunks", range(1, len(CUTS) + 1))
@pytest.mark.parametrize("name", OPEN)
def test_the_block_that_is_not_complete_is_read(name, chunks):
    """Sinks, one block, and every token after the last complete block, bit by bit."""
    memory, total = OPEN[name], TOTAL[chunks - 1]
    view = reader(memory)(*watched(memory, chunks))
    got, complete = numbers(view.kv), (total - 2) // memory.block
    rest = list(range(2 + complete * memory.block, total))
    blocks = [list(range(2 + i * memory.block, 2 + (i + 1) * memory.block))
              for i in range(complete)]  # fmt: skip
    assert got.tolist() in [[0, 1, *block, *rest] for block in blocks or [[]]]
    written = stream(sum(CUTS)).tokens
    for name in ("k", "v", "modality"):
        np.testing.assert_array_equal(
            getattr(view.kv, name)[: len(got)], getattr(written, name)[got]
        )
    np.testing.assert_array_equal(view.kv.pos[: len(got), 0, 0], np.arange(len(got)))
    np.testing.assert_array_equal(view.base, [len(got)] * 3)


def test_the_open_block_can_be_left_out_as_released():
    memory = ReKV(16, block=6, topk=1, sinks=2, open_block=False)
    got = numbers(reader(memory)(*watched(memory, len(CUTS))).kv)
    assert len(got) == 2 + 6 and (TOTAL[-1] - 2) % 6 and TOTAL[-1] - 1 not in got


def test_a_full_bank_keeps_the_oldest_and_a_question_still_sees_the_newest():
    memory = ReKV(16, block=6, topk=4, sinks=2, capacity=13)
    state, bank = watched(memory, len(CUTS))
    np.testing.assert_array_equal(bank.count, [13, 0])
    np.testing.assert_array_equal(bank.dropped, [TOTAL[-1] - 2 - 13, 0])
    view = reader(memory)(state, bank)
    want = [*range(14), *range(TOTAL[-1] - 6, TOTAL[-1])]
    np.testing.assert_array_equal(numbers(view.kv), want)


def test_kept_positions():
    memory = ReKV(16, reindex=False, **SIZES)
    state, bank = watched(memory, 3)
    view = reader(memory)(state, bank)
    written, got = stream(sum(CUTS)).tokens.pos, numbers(view.kv)
    np.testing.assert_array_equal(view.kv.pos[: len(got)], written[got])
    np.testing.assert_array_equal(view.base, state.aux.next_pos)


def test_sizes_come_from_the_model():
    unknown = replace(SPEC, frame=None)
    assert ReKV().block_of(unknown) == BLOCK and ReKV(block=5).block_of(SPEC) == 5
    assert ReKV().block_of(replace(SPEC, frame=(3, 4))) == 12
    # As many blocks as the window holds beside the open one; no more than the bank has.
    assert ReKV(48, block=4, topk=None).topk_of(SPEC) == 11
    assert ReKV(48, block=4, topk=None, capacity=20).topk_of(SPEC) == 5
    assert ReKV(2, block=4, topk=None, chunk_blocks=2).topk_of(SPEC) == 2
    # A bank holds a block, however small.
    assert ReKV(8, block=11, capacity=3).bank(SPEC).capacity == 11
    assert ReKV(8, block=4, capacity=40).bank(SPEC).capacity == 40
    small, large = (footprint(ReKV(8, block=4, capacity=n), SPEC) for n in (40, 80))
    assert large.host > small.host and large.device - small.device == 2 * 10 * 2 * 4 * 4


def test_equal_options_are_equal():
    assert ReKV(16, **SIZES) == ReKV(16, **SIZES) != ReKV(16, **{**SIZES, "topk": 3})
    assert len({ReKV(16, **SIZES), ReKV(16, **SIZES)}) == 1


def test_a_window_shorter_than_a_chunk_is_refused():
    assert ReKV.smallest(SPEC) == 8
    ReKV(8, **SIZES).init(SPEC)
    with pytest.raises(ValueError, match=r"Spec.chunk=8.*budget of at least 8"):
        ReKV(7, **SIZES).init(SPEC)


def test_the_count_of_tokens_stays_in_range():
    memory = ReKV(16, **SIZES, capacity=12)
    state, _ = watched(memory, 4)
    late = state._replace(aux=state.aux._replace(total=jnp.asarray(2**30 - 3, jnp.int32)))
    after = laws.step(memory, late, pick(standard(), 5))
    assert int(after.aux.total) == 2**30
    np.testing.assert_array_equal(after.aux.means, state.aux.means)
    after = laws.step(memory, after, pick(standard(), 6))
    assert int(after.aux.total) == 2**30 and int(kvs.count(after.slots)) == 16
    assert int(kvs.count(memory.view(SPEC, after, None).sinks.kv)) == 2


@pytest.mark.parametrize("blocks", [4, 6])
def test_ample_budget_is_full_attention_in_the_decoder(blocks):
    """Through the loop: recall of everything from the bank, with and without an open block."""
    memory = ReKV(64, block=blocks, topk=8, sinks=4, capacity=40)
    small.assert_full_attention(*small.streamed(memory))


@pytest.mark.parametrize("chunks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4))])
def test_the_last_chunk_changes_an_answer(chunks):
    """Blocks of 16 in chunks of 8: two streams that differ at their end only."""
    cfg = small.config()
    weights = small.params(cfg)
    memory = ReKV(64, block=16, topk=4, sinks=2, capacity=256)
    program = make_program(cfg, memory, spec_of(cfg, chunk=8))
    asked = question_rows(weights, [1, 2, 3], program=program)

    def logits(rows):
        carry = small_stream(weights, init_carry(program), rows, program=program)
        return np.asarray(ask(weights, carry, asked, program=program).first)

    rows = small.stream_rows(cfg, chunks, 8)
    x = np.array(rows.x)
    x[-1] += 3.0
    assert not np.allclose(logits(rows), logits(rows._replace(x=x)), atol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ReKV(8, topk=2, chunk_blocks=3), "chunk_blocks=3"),
        (lambda: ReKV(0), "budget=0"),
        (lambda: ReKV(8, sinks=0), "sinks=0"),
        (lambda: ReKV(8, block=0), "block=0"),
        (lambda: ReKV(8, space="disk"), "'disk'"),
        (lambda: ReKV(8).recall(SPEC, ReKV(8).init(SPEC), None), "question's queries"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
