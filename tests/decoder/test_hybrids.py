"""Probes, banks, first passes and features in a hybrid decoder, against one pass over everything.

They begin at states: those after the chunk, those after the stream, or those after the prefix.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_mixers import CFG, FAST, LENGTHS, PREFIX, SIZE, SLOW, after, one_pass, spec
from test_step import banked, changed, stacked

from jaxmem import rope as rp
from jaxmem.asking import ask, log_prob
from jaxmem.bound import Bound, bind, question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.program import make_program, spec_of
from jaxmem.finite import check_answer
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Full, Recent
from jaxmem.memory.exchange import Probes, Requires
from jaxmem.memory.features.memory_vla import MemoryVLA
from jaxmem.memory.flexmem.flexmem import FlexMem
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.memory.video.dscache import DSCache
from jaxmem.memory.video.rekv import ReKV

ROWS = small.stream_rows(CFG, len(LENGTHS), SIZE, lengths=LENGTHS)
WORDS = small.chunk(small.stream_rows(CFG, 1, 4, seed=4, lengths=[3]), 0)
FRONT = len(PREFIX.ids)
IDS = [2, 7, 1]


@cache
def weights():
    return small.params(CFG)


def placed(*parts):
    """Parts (x, pos, end) one after the other: all rows, their positions, and where they end."""
    ends = np.cumsum([0, *(end for *_, end in parts)])
    x = np.concatenate([x for x, *_ in parts])
    return x, np.concatenate([p + e for (_, p, _), e in zip(parts, ends, strict=False)]), ends[-1]


def text(ids):
    n = len(ids)
    return np.asarray(dec.embed(weights(), jnp.asarray(ids))), np.arange(n)[:, None], n


def streamed():
    x, pos, end = small.flat(ROWS)
    return x, pos, end[0]


@cache
def probed(form):
    """The carry of a stream with two probes, and what they gave in the last chunk's layers."""
    found = []

    def write(self, spec, state, chunk):
        given = chunk.probed.received
        report = lambda *mass: found.append(np.concatenate(mass, -1))
        jax.debug.callback(report, given.memory, given.chunk, ordered=True)
        return Full.write(self, spec, state, chunk)

    memory = changed(Full(24), write=write, requires=Requires(probes=Probes(2, form)))
    two = jax.tree.map(lambda a, b: jnp.stack([a, b]), WORDS, WORDS._replace(x=-WORDS.x))
    carry = after(weights(), make_program(CFG, memory, spec()), ROWS, Bound(weights(), probes=two))
    jax.effects_barrier()
    return carry, found[-CFG.attends :]


FORMS = pytest.mark.parametrize("form", ["causal", "embedding"])


@FORMS
def test_probes_begin_at_the_states_after_the_chunk(form):
    """What a probe gives is what rows give that come next; raw embeddings pass no layer."""
    x, pos, end = streamed()
    n, before = len(x), sum(LENGTHS[:-1])
    for i, words in enumerate((WORDS.x[:3], -WORDS.x[:3])):
        inputs, places = [], np.concatenate([pos, end + np.asarray(WORDS.pos[:3])])
        one_pass(weights(), np.concatenate([x, words]), places, inputs=inputs)
        for l, (h, got) in enumerate(zip(inputs, probed(form)[1], strict=True)):
            rows = h if form == "causal" else jnp.concatenate([h[:n], words])
            q, k, _ = dec.qkv(dec.layer_at(weights(), l), CFG, rows)
            q, k = (rp.rope(z, jnp.asarray(places)[:, None], CFG.rope) for z in (q, k))
            k = jnp.repeat(k, CFG.heads // CFG.kv_heads, 1)
            z = jnp.einsum("qhd,khd->hqk", q[n:], k) / np.sqrt(CFG.head_dim)
            seen = jnp.tril(jnp.ones((3, n + 3), bool), n if form == "causal" else n + 3)[None]
            want = jax.nn.softmax(jnp.where(seen, z, -jnp.inf), -1).mean(0).sum(0)[:n]
            mine = np.concatenate([got[i, 0, :before], got[i, 0, 24 : 24 + LENGTHS[-1]]])
            np.testing.assert_allclose(mine, want, atol=1e-5)


@FORMS
def test_no_bit_of_a_carry_depends_on_probes(form):
    plain = after(weights(), make_program(CFG, Full(24), spec()), ROWS)
    mine, other = (carry._replace(made_by=None) for carry in (probed(form)[0], plain))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(mine.states))
    jax.tree.map(np.testing.assert_array_equal, mine, other)


