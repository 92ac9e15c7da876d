"""Derivatives through what a bank holds: training through a memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from laws import compiled

from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder.decoder import logits
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.loop import stream
from jaxmem.memory.bank import host_memory
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Recent
from jaxmem.memory.flexmem.flexmem import FlexMem
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.memory.video.rekv import ReKV

CFG = small.config(layers=1, axes=1)
WEIGHTS = small.params(CFG)
ROWS = small.stream_rows(CFG, 5, 8, lengths=[8, 5, 8, 8, 7])
WORD = 5


def put_by_hand(held, layer, rows, source, at, many):
    """`host_memory.put`, one stretch after the other, in a loop that Python unrolls."""
    for i in range(many):
        held = held.at[layer, at[i] : at[i] + rows.shape[1]].set(rows[source[i]])
    return held


@pytest.mark.parametrize("many", [2, 5])
def test_derivatives_of_writing_are_those_of_a_plain_loop(many):
    """Forward, reverse, side by side; stretches that lie on each other, and unused ones."""
    rng = np.random.default_rng(0)
    held, way = (jnp.asarray(rng.normal(size=(2, 12, 3)), jnp.float32) for _ in range(2))
    rows, ways = (jnp.asarray(rng.normal(size=(4, 3, 3)), jnp.float32) for _ in range(2))
    source, at = np.array([2, 0, 2, 3, 1], np.int32), np.array([3, 8, 1, 3, 9], np.int32)
    ours = lambda h, r: host_memory.put(h, 1, r, source, at, jnp.int32(many))
    plain = lambda h, r: put_by_hand(h, 1, r, source, at, many)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    pull = lambda f: lambda h, w: jax.vjp(f, h, rows)[1](w)
    two = jnp.stack([held, way])
    all_of = lambda f: (
        jax.jvp(f, (held, rows), (way, ways)), pull(f)(held, way), jax.vmap(pull(f))(two, two[::-1])
    )  # fmt: skip
    same(compiled(lambda: all_of(ours))(), compiled(lambda: all_of(plain))())


def program_of(memory):
    return make_program(CFG, memory, spec_of(CFG, chunk=8))


def answered(program):
    """Return weights and features of a stream -> log-probability of a word that is answered."""
    question = question_rows(WEIGHTS, [3, 1, 4], program=program)

    def heard(weights, x):
        carry = stream(weights, init_carry(program), ROWS._replace(x=x), program=program)
        answer = ask(weights, carry, question, program=program)
        return jax.nn.log_softmax(answer.first)[WORD]

    return heard


@pytest.fixture(scope="module")
def full_attention():
    """The same of one pass over everything, and its gradient."""
    asked = question_rows(WEIGHTS, [3, 1, 4], program=program_of(Recent(8)), size=3)
    real, (_, pos, end) = np.asarray(ROWS.modality) != 0, small.flat(ROWS)
    places = np.concatenate([pos, np.asarray(asked.pos) + end])

    def heard(weights, x):
        rows = jnp.concatenate([x[real], asked.x])
        last = small.one_pass(weights, CFG, rows, places)[-1]
        return jax.nn.log_softmax(logits(weights, CFG, last))[WORD]

    return compiled(jax.value_and_grad(heard, (0, 1)))(WEIGHTS, ROWS.x)


CLIPS = {"window": 4, "context_ratio": 1, "local_ratio": 1, "shallow": 0}
BANK = {"capacity": 40, "space": "device"}
EVERYTHING = {
    "rekv": ReKV(48, block=4, topk=9, sinks=4, **BANK),
    "flexmem": FlexMem(8, topk=5, reader=MemIndex((0,), against="clips"), **CLIPS, **BANK),
    "bank": WithBank(Recent(8, sinks=0), block=4, topk=10, **BANK),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in EVERYTHING])
def test_gradient_equals_that_of_full_attention(name, full_attention):
    """One layer that recalls everything: of the weights and of every row of the stream."""
    heard = answered(program_of(EVERYTHING[name]))
    got = compiled(jax.value_and_grad(heard, (0, 1)))(WEIGHTS, ROWS.x)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    jax.tree.map(close, got, full_attention)
    assert (np.abs(got[1][1])[np.asarray(ROWS.modality) != 0].max(-1) > 1e-4).all()


@pytest.mark.slow
def test_a_gradient_holds_the_bank_once_and_not_once_per_chunk():
    memory = WithBank(Recent(8, sinks=0), 1 << 13, block=4, topk=2, space="device")
    program = program_of(memory)
    entries = footprint(memory, program.spec).device
    longer = jax.tree.map(lambda x: jnp.concatenate([x] * 4), ROWS)

    def used(rows):
        def heard(x):
            carry = stream(WEIGHTS, init_carry(program), rows._replace(x=x), program=program)
            return jnp.sum(carry.bank.slots.v)

        return compiled(jax.grad(heard)).lower(rows.x).compile().memory_analysis()

    short, long = (used(rows).temp_size_in_bytes for rows in (ROWS, longer))
    assert entries > 2 << 20 and long < 4 * entries and long - short < entries // 4


@pytest.mark.parametrize("name", ["bank", "rekv"])
def test_a_bank_in_host_memory_refuses(name):
    heard = answered(program_of(replace(EVERYTHING[name], space="host")))
    with pytest.raises(ValueError, match='use space="device"'):
        jax.eval_shape(jax.grad(heard), WEIGHTS, ROWS.x)
