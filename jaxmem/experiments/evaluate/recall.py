"""One cell of the comparison: a memory at a byte budget on streams of one length."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import embed
from jaxmem.experiments.evaluate.recall_streams import Streams
from jaxmem.kv import EMPTY, TEXT
from jaxmem.loop import Bound, Carry, Program, advance, ask, bind, decoder_of, init_carry, stream
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Embeds, Spec
from jaxmem.memory.by_name import Contestant
from jaxmem.models.base import Model
from jaxmem.programs import compile
from jaxmem.typing import Array, Params, PyTree


@dataclass(frozen=True)
class Cell:
    """What one memory did on all streams of one length; arrays as in `recall_streams.Asked`."""

    right: np.ndarray  # bool [M, B, n]
    nbytes: int  # held on the device
    bank_nbytes: int  # of its bank in host memory
    slots: int  # asked for per layer, over which the bytes were divided
    seconds: float  # wall time


@dataclass(frozen=True)
class Times:
    """Of one stream alone, milliseconds, compilation excluded."""

    chunk: float  # median over segments
    first_token: float  # median


def run_cell(
    model: Model, chosen: Contestant, spec: Spec, streams: Streams, *, segment: int
) -> Cell:
    """Return which questions are answered right; all streams run side by side.

    Args:
      model: what streams and answers.
      chosen: the memory.
      spec: sizes of the streams.
      streams: of one length.
      segment: chunks fed at once; divides the chunks between two moments.
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
        answers = np.asarray(_answers(bound, carry, asked.ids, program=program))
        right.append(answers == asked.answer)
    held = footprint(chosen.memory, spec)
    return Cell(
        right=np.stack(right),
        nbytes=held.device,
        bank_nbytes=held.host,
        slots=chosen.slots,
        seconds=time.perf_counter() - begin,
    )


def side_by_side(program: Program, count: int) -> Carry:
    """Return the carries of `count` streams that have not begun, [B, ...]."""
    one = init_carry(program)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)).copy(), one)


@functools.cache
def advance_all(program: Program) -> Callable[[Bound, Carry, PyTree], Carry]:
    """Return `stream` over B streams at once; the carries are donated."""

    @functools.partial(jax.jit, donate_argnums=1)
    def step(bound: Bound, carry: Carry, inputs: PyTree) -> Carry:
        one = lambda carry, inputs: stream(bound, carry, inputs, program=program)
        return jax.vmap(one)(carry, inputs)

    return step


def question_of(params: Params, ids: Array, *, program: Program) -> Embeds:
    """Return a question [Q], -1 after its words, as rows; under `jit` and `vmap`."""
    step = jnp.asarray(program.spec.step, program.spec.pos_dtype)
    kind = jnp.where(ids >= 0, TEXT, EMPTY).astype(jnp.int8)
    place = jnp.arange(ids.shape[0], dtype=step.dtype)[:, None] * step[None]
    x = embed(decoder_of(params), jnp.maximum(ids, 0))
    words = jnp.sum(kind != EMPTY, dtype=step.dtype)
    return Embeds(x=x, pos=place, modality=kind, advance=words * step)


@functools.partial(jax.jit, static_argnames="program")
def _answers(bound: Bound, carry: Carry, ids: Array, *, program: Program) -> Array:
    """Return the first answer token [B, n] to questions [B, n, Q]."""

    def one(carry: Carry, ids: Array) -> Array:
        rows = question_of(bound.params, ids, program=program)
        return ask(bound, carry, rows, program=program).ids[0]

    return jax.vmap(jax.vmap(one, (None, 0)))(carry, ids)


def measure_times(
    model: Model, chosen: Contestant, spec: Spec, streams: Streams, repeats: int = 5
) -> Times:
    """Return the time of a chunk and of a first token at the end of the first stream, alone."""
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
        np.asarray(_answers(bound, many, ids, program=program))
        first.append((time.perf_counter() - begin) * 1e3)
    return Times(median(chunk[1:]), median(first[1:]))


def as_dict(cell: Cell) -> dict[str, Any]:
    """Return a cell as plain data; the answers of a stream at one moment are a word of 0 and 1."""
    words = lambda rows: ["".join("1" if hit else "0" for hit in row) for row in rows]
    return {
        "right": [words(part) for part in cell.right],
        "nbytes": cell.nbytes,
        "bank_nbytes": cell.bank_nbytes,
        "slots": cell.slots,
        "seconds": round(cell.seconds, 2),
    }
