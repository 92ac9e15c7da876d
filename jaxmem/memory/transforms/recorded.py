"""`watch`: any memory, noting what attention its slots received from the last chunk."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmem.kv import EMPTY
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State, View, kv_of
from jaxmem.typing import Array, Float, Int, PyTree


class WatchNotes(NamedTuple):
    """The watched memory's notes, and the attention its slots received."""

    capacity: Int[Array, ""]
    inner: PyTree
    mass: Float[Array, "Gm S"]  # from the last chunk with rows, by slot as it was before it


def watch(memory: Memory) -> Memory:
    """Return `memory` with the attention mass of the last chunk in `state.aux.mass`.

    It streams exactly as `memory` does. Around `full` it is the oracle of what rows look at: pass
    a question as a chunk through a branch of the stream, and read the notes.

    Args:
      memory: of scope "layer", with equally many slots in all layers, reading exact attention mass
        of all rows or none.

    Raises:
      ValueError: for a memory of another scope, or one that reads its own kind of mass.
    """
    mine = memory.requires.mass, memory.requires.last, memory.requires.modality
    if memory.scope != "layer" or mine not in ((None,) * 3, ("softmax", None, None)):
        raise ValueError(
            f"watch() needs a memory of scope 'layer' that reads mass of all rows or none, got "
            f"{memory.name!r} of scope {memory.scope!r} with {memory.requires}; watch full()."
        )

    def init(spec: Spec) -> State:
        state = memory.init(spec)
        mass = jnp.zeros(kv_of(state.slots).modality.shape[::-1], jnp.float32)
        return State(state.slots, WatchNotes(state.aux.capacity, state.aux, mass))

    def inner(state: State) -> State:
        return State(state.slots, state.aux.inner)

    def view(state: State, bank: PyTree, rows: Embeds) -> View:
        return memory.view(inner(state), bank, rows)

    def write(state: State, seen: Chunk) -> tuple[State, PyTree]:
        assert seen.mass is not None
        new, spill = memory.write(inner(state), seen)
        real = jnp.any(seen.tokens.modality != EMPTY)
        mass = jnp.where(real, seen.mass.memory, state.aux.mass)
        return State(new.slots, WatchNotes(new.aux.capacity, new.aux, mass)), spill

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        return memory.recall(inner(state), bank, query)

    return memory._replace(
        init=init,
        view=view,
        write=write,
        recall=recall,
        requires=memory.requires._replace(mass="softmax"),
        name=f"watch({memory.name})",
    )
