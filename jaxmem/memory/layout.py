"""The flat pool: per-layer budgets that cost exactly the sum of the layers' slots.

Budgets differ between layers (OmniMem's by a factor of seven), but a layer loop wants one array of
one shape. The slots of all layers lie in one array `[sum S_l, ...]`; the layers are cut into a few
contiguous *runs*, and inside a run every layer reads a window as long as the run's largest layer
and masks what lies beyond its own room. At rest nothing is padded; runs only trade compile time
for attention over masked slots.

The pool is ordered by ascending S with the largest layer last, so that a window of any run's
length never leaves the array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Memory, Spec, State, at_layer, kv_of, shapes
from jaxmem.typing import Array, Int


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
      rooms: S_l, slots of each layer.
      offsets: first slot of each layer.
      runs: contiguous layers and their window.
    """

    rooms: tuple[int, ...]
    offsets: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """Slots at rest, over all layers."""
        return sum(self.rooms)


def cut_runs(rooms: Sequence[int], count: int) -> tuple[Run, ...]:
    """Return at most `count` contiguous runs that minimise the sum of len(run) * max(run).

    Dynamic programming over (layers covered, runs used); the first of equal solutions wins.
    """
    layers = len(rooms)
    best: dict[tuple[int, int], tuple[int, tuple[Run, ...]]] = {(0, 0): (0, ())}
    for used in range(1, min(count, layers) + 1):
        for stop in range(used, layers + 1):
            options = []
            for first in range(used - 1, stop):
                if (first, used - 1) in best:
                    cost, runs = best[first, used - 1]
                    window = max(rooms[first:stop])
                    run = Run(first, stop, window)
                    options.append((cost + (stop - first) * window, (*runs, run)))
            best[stop, used] = min(options, key=lambda option: option[0])
    return min((best[layers, used] for used in range(1, min(count, layers) + 1)), key=_cost)[1]


def _cost(option: tuple[int, tuple[Run, ...]]) -> tuple[int, int]:
    cost, runs = option
    return cost, len(runs)


def make_layout(rooms: Sequence[int], *, runs: int = 6) -> Layout:
    """Return the layout of layers with `rooms[l]` slots.

    Args:
      rooms: S_l, at least 1 each.
      runs: at most this many; 4 to 6 is the measured optimum of compile time against masked work.

    Raises:
      ValueError: if a layer has no room.
    """
    if not rooms or min(rooms) < 1:
        raise ValueError(
            f"every layer needs at least one slot, got {tuple(rooms)}; raise the budget."
        )
    ascending = sorted(range(len(rooms)), key=lambda l: (rooms[l], l))
    offsets, start = [0] * len(rooms), 0
    for l in ascending:
        offsets[l] = start
        start += rooms[l]
    return Layout(tuple(rooms), tuple(offsets), cut_runs(rooms, runs))


def layout_of(memory: Memory, spec: Spec, *, runs: int = 6) -> Layout:
    """Return the layout of a memory of scope "layer"."""
    rooms = [kv_of(s.slots).modality.shape[0] for s in shapes(memory, spec)]
    return make_layout(rooms, runs=runs)


def init(memory: Memory, spec: Spec, layout: Layout) -> State:
    """Return the empty state of all layers: slots `[sum S_l, ...]`, notes `[L, ...]`."""
    states = [memory.init(spec.at(l)) for l in range(spec.layers)]
    ascending = sorted(range(spec.layers), key=lambda l: layout.offsets[l])
    slots = jax.tree.map(lambda *x: jnp.concatenate(x), *[states[l].slots for l in ascending])
    notes = jax.tree.map(lambda *x: jnp.stack(x), *[s.aux for s in states])
    return State(slots, notes)


def read(layout: Layout, state: State, layer: Int[Array, ""], window: int) -> State:
    """Return one layer's state as a window of `window` slots, empty beyond the layer's room."""
    offset = jnp.asarray(np.asarray(layout.offsets, np.int32))[layer]
    room = jnp.asarray(np.asarray(layout.rooms, np.int32))[layer]
    inside = jnp.arange(window, dtype=jnp.int32) < room

    def one(leaf: Array) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(leaf, offset, window)
        mask = inside.reshape((window,) + (1,) * (leaf.ndim - 1))
        return jnp.where(mask, rows, jnp.zeros((), leaf.dtype))

    return State(jax.tree.map(one, state.slots), at_layer(state.aux, layer))


def write(layout: Layout, state: State, layer: Int[Array, ""], new: State) -> State:
    """Put one layer's window back; slots beyond the layer's room belong to other layers."""
    offset = jnp.asarray(np.asarray(layout.offsets, np.int32))[layer]
    room = jnp.asarray(np.asarray(layout.rooms, np.int32))[layer]

    def one(leaf: Array, fresh: Array) -> Array:
        window = fresh.shape[0]
        old = jax.lax.dynamic_slice_in_dim(leaf, offset, window)
        inside = jnp.arange(window, dtype=jnp.int32) < room
        mask = inside.reshape((window,) + (1,) * (leaf.ndim - 1))
        rows = jnp.where(mask, fresh.astype(leaf.dtype), old)
        return jax.lax.dynamic_update_slice_in_dim(leaf, rows, offset, 0)

    notes = jax.tree.map(
        lambda leaf, fresh: jax.lax.dynamic_update_index_in_dim(
            leaf, fresh.astype(leaf.dtype), layer, 0
        ),
        state.aux,
        new.aux,
    )
    return State(jax.tree.map(one, state.slots, new.slots), notes)


def layers(layout: Layout, state: State) -> list[State]:
    """Return every layer's own slots and notes, outside of any loop: for reports and tests."""
    out = []
    for l, (offset, room) in enumerate(zip(layout.offsets, layout.rooms, strict=True)):
        slots = jax.tree.map(lambda leaf, o=offset, r=room: leaf[o : o + r], state.slots)
        out.append(State(slots, jax.tree.map(lambda leaf, l=l: leaf[l], state.aux)))
    return out