AMPLE = {
    "rekv": ReKV(64, block=4, topk=8, sinks=4, capacity=40),
    "flexmem": FlexMem(
        11, window=4, context_ratio=1, local_ratio=1, topk=4, shallow=1, capacity=44,
        reader=MemIndex((0, 1), keys=2),
    ),
    "dscache": DSCache(64, frames=40, reindex=False),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n == "rekv" else pytest.param(n, marks=pytest.mark.slow) for n in AMPLE]
)
def test_all_that_is_recalled_is_full_attention(name):
    """From a bank by either kind of queries, or encoded alone from the states after the prefix.

    ReKV's window is as long as the stream: its answers see no further, however much is recalled.
    """
    program = make_program(CFG, AMPLE[name], spec(prefix=FRONT), prefix=PREFIX)
    bound = bind(program, weights())
    carry = after(weights(), program, ROWS, bound)
    answer = jnp.asarray([5, 9, 11])
    question = question_rows(weights(), IDS, program=program)
    got = log_prob(bound, carry, question, answer, program=program)
    x, pos, _ = placed(text(PREFIX.ids), streamed(), text([*IDS, 5, 9]))
    h = one_pass(weights(), x, pos)[-3:]
    want = jax.nn.log_softmax(dec.logits(weights(), CFG, h))[jnp.arange(3), answer]
    np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.parametrize("per", ["layer", pytest.param("stack", marks=pytest.mark.slow)])
def test_a_window_with_a_bank_that_recalls_everything_is_full_attention(per):
    """The last layer attends, so what the stream is watched with changes nothing else."""
    cfg = replace(CFG, layers=3, mixers=(SLOW, SLOW, None))
    mine, sizes = small.params(cfg), spec_of(cfg, chunk=SIZE)
    window = Recent(4, sinks=0)
    if per == "stack":
        whole = stacked(window)
        window = changed(whole, init=lambda self, spec, layer=0: whole.init(spec))

    def answered(memory):
        program = make_program(cfg, memory, sizes)
        question = question_rows(mine, IDS, program=program)
        return small.prefilled(mine, program, after(mine, program, ROWS), question, room=1)[1][:3]

    want = answered(Full(24))
    np.testing.assert_allclose(answered(WithBank(window, 64, block=4, topk=16)), want, atol=1e-5)
    assert np.abs(answered(window) - want).max() > 0.1


def test_a_first_pass_begins_at_the_states_after_the_prefix():
    """Its queries are those of one pass over [prefix | question]: no layer knows of the stream."""
    found = []
    program = make_program(CFG, banked(24, "pass", found), spec(prefix=FRONT), prefix=PREFIX)
    bound = bind(program, weights())
    carry = after(weights(), program, ROWS, bound)
    ask(bound, carry, question_rows(weights(), IDS, program=program), program=program)
    jax.effects_barrier()
    x, pos, _ = placed(text(PREFIX.ids), text(IDS))
    one_pass(weights(), x, pos, inputs=(inputs := []))
    assert len(found) == len(inputs) == CFG.attends
    for l, (got, h) in enumerate(zip(found, inputs, strict=True)):
        want = dec.qkv(dec.layer_at(weights(), l), CFG, h)[0][FRONT:]
        np.testing.assert_allclose(got[: len(IDS)], want, atol=2e-5)


