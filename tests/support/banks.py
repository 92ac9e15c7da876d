"""Memories with banks, written and read without a decoder: what the tests of banks share."""

from dataclasses import replace
from functools import cache, partial

import jax.numpy as jnp
import laws
import numpy as np
from laws import SPEC, compiled, memory_of

from jaxmem.memory.bank import retrieval
from jaxmem.memory.bank.bank import append, init_bank, of_layer
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import Memory
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.exchange import Question
from jaxmem.memory.transforms.quantized import Quantized

ZERO = np.zeros((), np.int32)
SPEC_1 = replace(SPEC, layers=1)
QUERY = Question(
    jnp.asarray(np.random.default_rng(5).normal(size=(3, laws.HEADS, SPEC.head_dim)), jnp.float32),
    jnp.asarray([True, True, False]),
    None,
)


def inner(name: str) -> Memory:
    """Return a memory without a bank; SnapKV's heads hold different tokens."""
    if name == "snapkv":
        return SnapKV(16, window=4, audio_share=0.25)
    return memory_of(name)


def banked(name: str, capacity: int = 48, coded: bool = False, **options) -> WithBank:
    """Return the memory of that name with a bank of blocks of 4."""
    memory = Quantized(inner(name), 8) if coded else inner(name)
    return WithBank(memory, capacity, **{"block": 4, "topk": 2} | options)


def start(memory, spec=SPEC_1):
    """Return state and bank of a stream that has not begun."""
    return memory.init(spec), init_bank(memory, spec)


def write(memory, carry, chunk):
    """Write one chunk as the loop does: state and bank."""
    state, bank = carry
    state, evicted = memory.write(SPEC_1, state, laws.see(memory, state, chunk))
    return state, append(bank, ZERO, evicted)


@cache
def stepper(memory):
    """Return `write`, compiled."""
    return compiled(partial(write, memory))


@cache
def reader(memory, spec=SPEC_1):
    """Return (state, bank) -> what `QUERY` reads, compiled."""
    return compiled(lambda state, bank: memory.recall(spec, state, QUERY, of_layer(bank, ZERO)))


def watched(memory, chunks=None):
    """Return state and bank after so many chunks of the standard stream; None: all of them."""
    carry = start(memory)
    for c in range(len(laws.CUTS) if chunks is None else chunks):
        carry = stepper(memory)(carry, laws.pick(laws.standard(), c))
    return carry


@partial(compiled, static_argnums=0)
def everything(memory, state, bank):
    """Return what the memory holds, what waits in the open block, and what the bank has."""
    table = state.aux.table
    index = jnp.arange(table.priority.shape[0], dtype=jnp.int32)
    size = table.open.modality.shape[0]
    stored = retrieval.stored(of_layer(bank, ZERO), index, index < table.used, size)
    return memory.kv(state), table.open, stored
