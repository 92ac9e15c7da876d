"""What the two Flash-VStream memories have in common: options, the key of draws, what is lost."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxmem.memory.base import FeatureMemory, State
from jaxmem.memory.parts.options import one_of
from jaxmem.typing import Array, Int, PyTree

Form = Literal["as_released", "as_published"]


class Aux(NamedTuple):
    """What is not a feature."""

    key: Array  # data of the key for the next chunk's draws
    maps: PyTree  # the learned maps, where there are any: data, never part of the program
    dropped: Int[Array, ""]  # vision rows of frames that a chunk cut


@dataclass(frozen=True)
class FromFrames(FeatureMemory):
    """A Flash-VStream memory: sizes of its own kind, a form, and draws of k-means."""

    kind: ClassVar[type]
    """Of the sizes; its `check` looks at their numbers."""
    sized: ClassVar[tuple[str, ...]] = ("sizes",)
    """What `resized` decides."""

    sizes: Any = None
    _: KW_ONLY
    form: Form = "as_released"
    seed: int = 0

    def __post_init__(self):
        one_of(self.name, get_args(Form), form=self.form)
        if self.sizes is None:
            return
        if not isinstance(self.sizes, self.kind):
            raise ValueError(
                f"sizes must be {self.kind.__name__}(...), got {self.sizes!r}: leave them out for "
                "those of the model's frames, and let jaxmem.within fit the memory to bytes."
            )
        self.sizes.check()

    def begun(self, held: PyTree, maps: PyTree = None) -> State:
        """Return the state of a stream that has not begun, with empty features."""
        key = jax.random.key_data(jax.random.key(self.seed))
        return State(held, Aux(key, maps, jnp.zeros((), jnp.int32)))

    def key(self, state: State) -> Array:
        """Return the key of a chunk's draws.

        By the number of frames and not of chunks: a chunk without a frame changes nothing.
        """
        return jax.random.fold_in(jax.random.wrap_key_data(state.aux.key), state.slots.seen)
