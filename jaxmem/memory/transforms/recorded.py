"""`Recorded`: any memory, noting what attention its slots received from the last chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from jaxmem.kv import EMPTY
from jaxmem.memory.base import Spec, State, kv_of
from jaxmem.memory.exchange import Attention, Chunk, Requires
from jaxmem.memory.sizes import slots
from jaxmem.memory.transforms.around import Around
from jaxmem.typing import Array, Float, Int, Num, PyTree


class RecordedAux(NamedTuple):
    """The memory's own numbers, and the attention its slots received."""

    capacity: Int[Array, ""]
    next_pos: Num[Array, "A"]
    inner: PyTree
    # From the last chunk with rows, by slot as it was before it; as long as the longest layer.
    received: Float[Array, "Gm S"]


@dataclass(frozen=True)
class Recorded(Around):
    """A memory with the attention of the last chunk in `state.aux.received`.

    It streams exactly as the memory does. Around `Full` it is the oracle of what rows look at: pass
    a question as a chunk through a branch of the stream, and read what was recorded.

    Attributes:
      memory: that sees one layer, requiring exact attention of all rows or none.

    Raises:
      ValueError: for a memory of the whole stack, or one that requires its own kind of attention.
    """

    def __post_init__(self):
        super().__post_init__()
        asked = self.memory.requires.attention
        if self.memory.per != "layer" or asked not in (None, Attention("softmax")):
            raise ValueError(
                "Recorded needs a memory that sees one layer and requires attention of all rows or "
                f"none, got {self.memory!r} with {self.memory.requires}; record Full."
            )

    @property
    def name(self) -> str:
        return f"recorded({self.memory.name})"

    @property
    def requires(self) -> Requires:
        return self.memory.requires._replace(attention=Attention("softmax"))

    def init(self, spec: Spec, layer: int = 0) -> State:
        state = self.memory.init(spec, layer)
        groups, aux = kv_of(state.slots).modality.shape[1], state.aux
        received = jnp.zeros((groups, max(slots(self.memory, spec))), jnp.float32)
        return State(state.slots, RecordedAux(aux.capacity, aux.next_pos, aux, received))

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, PyTree]:
        assert chunk.received is not None
        asked = self.memory.requires.attention is not None
        own = chunk if asked else chunk._replace(received=None)
        new, evicted = self.memory.write(spec, self.inner(state), own)
        real = jnp.any(chunk.kv.modality != EMPTY)
        longest = state.aux.received.shape[1]
        found = chunk.received.memory[:, :longest]
        found = jnp.pad(found, ((0, 0), (0, longest - found.shape[1])))
        received = jnp.where(real, found, state.aux.received)
        aux = RecordedAux(new.aux.capacity, new.aux.next_pos, new.aux, received)
        return State(new.slots, aux), evicted
