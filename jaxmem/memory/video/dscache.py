"""DSCache (arXiv 2605.01858): a cumulative past, and the last frames encoded apart from it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory import layout
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.baselines import LastFrames
from jaxmem.memory.exchange import Chunk, Embeds, Question, Requires, View
from jaxmem.memory.parts import last_rows
from jaxmem.memory.parts.last_rows import LastRows
from jaxmem.memory.parts.options import at_least
from jaxmem.memory.parts.positions import numbered, start
from jaxmem.typing import Array, Int, Num, PyTree


class Aux(NamedTuple):
    """What is not a slot of the past."""

    capacity: Int[Array, "L"]
    next_pos: Num[Array, "L A"]
    past: PyTree  # of `LastFrames` [L, ...]
    rows: State  # of the last frames, of no layer


@dataclass(frozen=True)
class DSCache(Memory):
    """DSCache: a window of past frames, and at a question the last frames encoded by themselves.

    Chunks are written as ever: each attends to the past, which is the last whole frames that fit. A
    question reads the past up to the last `frames` frames, and after it these frames anew, encoded
    as if nothing had come before them.

    Attributes:
      budget: S, slots of every layer of the past; as many rows of the last frames are held at most,
        and no more than `frames` chunks have.
      frames: frames that are encoded anew, at most.
      tokens_per_frame: vision tokens of a frame, see `LastFrames`.
      reindex: what a question and the next chunk read is numbered without gaps, so that no position
        exceeds what the model was trained with; False: positions are those of the stream.

    Raises:
      ValueError: if a size is not positive.
    """

    per: ClassVar[Literal["layer", "stack"]] = "stack"
    sized_by_options: ClassVar[bool] = True  # as many rows are held as slots, at most

    budget: int
    _: KW_ONLY
    frames: int = 4
    tokens_per_frame: int | None = None
    reindex: bool = True

    def __post_init__(self):
        at_least(self.name, 1, budget=self.budget, frames=self.frames)
        self.past  # noqa: B018  # it checks the rest

    @property
    def past(self) -> LastFrames:
        """Return the memory of the past, of one layer."""
        more = {"tokens_per_frame": self.tokens_per_frame, "reindex": self.reindex}
        return LastFrames(self.budget, **more)

    def last(self, spec: Spec) -> LastRows:
        """Return what holds the rows of the last frames."""
        most = min(self.budget, self.frames * spec.chunk)
        return LastRows(most, self.frames, self.tokens_per_frame)

    @property
    def requires(self) -> Requires:
        return Requires(rows=True)

    def init(self, spec: Spec, layer: int = 0) -> State:
        one = self.past.init(spec)
        past = jax.tree.map(lambda x: jnp.broadcast_to(x, (spec.layers, *x.shape)), one)
        return self._state(past, self.last(spec).init(spec))

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        assert chunk.rows is not None
        layer = lambda past, chunk: self.past.write(spec, past, chunk)
        past, _ = layout.rewrite(self._past(state), layer, Chunk(chunk.kv, chunk.next_pos))
        number = chunk.kv.index[0, :, 0]
        last = self.last(spec).write(spec, state.aux.rows, chunk.rows, number)
        return self._state(past, last), None

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        return jax.vmap(lambda state: self.past.view(spec, state, None))(self._past(state))

    def anew(self, spec: Spec, state: State) -> Embeds:
        return self.last(spec).read(spec, state.aux.rows)

    def recall(
        self, spec: Spec, state: State, question: Question | None, bank: PyTree = None
    ) -> View:
        if question is None or question.anew is None:
            raise ValueError(
                f"{self.name} reads the last frames encoded anew: call it through jaxmem.ask."
            )
        rows, first = state.aux.rows, last_rows.first_number(state.aux.rows)
        index, pos = last_rows.numbers(rows)
        advance, begin = self.anew(spec, state).advance, start(spec)

        def layer(past: State, fresh: KV) -> View:
            held = past.slots.kv
            older = kvs.valid(held)[:, 0] & (held.index[:, 0] < first)
            held = kvs.take(held, jnp.arange(older.shape[0], dtype=jnp.int32), older)
            if self.reindex:
                held, end = numbered(held, past.aux.next_pos)
                place, base = fresh.pos + (end - begin)[None, None], end + advance
            else:
                place, base = pos + begin[None, None], past.aux.next_pos
            real = kvs.valid(fresh)
            place = jnp.where(real[..., None], place, 0)
            fresh = fresh._replace(pos=place, index=jnp.where(real, index, 0))
            return View(kvs.append(held, fresh, kvs.count(held)), base)

        return jax.vmap(layer)(self._past(state), question.anew)

    def _past(self, state: State) -> State:
        return State(state.slots, state.aux.past)

    def _state(self, past: State, rows: State) -> State:
        return State(past.slots, Aux(past.aux.capacity, past.aux.next_pos, past.aux, rows))
