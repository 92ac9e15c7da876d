"""What a memory holds, from shapes: bytes and slots. Nothing is allocated."""

from __future__ import annotations

import jax

from jaxmem.memory.base import AnyMemory, FeatureMemory, Spec, State, kv_of


def shapes(memory: AnyMemory, spec: Spec) -> list[State]:
    """Return the state of every layer as shapes and dtypes; nothing is allocated.

    Memories over the whole stack, and memories of features, have one state.
    """
    if isinstance(memory, FeatureMemory) or memory.per == "stack":
        return [jax.eval_shape(lambda: memory.init(spec))]
    return [jax.eval_shape(lambda l=l: memory.init(spec, l)) for l in range(spec.layers)]  # type: ignore[call-arg]


def nbytes(memory: AnyMemory, spec: Spec) -> int:
    """Return the bytes that a memory's state holds at rest over all layers; nothing is allocated.

    What its bank holds is not counted (`footprint` does).
    """
    leaves = jax.tree.leaves(shapes(memory, spec))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def stream_nbytes(memory: AnyMemory, spec: Spec) -> int:
    """Return the bytes of a stream without its bank: `nbytes`, and those of layers with a state."""
    return nbytes(memory, spec) + spec.state_bytes


def slots(memory: AnyMemory, spec: Spec) -> tuple[int, ...]:
    """Return the number of slots of every layer.

    Raises:
      ValueError: for a memory of features, which has no slots of layers.
    """
    if isinstance(memory, FeatureMemory):
        raise ValueError(
            f"{memory.name} keeps features before the decoder and has no slots of layers; use "
            "nbytes() to compare it with others."
        )
    if memory.per == "layer":
        return tuple(kv_of(s.slots).modality.shape[0] for s in shapes(memory, spec))
    modality = kv_of(shapes(memory, spec)[0].slots).modality
    return (modality.shape[1],) * spec.layers
