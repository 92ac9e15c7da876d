"""The door for other decoders: `attend` and `attend_stack` do what the decoder of the package does.

The other decoder is the small one, called block by block with nothing but its projections.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_laws_everywhere import CFG, ROWS, SIZE, bound, memory_in_the_loop, program_of, weights

import jaxmem as jm
from jaxmem.bound import question_rows
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.decoder import finish, layer_at, qkv
from jaxmem.decoder.program import init_carry
from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.bank import init_bank

CHUNKS = 3
FEATURES = ("flash_vstream", "flash_vstream_qwen", "moviechat", "ma_lmm")
NAMES = [name for name in MEMORIES if name not in FEATURES]
ALONE = [
    name
    for name in NAMES
    if memory_in_the_loop(name).per == "layer" and not memory_in_the_loop(name).requires.probes
]
"""What one block can stream by itself."""


def output_of(layer):
    return layer_at(weights(), layer)["o"]["kernel"].reshape(CFG.heads, CFG.head_dim, CFG.width)


def block(layer, x, attend):
    mine = layer_at(weights(), layer)
    y = attend(*qkv(mine, CFG, x), output=output_of(layer))
    return finish(mine, CFG, x, y)


@cache
def asked(program):
    return question_rows(weights(), [3, 1, 4], program=program)


def ours(name):
    """Return what the package's decoder answers after some chunks: rows of the question [Q, E]."""
    program = program_of(name)
    rows = jax.tree.map(lambda x: x[:CHUNKS], ROWS)
    carry = jm.stream(bound(name, program), init_carry(program), rows, program=program)
    return prefill(weights(), program, carry, asked(program), room=1)[1]


def after(clock, rows):
    """Return the arrival number of the chunk after this one."""
    fresh = int(jnp.sum(rows.modality != 0))
    return clock + fresh + min(fresh, 1)


def real(h, program):
    return np.asarray(h)[np.asarray(asked(program).modality) != 0]


@pytest.mark.parametrize("name", NAMES)
def test_all_blocks_together_answer_as_the_decoder_of_the_package(name):
    memory, program = memory_in_the_loop(name), program_of(name)
    spec, given = program.spec, bound(name, program)
    probes = given.probes if isinstance(given, jm.Bound) else None
    state, clock = jm.init_stack(memory, spec), 0
    bank = init_bank(memory, spec)
    for i in range(CHUNKS):
        rows = small.chunk(ROWS, i)
        out = jm.attend_stack(
            memory, spec, state, block, rows.x, rows, clock, probes=probes, bank=bank
        )
        state, bank, clock = out[1], out[2] if bank is not None else None, after(clock, rows)
    question = asked(program)
    got = jm.ask_stack(memory, spec, state, block, question.x, question, bank=bank)
    np.testing.assert_allclose(real(got, program), real(ours(name), program), atol=1e-4)


@pytest.mark.parametrize("name", ALONE)
def test_blocks_by_themselves_answer_as_the_decoder_of_the_package(name):
    memory, program = memory_in_the_loop(name), program_of(name)
    spec = program.spec
    banks = [init_bank(memory, replace(spec, layers=1)) for _ in range(CFG.layers)]
    states, clock = [memory.init(spec, layer) for layer in range(CFG.layers)], 0
    for i in range(CHUNKS):
        rows = small.chunk(ROWS, i)
        x = rows.x
        for layer in range(CFG.layers):
            mine, more = layer_at(weights(), layer), {"hidden": x, "output": output_of(layer)}
            args = (memory, spec, states[layer], *qkv(mine, CFG, x), rows, clock)
            y, states[layer], *rest = jm.attend(*args, bank=banks[layer], **more)
            banks[layer] = rest[0] if rest else None
            x = finish(mine, CFG, x, y)
        clock = after(clock, rows)
    question = asked(program)
    x = question.x
    for layer in range(CFG.layers):
        mine = layer_at(weights(), layer)
        args = (memory, spec, states[layer], *qkv(mine, CFG, x), question)
        x = finish(mine, CFG, x, jm.attend_question(*args, bank=banks[layer]))
    np.testing.assert_allclose(real(x, program), real(ours(name), program), atol=1e-4)


@pytest.mark.parametrize("name", FEATURES)
def test_memories_of_features_say_where_they_belong(name):
    memory, spec = memory_in_the_loop(name), program_of(name).spec
    with pytest.raises(ValueError, match="before the decoder"):
        jm.init_stack(memory, spec)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALONE])
def test_memories_of_all_blocks_say_so(name):
    memory, spec, x = memory_in_the_loop(name), program_of(name).spec, jnp.zeros((SIZE, CFG.width))
    q, k, v = qkv(layer_at(weights(), 0), CFG, x)
    with pytest.raises(ValueError, match="attend_stack"):
        jm.attend(memory, spec, None, q, k, v, jm.embeds(x, axes=3), 0)
