"""The flat pool: per-layer budgets that cost exactly the sum of the layers' slots.

Budgets differ between layers (OmniMem's by a factor of seven), but a layer loop wants one array of
one shape. The slots of all layers lie in one array `[sum S_l, ...]`; the layers are cut into a few
contiguous *runs*, and inside a run every layer reads a window as long as the run's largest layer
and masks what lies beyond its own capacity. At rest nothing is padded; runs only trade compile time
for attention over masked slots.

The pool is ordered by ascending S with the largest layer last, so that a window of any run's
length never leaves the array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout as Order
from jax.experimental.layout import with_layout_constraint

from jaxmem.memory.base import Memory, Spec, State, at_layer, kv_of
from jaxmem.memory.sizes import shapes
from jaxmem.typing import Array, Int, PyTree, UInt


@dataclass(frozen=True)
class Run:
    """Layers `first` to `stop - 1`, which all read windows of `window` slots."""

    first: int
    stop: int
    window: int


@dataclass(frozen=True)
class Layout:
    """Where each layer's slots lie in the flat pool; static.

    Attributes:
      capacities: S_l, slots of each layer.
      offsets: first slot of each layer.
      runs: contiguous layers and their window.
    """

    capacities: tuple[int, ...]
    offsets: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """Slots at rest, over all layers."""
        return sum(self.capacities)


def cut_runs(capacities: Sequence[int], count: int) -> tuple[Run, ...]:
    """Return at most `count` contiguous runs that minimise the sum of len(run) * max(run).

    Dynamic programming over (layers covered, runs used); the first of equal solutions wins.
    """
    layers = len(capacities)
    best: dict[tuple[int, int], tuple[int, tuple[Run, ...]]] = {(0, 0): (0, ())}
    for used in range(1, min(count, layers) + 1):
        for stop in range(used, layers + 1):
            options = []
            for first in range(used - 1, stop):
                if (first, used - 1) in best:
                    cost, runs = best[first, used - 1]
                    window = max(capacities[first:stop])
                    run = Run(first, stop, window)
                    options.append((cost + (stop - first) * window, (*runs, run)))
            best[stop, used] = min(options, key=lambda option: option[0])
    found = [best[layers, used] for used in range(1, min(count, layers) + 1)]
    return min(found, key=lambda option: option[0])[1]  # the fewest runs of equal cost


def make_layout(capacities: Sequence[int], *, runs: int = 6) -> Layout:
    """Return the layout of layers with `capacities[l]` slots.

    At most so many `runs`: 4 to 6 is the measured optimum of compile time against masked work.

    Raises:
      ValueError: if a layer has no slot.
    """
    if not capacities or min(capacities) < 1:
        raise ValueError(
            f"every layer needs at least one slot, got {tuple(capacities)}; raise the budget."
        )
    ascending = sorted(range(len(capacities)), key=lambda l: (capacities[l], l))
    offsets, start = [0] * len(capacities), 0
    for l in ascending:
        offsets[l] = start
        start += capacities[l]
    return Layout(tuple(capacities), tuple(offsets), cut_runs(capacities, runs))


def layout_of(memory: Memory, spec: Spec, *, runs: int = 6) -> Layout:
    """Return the layout of a memory that sees one layer (`per` "layer")."""
    if not spec.layers:  # every layer has a state of its own
        return Layout((), (), ())
    capacities = [kv_of(s.slots).modality.shape[0] for s in shapes(memory, spec)]
    return make_layout(capacities, runs=runs)


def init(memory: Memory, spec: Spec, layout: Layout) -> State:
    """Return the empty state of all layers: slots `[sum S_l, ...]`, aux `[L, ...]`."""
    if not spec.layers:
        return State((), ())
    states = [memory.init(spec, l) for l in range(spec.layers)]
    ascending = sorted(range(spec.layers), key=lambda l: layout.offsets[l])
    slots = jax.tree.map(lambda *x: jnp.concatenate(x), *[states[l].slots for l in ascending])
    aux = jax.tree.map(lambda *x: jnp.stack(x), *[s.aux for s in states])
    return State(slots, aux)


class Bits(NamedTuple):
    """An array of bfloat16 as its bits."""

    of: UInt[Array, "..."]  # uint16


def as_bits(tree: PyTree) -> PyTree:
    """Return a tree whose bfloat16 leaves are their `Bits`.

    XLA's CPU converts all of an array of bfloat16 to float32 and back to update a part of it; of
    bits it writes the part. `read` and `write` take slots either way. Bits have no gradient.
    """
    narrow = lambda x: Bits(jax.lax.bitcast_convert_type(x, jnp.uint16))
    return jax.tree.map(lambda x: narrow(x) if x.dtype == jnp.bfloat16 else x, tree)


def as_floats(tree: PyTree) -> PyTree:
    """Return what `as_bits` was given."""
    held = lambda x: isinstance(x, Bits)
    wide = lambda x: jax.lax.bitcast_convert_type(x.of, jnp.bfloat16) if held(x) else x
    return jax.tree.map(wide, tree, is_leaf=held)


def _as_held(x: Array) -> Array:
    """Return x, whose readers may not choose the order in which the slots of all layers lie.

    XLA would transpose these on a GPU, for products that want another order.
    """
    if jax.default_backend() == "cpu":
        return x
    return with_layout_constraint(x, Order(tuple(range(x.ndim))))


def read(layout: Layout, state: State, layer: Int[Array, ""], window: int) -> State:
    """Return one layer's state as a window of `window` slots, empty beyond the layer's capacity."""
    offset = jnp.asarray(np.asarray(layout.offsets, np.int32))[layer]
    capacity = jnp.asarray(np.asarray(layout.capacities, np.int32))[layer]
    inside = jnp.arange(window, dtype=jnp.int32) < capacity

    def one(leaf: Array) -> Array:
        rows = _as_held(jax.lax.dynamic_slice_in_dim(leaf, offset, window))
        mask = inside.reshape((window,) + (1,) * (leaf.ndim - 1))
        return jnp.where(mask, rows, jnp.zeros((), leaf.dtype))

    return State(as_floats(jax.tree.map(one, state.slots)), at_layer(state.aux, layer))


def write(layout: Layout, state: State, layer: Int[Array, ""], new: State) -> State:
    """Put one layer's window back; slots beyond the layer's capacity belong to other layers."""
    offset = jnp.asarray(np.asarray(layout.offsets, np.int32))[layer]
    capacity = jnp.asarray(np.asarray(layout.capacities, np.int32))[layer]

    def one(leaf: Array, fresh: Array) -> Array:
        window = fresh.shape[0]
        old = jax.lax.dynamic_slice_in_dim(leaf, offset, window)
        inside = jnp.arange(window, dtype=jnp.int32) < capacity
        mask = inside.reshape((window,) + (1,) * (leaf.ndim - 1))
        rows = jnp.where(mask, fresh.astype(leaf.dtype), old)
        return jax.lax.dynamic_update_slice_in_dim(leaf, rows, offset, 0)

    aux = jax.tree.map(
        lambda leaf, fresh: jax.lax.dynamic_update_index_in_dim(
            leaf, fresh.astype(leaf.dtype), layer, 0
        ),
        state.aux,
        new.aux,
    )
    in_bits = jax.tree.structure(state.slots) != jax.tree.structure(new.slots)
    fresh = as_bits(new.slots) if in_bits else new.slots
    return State(jax.tree.map(one, state.slots, fresh), aux)


Step = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def rewrite(stack: PyTree, step: Step, given: PyTree) -> tuple[PyTree, PyTree]:
    """Replace the layers of a stack one by one, in place: only one layer's pool exists at a time.

    Args:
      stack: what memories over the whole stack hold, [L, ...].
      step: from one layer, and what is given for it, to the layer from now on and an output.
      given: for every layer, [L, ...].

    Returns:
      The stack from now on, and the outputs [L, ...].
    """

    def one(loop: tuple[Array, PyTree], given: PyTree) -> tuple[tuple[Array, PyTree], PyTree]:
        layer, stack = loop
        new, out = step(at_layer(stack, layer), given)
        put = lambda leaf, x: jax.lax.dynamic_update_index_in_dim(leaf, x, layer, 0)
        return (layer + 1, jax.tree.map(put, stack, new)), out

    (_, stack), out = jax.lax.scan(one, (jnp.zeros((), jnp.int32), stack), given)
    return stack, out


def layers(layout: Layout, state: State) -> list[State]:
    """Return every layer's own slots and aux, outside of any loop: for reports and tests."""
    out = []
    for l, (offset, capacity) in enumerate(zip(layout.offsets, layout.capacities, strict=True)):
        slots = jax.tree.map(lambda leaf, o=offset, c=capacity: leaf[o : o + c], state.slots)
        out.append(State(slots, jax.tree.map(lambda leaf, l=l: leaf[l], state.aux)))
    return out
