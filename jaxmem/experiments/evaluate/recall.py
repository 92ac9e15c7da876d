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
from jaxmem.experiments.memories import Chosen
from jaxmem.experiments.stream.run import probes_of
from jaxmem.kv import EMPTY, TEXT
from jaxmem.loop import Carry, Program, ask, decoder_of, init_carry, make_program, stream
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.bank.bank import nbytes as bank_nbytes
from jaxmem.memory.base import Embeds
from jaxmem.models.base import Model
from jaxmem.typing import Array, Params, PyTree


@dataclass(frozen=True)
class Cell:
    """What one memory did on all streams of one length; arrays as in `_recall_streams.Asked`."""

    right: np.ndarray  # bool [M, B, n]
    nbytes: int  # held on the device
    bank_nbytes: int  # of the bank behind it, wherever it lies
    slots: int  # asked for per layer, over which the bytes were divided
    seconds: float  # wall time


@dataclass(frozen=True)
class Times:
    """Of one stream alone, milliseconds, compilation excluded."""

    chunk: float  # median over segments
    first_token: float  # median


# One program for one memory, however often it is measured: it is compiled once.
program_of = functools.cache(make_program)


def run_cell(model: Model, chosen: Chosen, streams: Streams, *, segment: int) -> Cell:
    """Return which questions are answered right; all streams run side by side.

    Args:
      model: what streams and answers.
      chosen: the memory; give the same one for all lengths of stream.
      streams: of one length.
      segment: chunks fed at once; divides the chunks between two moments.
    """
    begin = time.perf_counter()
    program = program_of(model.decoder, chosen.memory, chosen.spec)
    probes = probes_of(model, program, chosen.name)
    moments, count = streams.asked.answer.shape[:2]
    carry = side_by_side(program, count)
    advance = advance_all(program, model.encode)
    right = []
    for moment in range(moments):
        inputs, asked = jax.tree.map(lambda x, m=moment: x[m], (streams.inputs, streams.asked))
        for first in range(0, inputs.valid.shape[1], segment):
            part = jax.tree.map(lambda x, i=first: x[:, i : i + segment], inputs)
            carry = advance(model.params, carry, part, probes)
        answers = np.asarray(_answers(model.params, carry, asked.ids, program=program))
        right.append(answers == asked.answer)
    return Cell(
        right=np.stack(right),
        nbytes=footprint(chosen.memory, chosen.spec).device,
        bank_nbytes=bank_nbytes(chosen.memory, chosen.spec),
        slots=chosen.slots,
        seconds=time.perf_counter() - begin,
    )


def side_by_side(program: Program, count: int) -> Carry:
    """Return the carries of `count` streams that have not begun, [B, ...]."""
    one = init_carry(program)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)).copy(), one)


@functools.cache
def advance_all(
    program: Program, encode: Callable[[Params, PyTree], Embeds]
) -> Callable[[Params, Carry, PyTree, Embeds | None], Carry]:
    """Return `stream` over B streams at once."""

    @functools.partial(jax.jit, donate_argnums=1)
    def advance(params: Params, carry: Carry, inputs: PyTree, probes: Embeds | None) -> Carry:
        def one(carry: Carry, inputs: PyTree) -> Carry:
            return stream(params, carry, inputs, program=program, encode=encode, probes=probes)

        return jax.vmap(one)(carry, inputs)

    return advance


def question_of(params: Params, ids: Array, *, program: Program) -> Embeds:
    """Return a question [Q], -1 behind its words, as rows."""
    step = jnp.asarray(program.spec.step, program.spec.pos_dtype)
    kind = jnp.where(ids >= 0, TEXT, EMPTY).astype(jnp.int8)
    place = jnp.arange(ids.shape[0], dtype=step.dtype)[:, None] * step[None]
    x = embed(decoder_of(params), jnp.maximum(ids, 0))
    words = jnp.sum(kind != EMPTY, dtype=step.dtype)
    return Embeds(x=x, pos=place, modality=kind, advance=words * step)


@functools.partial(jax.jit, static_argnames="program")
def _answers(params: Params, carry: Carry, ids: Array, *, program: Program) -> Array:
    """Return the first answer token [B, n] to questions [B, n, Q]."""

    def one(carry: Carry, ids: Array) -> Array:
        rows = question_of(params, ids, program=program)
        return ask(params, carry, rows, program=program).ids[0]

    return jax.vmap(jax.vmap(one, (None, 0)))(carry, ids)


def measure_times(model: Model, chosen: Chosen, streams: Streams, repeats: int = 5) -> Times:
    """Return the time of a chunk and of a first token at the end of the first stream, alone."""
    program = program_of(model.decoder, chosen.memory, chosen.spec)
    probes = probes_of(model, program, chosen.name)
    carry = init_carry(program)
    moments = range(len(streams.asked.answer))
    parts = [jax.tree.map(lambda x, m=m: x[m, 0], streams.inputs) for m in moments]
    ids = streams.asked.ids[-1, :1, :1]
    chunk, first = [], []
    for part in [parts[0], *parts]:  # the first pass compiles
        begin = time.perf_counter()
        carry = stream(
            model.params, carry, part, program=program, encode=model.encode, probes=probes
        )
        jax.block_until_ready(carry)
        chunk.append((time.perf_counter() - begin) / len(part[0]) * 1e3)
    many = jax.tree.map(lambda x: x[None], carry)
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        np.asarray(_answers(model.params, many, ids, program=program))
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
