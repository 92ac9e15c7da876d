"""What the engine's thread runs: the lanes' carries, and the answers that are being written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.asking import so_far
from jaxmem.bound import Bound, bind
from jaxmem.decoder.generate import Generation
from jaxmem.decoder.program import Carry, Program
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
    padded,
    put_lane,
    start_lanes,
    take_lane,
)
from jaxmem.typing import Array, PyTree


class Writing(NamedTuple):
    """Answers that are written together: their lanes, questions, and tokens so far [W, ...]."""

    lanes: list[int]
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
        self._carries = put_lane(self._carries, jnp.int32(lane), carry)

    def read(self, lane: int) -> Carry:
        """Return a copy of a lane's carry."""
        return take_lane(self._carries, jnp.int32(lane))

    def step(self, lanes: Sequence[int], chunks: Sequence[PyTree]) -> None:
        """Write one chunk to each of some lanes, and wait until it is written."""
        which = padded(lanes, self.lanes)
        each = stacked(chunks, len(which))
        self._carries = advance_lanes(self.bound, self._carries, which, each, program=self.program)
        jax.block_until_ready(self._carries.clock)

    def begin(self, lanes: Sequence[int], asked: Sequence[Asked]) -> None:
        """Begin answers, those of one padded length together."""
        kind = lambda pair: (pair[1].rows.modality.shape[0], pair[1].open is not None)
        pairs = sorted(zip(lanes, asked, strict=True), key=kind)
        for _, same in groupby(pairs, kind):
            group = list(same)
            for at in range(0, len(group), self.lanes):
                self._begin(*map(list, zip(*group[at : at + self.lanes], strict=True)))

    def _begin(self, lanes: list[int], asked: list[Asked]) -> None:
        which = padded(lanes, self.lanes)
        width, keys, repeated, chunks = len(which), None, None, None
        if self.key is not None:
            numbers = stacked([np.int32(x.number) for x in asked], width)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, numbers)
        if asked[0].repeated is not None:
            repeated = stacked([x.repeated for x in asked], width)
        if asked[0].open is not None:
            chunks = stacked([x.open for x in asked], width)
        rows = stacked([x.rows for x in asked], width)
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
        self._tell(Writing(lanes, asked, generation, keys))

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
        for i, (lane, asked) in enumerate(zip(writing.lanes, writing.asked, strict=True)):
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
            carries = jax.eval_shape(
                lambda: start_lanes(self.program, self.bound, lanes=self.lanes)
            )
            rows = asked_rows(self.model, self.program, self.model.tokenize(question), 0)
            self._rehearse(carries, np.zeros(width, np.int32), stacked([rows], width))

    def _rehearse(self, carries: Carry, which: np.ndarray, rows: PyTree) -> None:
        width, penalises = len(which), self.sampling is not None and self.sampling.penalises
        keys = None if self.key is None else jax.random.split(self.key, width)
        repeated = np.zeros((width, self.program.config.vocab), bool) if penalises else None
        asked = (self.bound, carries, which, rows, keys, repeated, None)
        more = {"program": self.program, "sampling": self.sampling, "max_new": self.model.max_new}
        begin_lanes.lower(*asked, **more).compile()
        generation = jax.eval_shape(lambda *a: begin_lanes(*a, **more), *asked)
        continue_lanes.lower(self.bound, generation, keys, **self._continuing()).compile()


def lowered_step(model: Model, program: Program, bound: Bound, lanes: int, width: int) -> Any:
    """Return the step of W = `width` of B = `lanes` streams, lowered; nothing is allocated.

    `bound` may be of shapes.
    """
    assert isinstance(model.media.size, tuple)
    carries = jax.eval_shape(lambda x: start_lanes(program, x, lanes=lanes), bound)
    chunk = blank(model, model.media.size, program.spec.chunk // model.tokens_per_piece)
    more = (np.zeros(width, np.int32), stacked([chunk], width))
    return advance_lanes.lower(bound, carries, *more, program=program)


def stacked(trees: Sequence[PyTree], width: int) -> PyTree:
    """Return trees on a leading axis of `width`, the last one repeated where there are fewer."""
    trees = [*trees, *[trees[-1]] * (width - len(trees))]
    return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *trees)