def broken(part, number, name):
    """The weights with NaN in one matrix of a layer: the mixer's, or that of attention."""
    mine, at = dict(weights()), CFG.numbers(part).index(number)
    nan = lambda x: x.at[at].set(np.nan)
    if part is None:
        layers = mine["layers"]
        return mine | {"layers": layers | {name: {"kernel": nan(layers[name]["kernel"])}}}
    stacks, stack = list(mine["mixers"]), CFG.stacks.index(part)
    mixer = stacks[stack]["mixer"]
    stacks[stack] = stacks[stack] | {"mixer": mixer | {name: nan(mixer[name])}}
    return mine | {"mixers": tuple(stacks)}


STATE, WHILE = "the state of decoder layer {} of 7, ", "while chunk 1 of the stream was read, "


@pytest.mark.parametrize(
    ("layer", "streamed", "asked"),
    [
        ((SLOW, 0, "w"), STATE.format(1) + WHILE + "made", "the embedding or layer 1, in"),
        ((None, 2, "o"), STATE.format(4) + WHILE + "or a layer before it, made", "4 of 7 or one"),
        ((SLOW, 3, "v"), STATE.format(5) + WHILE + "or a layer before it, made", "5 of 7 or one"),
        ((SLOW, 4, "v"), "decoder layer 5 of 7 or one before it, while the", "5 of 7 or one"),
        ((FAST, 6, "v"), "decoder layer 7 of 7 or one before it, in the answer", "7 of 7 or one"),
    ],
    ids=["state", "attention", "before-a-state", "before-attention", "last"],
)
def test_an_answer_that_is_not_finite_names_a_layer_of_the_decoder(layer, streamed, asked):
    """Not one among those that attend, and none after the broken one alone."""
    program = make_program(CFG, Recent(24), spec())
    question, none = question_rows(weights(), IDS, program=program), np.array([-1])
    mine, rows = broken(*layer), jax.tree.map(lambda x: x[:1], ROWS)
    for carry, said in (
        (after(mine, program, rows), streamed),
        (after(weights(), program, rows), asked),
    ):
        with pytest.raises(ValueError, match=f"are not finite: .*{said}"):
            check_answer(none, mine, carry, question, program=program)


def test_a_layer_between_two_that_attend_is_known():
    cfg = replace(CFG, layers=3, mixers=(SLOW, None, None))
    mine, program = small.params(cfg), make_program(cfg, Recent(24), spec_of(cfg, chunk=SIZE))
    o = mine["layers"]["o"]["kernel"].at[0].set(np.nan)
    mine["layers"]["o"] = {"kernel": o}
    carry = after(mine, program, jax.tree.map(lambda x: x[:1], ROWS))
    question = question_rows(mine, IDS, program=program)
    with pytest.raises(ValueError, match="decoder layer 2 of 3, while the stream was read, made"):
        check_answer(np.array([-1]), mine, carry, question, program=program)


def test_features_are_prefilled_from_the_states_after_the_prefix():
    """An answer after a memory of features is one pass over [prefix | features | question].

    Here features keep the positions that they had in the stream.
    """
    memory = MemoryVLA(6)
    program = make_program(CFG, memory, spec(prefix=FRONT), prefix=PREFIX)
    bound = bind(program, weights())
    carry = after(weights(), program, ROWS, bound)
    jax.tree.map(np.testing.assert_array_equal, carry.states, bound.states)
    read = memory.read(program.spec, carry.state)
    real = np.asarray(read.modality) != 0
    assert real.any() and not real.all()  # rows of padding change no state
    seen = np.asarray(read.x)[real], np.asarray(read.pos)[real], np.asarray(read.advance)[0]
    answer = jnp.asarray([5, 9, 11])
    question = question_rows(weights(), IDS, program=program)
    got = log_prob(bound, carry, question, answer, program=program)
    x, pos, _ = placed(text(PREFIX.ids), seen, text([*IDS, 5, 9]))
    h = one_pass(weights(), x, pos)[-3:]
    want = jax.nn.log_softmax(dec.logits(weights(), CFG, h))[jnp.arange(3), answer]
    np.testing.assert_allclose(got, want, atol=2e-4)
