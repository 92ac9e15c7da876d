"""Streams side by side as one carry: a *lane* is one of its B places.

Every leaf of the lanes' carry has a leading axis [B]. A step takes the W lanes that have a chunk
out, advances them under `vmap` and puts them back; the others are not touched. W is one of few
widths (powers of two), so that few programs are compiled whatever comes and goes. Entries of
`which` beyond B are padding: they compute something and are put nowhere.

Over a mesh the B lanes are cut along `data` into parts of equal size. A batch then has a part of
equal width for each, whose numbers count the lanes of that part alone: no device reads, or waits
for, streams that others hold.

    carries = start_lanes(program, bound, lanes=32)
    carries = advance_lanes(bound, carries, which, chunks, program=program)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.asking import begin_answer, continue_answer
from jaxmem.bound import Bound
from jaxmem.compiled import Compiled
from jaxmem.decoder.generate import Generation
from jaxmem.decoder.placing import named, place_of
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.sampling import Sampling
from jaxmem.loop import start, stream
from jaxmem.memory.base import Memory
from jaxmem.memory.exchange import Embeds
from jaxmem.serve.parts import check_parts, held_lanes, in_parts, parts_of, put, take
from jaxmem.typing import Array, Bool, Int, PyTree


def widths(lanes: int) -> tuple[int, ...]:
    """Return the widths that batches of up to `lanes` lanes are padded to: powers of two, B."""
    return (*(1 << i for i in range((lanes - 1).bit_length())), lanes)


class Dealt(NamedTuple):
    """A batch of lanes, cut into one part of equal width for each part of the streams."""

    which: Int[np.ndarray, "W"]  # numbers in their part; for padding, one that no lane has
    at: list[int]  # where in the batch each of the lanes is


def dealt(which: Sequence[int], lanes: int, parts: int = 1) -> Dealt:
    """Return lanes as a batch: those of every part side by side, padded to the next width.

    Args:
      which: lanes, at most B / parts of each part.
      lanes: B.
      parts: of the streams; lane i is in part i // (B / parts).
    """
    each = lanes // parts
    mine = [[i for i, lane in enumerate(which) if lane // each == part] for part in range(parts)]
    width = next(w for w in widths(each) if w >= max(map(len, mine)))
    batch, at = np.full(parts * width, each, np.int32), [0] * len(which)
    for part, members in enumerate(mine):
        for place, i in enumerate(members, part * width):
            batch[place], at[i] = which[i] - part * each, place
    return Dealt(batch, at)


def check_lanes(program: Program) -> None:
    """Refuse programs whose streams do not run side by side.

    Raises:
      ValueError: for a bank in host memory, and for probes that follow each stream's dialogue.
    """
    memory = program.memory
    bank = memory.bank(program.spec) if isinstance(memory, Memory) else None
    if bank is not None and bank.space == "host":
        raise ValueError(
            f"the bank of memory {memory.name} lies in host memory, where streams side by side "
            "cannot be picked from: give the memory or its bank space='device', leave the bank "
            "out, or give every stream a Session of its own."
        )
    if getattr(memory, "dialogue", False):
        raise ValueError(
            f"memory {memory.name} with dialogue=True scores every stream by questions of its own, "
            "and streams side by side share them: leave dialogue out, or give every stream a "
            "Session of its own."
        )


def start_lanes(program: Program, bound: Bound, *, lanes: int) -> Carry:
    """Return the carry of B = `lanes` streams that have not begun, [B, ...] everywhere.

    Raises:
      ValueError: if there is no lane, the parts of a mesh do not share them evenly, or the
        program's streams do not run side by side.
    """
    if lanes < 1 or lanes != int(lanes):
        raise ValueError(f"lanes must be a whole number, at least 1, got {lanes}.")
    check_parts(lanes, parts_of(program))
    check_lanes(program)
    one = start(program, bound)
    repeated = lambda one: jax.tree.map(lambda x: jnp.repeat(x[None], lanes, axis=0), one)
    if program.mesh is None:
        return repeated(one)
    return jax.jit(lambda one: held_lanes(program, repeated(one)))(one)  # never whole on one device


def lane_shapes(program: Program, bound: Bound, lanes: int) -> Carry:
    """Return what `start_lanes` does as shapes, and where they lie; nothing is allocated."""
    shapes = jax.eval_shape(lambda bound: start_lanes(program, bound, lanes=lanes), bound)
    if program.mesh is None:
        return shapes
    leaves, structure = named(shapes, program.config.stacks)
    place = partial(place_of, program.mesh, lanes=True)
    make = jax.ShapeDtypeStruct
    where = [make(x.shape, x.dtype, sharding=place(path, x.shape)) for path, x in leaves]
    return jax.tree.unflatten(structure, where)


def _advance(
    bound: Bound, carries: Carry, which: Int[Array, "W"], chunks: PyTree, *, program: Program
) -> Carry:
    """Write one chunk to each of W lanes.

    Args:
      bound: weights with prefix and probes (`bind`), shared by all streams.
      carries: of all lanes; donated.
      which: lanes, each at most once; padding: beyond them (`dealt`).
      chunks: a chunk of each lane, [W, ...] of whatever `program.encode` takes.
      program: static description.

    Returns:
      The carries of all lanes.
    """

    def part(bound: Bound, carries: Carry, which: Int[Array, "W"], chunks: PyTree) -> Carry:
        def one(carry: Carry, chunk: PyTree) -> Carry:
            return stream(bound, carry, jax.tree.map(lambda x: x[None], chunk), program=program)

        return put(carries, which, jax.vmap(one)(take(carries, which), chunks))

    return held_lanes(program, in_parts(program, part)(bound, carries, which, chunks))


advance_lanes = Compiled(_advance, static_argnames=("program",), donate_argnames=("carries",))


def _begin(
    bound: Bound,
    carries: Carry,
    which: Int[Array, "W"],
    questions: Embeds,
    keys: Array | None,
    repeated: Bool[Array, "W V"] | None,
    chunks: PyTree | None = None,
    *,
    program: Program,
    max_new: int,
    sampling: Sampling | None,
) -> Generation:
    """Begin an answer for each of W lanes, several for one lane too.

    Args:
      bound: as in `advance_lanes`.
      carries: of all lanes; only read.
      which: the lane of every question; padding: beyond them (`dealt`).
      questions: rows [W, Q, ...] (`question_rows`).
      keys: JAX keys [W], with `sampling`.
      repeated: prompt tokens that a penalty of repetition counts, or None.
      chunks: pieces of each lane that do not fill a chunk yet, seen by the question and kept by
        nobody; None: no lane has any.
      program: static description.
      max_new: as in `jaxmem.ask`.
      sampling: as in `jaxmem.ask`.

    Returns:
      Answers with their first token, [W, ...].
    """
    more = {"program": program, "max_new": max_new, "sampling": sampling}

    def part(bound: Bound, carries: Carry, which: Int[Array, "W"], *asked: PyTree) -> Generation:
        def one(carry: Carry, question: Embeds, key: Any, repeated: Any, chunk: Any) -> Generation:
            if chunk is not None:
                inputs = jax.tree.map(lambda x: x[None], chunk)
                carry = stream(bound, carry, inputs, program=program)
            return begin_answer(bound, carry, question, key=key, repeated=repeated, **more)

        return jax.vmap(one)(take(carries, which), *asked)

    every = in_parts(program, part)
    return every(bound, carries, which, questions, keys, repeated, chunks)


begin_lanes = Compiled(_begin, static_argnames=("program", "max_new", "sampling"))

CONTINUED = ("program", "steps", "end", "stop_run", "sampling")


@partial(Compiled, static_argnames=CONTINUED, donate_argnames=("generations",))
def continue_lanes(
    bound: Bound,
    generations: Generation,
    keys: Array | None,
    *,
    program: Program,
    steps: int,
    end: int | tuple[int, ...] | None,
    stop_run: int,
    sampling: Sampling | None,
) -> Generation:
    """Write up to `steps` more tokens of each of W answers; those that are over stay as they are.

    The arguments are those of `jaxmem.continue_answer`, with a leading axis [W].
    """
    more = {"program": program, "steps": steps, "end": end, "stop_run": stop_run}

    def part(bound: Bound, generations: Generation, keys: Array | None) -> Generation:
        def one(generation: Generation, key: Any) -> Generation:
            return continue_answer(bound, generation, key=key, sampling=sampling, **more)

        return jax.vmap(one)(generations, keys)

    return in_parts(program, part)(bound, generations, keys)
