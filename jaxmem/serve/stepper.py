"""What the engine's thread runs: the lanes' carries, and the answers that are being written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxmem.asking import so_far
from jaxmem.bound import Bound, bind
from jaxmem.decoder.generate import Generation
from jaxmem.decoder.program import Carry, Program, settled
from jaxmem.decoder.sampling import Sampling
from jaxmem.finite import NotFiniteError, check_answer
from jaxmem.loop import start
from jaxmem.models.base import Model
from jaxmem.pieces import blank
from jaxmem.programs import asked_rows
from jaxmem.replies import TOKENS_AT_ONCE, stops_of
from jaxmem.serve.answers import Asked
from jaxmem.serve.lanes import (
    advance_lanes,
    begin_lanes,
    continue_lanes,
    dealt,
    lane_shapes,
    start_lanes,
)
from jaxmem.serve.parts import parts_of, put_lane, take_lane
from jaxmem.typing import Array, PyTree


class Writing(NamedTuple):
    """Answers that are written together: their lanes, questions, and tokens so far [W, ...]."""

    lanes: list[int]
    at: list[int]  # where in the batch each of them is
    asked: list[Asked]
    generation: Generation
    keys: Array | None


class Stepper:
    """Streams side by side, and their answers. One thread may use it, except for `rehearse`."""

    def __init__(
        self,
        model: Model,
        program: Program,
        lanes: int,
        sampling: Sampling | None,
        key: Array | None,
    ):
        """Begin with B = `lanes` empty streams; the arguments are those of `Engine`."""
        self.model, self.program, self.lanes = model, program, lanes
        self.parts = parts_of(program)
        self.sampling, self.key = sampling, key
        self.bound = bind(program, model.params)
        self.fresh = start(program, self.bound)
        self.writing: list[Writing] = []
        self._carries = start_lanes(program, self.bound, lanes=lanes)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all lanes on the device."""
        return sum(x.nbytes for x in jax.tree.leaves(self._carries))

    def replace(self, lane: int, carry: Carry) -> None:
        """Let a lane go on with a carry, which is copied."""
        carry = settled(self.program, carry)
        self._carries = put_lane(self._carries, jnp.int32(lane), carry, program=self.program)

    def read(self, lane: int) -> Carry:
        """Return a copy of a lane's carry."""
        return take_lane(self._carries, jnp.int32(lane), program=self.program)

    def step(self, lanes: Sequence[int], chunks: Sequence[PyTree]) -> None:
        """Write one chunk to each of some lanes, and wait until it is written."""
        which, at = dealt(lanes, self.lanes, self.parts)
        each = stacked(chunks, len(which), at)
        self._carries = advance_lanes(self.bound, self._carries, which, each, program=self.program)
        jax.block_until_ready(self._carries.clock)

    def begin(self, lanes: Sequence[int], asked: Sequence[Asked]) -> None:
        """Begin answers, those of one padded length together."""
        kind = lambda pair: (pair[1].rows.modality.shape[0], pair[1].open is not None)
        pairs = sorted(zip(lanes, asked, strict=True), key=kind)
        for _, same in groupby(pairs, kind):
            for batch in self._batches(list(same)):
                self._begin(*map(list, zip(*batch, strict=True)))

    def _batches(self, pairs: list[tuple[int, Asked]]) -> list[list[tuple[int, Asked]]]:
        """Return questions as batches: of each part of the lanes, at most as many as its lanes."""
        each, batches, asked = self.lanes // self.parts, [], Counter[int]()
        for pair in pairs:
            part = pair[0] // each
            number = asked[part] // each
            batches += [[]] * (number == len(batches))
            batches[number] = [*batches[number], pair]
            asked[part] += 1
        return batches

    def _begin(self, lanes: list[int], asked: list[Asked]) -> None:
        which, at = dealt(lanes, self.lanes, self.parts)
        batch = partial(stacked, width=len(which), at=at)
        keys = repeated = chunks = None
        if self.key is not None:
            numbers = batch([np.int32(x.number) for x in asked])
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, numbers)
        if asked[0].repeated is not None:
            repeated = batch([x.repeated for x in asked])
        if asked[0].open is not None:
            chunks = batch([x.open for x in asked])
        rows = batch([x.rows for x in asked])
        generation = begin_lanes(
            self.bound,
            self._carries,
            which,
            rows,
            keys,
            repeated,
            chunks,
            program=self.program,
            max_new=self.model.max_new,
            sampling=self.sampling,
        )
        self._tell(Writing(lanes, at, asked, generation, keys))

    def go_on(self) -> None:
        """Write a few tokens of every answer."""
        writing, self.writing = self.writing, []
        for one in writing:
            generation = continue_lanes(self.bound, one.generation, one.keys, **self._continuing())
            self._tell(one._replace(generation=generation))

    def _continuing(self) -> dict[str, Any]:
        more = {"program": self.program, "steps": TOKENS_AT_ONCE, "sampling": self.sampling}
        return more | stops_of(self.model)

    def _tell(self, writing: Writing) -> None:
        """Hand on what was written; keep the answers if one of them is not over."""
        generation, going = writing.generation, False
        ids, written = np.asarray(generation.ids), np.asarray(generation.written)
        first = np.array(generation.first)
        for lane, i, asked in zip(writing.lanes, writing.at, writing.asked, strict=True):
            mine = generation._replace(ids=ids[i], written=written[i])
            words, done = so_far(mine, **stops_of(self.model))
            try:
                if (words < 0).any():
                    carry = self.read(lane)
                    check_answer(words, self.bound, carry, asked.rows, program=self.program)
                asked.answer.grow(words, done, first[i])
                going |= not asked.answer.over
            except NotFiniteError as error:
                asked.answer.fail(error)
        if going:
            self.writing.append(writing)

    def rehearse(self, width: int, question: str | None) -> None:
        """Compile what `Engine.rehearse` says for one width; nothing is run, on any thread."""
        lowered_step(self.model, self.program, self.bound, self.lanes, width).compile()
        if question is not None:
            carries = lane_shapes(self.program, self.bound, self.lanes)
            rows = asked_rows(self.model, self.program, self.model.tokenize(question), 0)
            self._rehearse(carries, np.zeros(width, np.int32), stacked([rows], width))

    def _rehearse(self, carries: Carry, which: np.ndarray, rows: PyTree) -> None:
        width, penalises = len(which), self.sampling is not None and self.sampling.penalises
        keys = None if self.key is None else jax.random.split(self.key, width)
        repeated = np.zeros((width, self.program.config.vocab), bool) if penalises else None
        asked = (self.bound, carries, which, rows, keys, repeated, None)
        more = {"program": self.program, "sampling": self.sampling, "max_new": self.model.max_new}
        begun = begin_lanes.lower(*asked, **more).compile()
        generation = jax.eval_shape(lambda *a: begin_lanes(*a, **more), *asked)
        shape = partial(_shape, program=self.program)
        generation = jax.tree.map(shape, generation, begun.output_shardings)
        continue_lanes.lower(self.bound, generation, keys, **self._continuing()).compile()


def lowered_step(model: Model, program: Program, bound: Bound, lanes: int, width: int) -> Any:
    """Return the step of W = `width` of B = `lanes` streams, lowered; nothing is allocated.

    `bound` may be of shapes.
    """
    assert isinstance(model.media.size, tuple)
    chunk = blank(model, model.media.size, program.spec.chunk // model.tokens_per_piece)
    more = (np.zeros(width, np.int32), stacked([chunk], width))
    return advance_lanes.lower(bound, lane_shapes(program, bound, lanes), *more, program=program)


def _shape(x: PyTree, place: Sharding, program: Program) -> jax.ShapeDtypeStruct:
    """Return an array's shape, with where it lies if that is asked for by the program."""
    asked = None if program.mesh is None else place
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=asked)


def stacked(trees: Sequence[PyTree], width: int, at: Sequence[int] | None = None) -> PyTree:
    """Return trees on a leading axis of `width`, the last one repeated where there are fewer.

    Args:
      trees: at least one.
      width: of the axis.
      at: where each of them goes; None: to the front.
    """
    places = range(len(trees)) if at is None else at
    every = [trees[-1]] * width
    for place, tree in zip(places, trees, strict=True):
        every[place] = tree
    return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *every)
