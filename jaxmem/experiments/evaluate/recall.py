"""One cell of the comparison: a memory at a byte budget on streams of one length."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.asking import ask
from jaxmem.bound import Bound, bind, ids_as_rows
from jaxmem.compiled import Compiled
from jaxmem.decoder.program import Carry, Program, init_carry
from jaxmem.experiments.evaluate.recall_streams import Streams
from jaxmem.loop import advance, stream
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Spec
from jaxmem.memory.by_name import Contestant
from jaxmem.models.base import Model
from jaxmem.programs import compile
from jaxmem.typing import Array, PyTree


def run_cell(
    model: Model, chosen: Contestant, spec: Spec, streams: Streams, *, segment: int
) -> dict[str, Any]:
    """Return as plain data which questions a memory answers right, and what it holds.

    All streams run side by side, fed `segment` chunks at once, which divides the chunks between two
    moments. The answers of a stream at one moment are a word of 0 and 1.
    """
    begin = time.perf_counter()
    program = compile(model, chosen.memory, spec=spec)
    bound = bind(program, model.params)
    moments, count = streams.asked.answer.shape[:2]
    carry = side_by_side(program, count)
    step = advance_all(program)
    right = []
    for moment in range(moments):
        inputs, asked = jax.tree.map(lambda x, m=moment: x[m], (streams.inputs, streams.asked))
        for first in range(0, inputs.valid.shape[1], segment):
            part = jax.tree.map(lambda x, i=first: x[:, i : i + segment], inputs)
            carry = step(bound, carry, part)
        hits = np.asarray(answers(bound, carry, asked.ids, program=program)) == asked.answer
        right.append(["".join("1" if hit else "0" for hit in row) for row in hits])
    took = round(time.perf_counter() - begin, 2)
    return {"right": right, **sizes_of(chosen, spec), "took": took}


def sizes_of(chosen: Contestant, spec: Spec) -> dict[str, int]:
    """Return what a cell says of the size of its memory."""
    held = footprint(chosen.memory, spec)
    return {"nbytes": held.device, "bank_nbytes": held.host, "slots": chosen.slots}


def side_by_side(program: Program, count: int) -> Carry:
    """Return the carries of `count` streams that have not begun, [B, ...]."""
    one = init_carry(program)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)).copy(), one)


@functools.cache
def advance_all(program: Program) -> Callable[[Bound, Carry, PyTree], Carry]:
    """Return `stream` over B streams at once; the carries are donated."""

    @functools.partial(Compiled, donate_argnums=1)
    def step(bound: Bound, carry: Carry, inputs: PyTree) -> Carry:
        one = lambda carry, inputs: stream(bound, carry, inputs, program=program)
        return jax.vmap(one)(carry, inputs)

    return step


@functools.partial(Compiled, static_argnames="program")
def answers(bound: Bound, carry: Carry, ids: Array, *, program: Program) -> Array:
    """Return the first answer token [B, n] to questions [B, n, Q]."""

    def one(carry: Carry, ids: Array) -> Array:
        rows = ids_as_rows(bound.params, ids, program=program)
        return ask(bound, carry, rows, program=program).ids[0]

    return jax.vmap(jax.vmap(one, (None, 0)))(carry, ids)


def measure_times(
    model: Model, chosen: Contestant, spec: Spec, streams: Streams, repeats: int = 5
) -> dict[str, float]:
    """Return the median times of the first stream alone, milliseconds, compilation excluded.

    Those of a chunk, over segments, and of a first token at the end.
    """
    program = compile(model, chosen.memory, spec=spec)
    bound = bind(program, model.params)
    carry = init_carry(program)
    moments = range(len(streams.asked.answer))
    parts = [jax.tree.map(lambda x, m=m: x[m, 0], streams.inputs) for m in moments]
    ids = streams.asked.ids[-1, :1, :1]
    chunk, first = [], []
    for part in [parts[0], *parts]:  # the first pass compiles
        begin = time.perf_counter()
        carry = advance(bound, carry, part, program=program)
        jax.block_until_ready(carry)
        chunk.append((time.perf_counter() - begin) / len(part[0]) * 1e3)
    many = jax.tree.map(lambda x: x[None], carry)
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        np.asarray(answers(bound, many, ids, program=program))
        first.append((time.perf_counter() - begin) * 1e3)
    return {"chunk": median(chunk[1:]), "first_token": median(first[1:])}
