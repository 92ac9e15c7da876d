"""What a FlexMem stream holds: its sizes, and the numbers beside its context memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from jaxmem.memory.base import Spec
from jaxmem.memory.flexmem import ledger
from jaxmem.memory.flexmem.ledger import Ledger
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.memory.parts import positions as places
from jaxmem.typing import Array, Float, Int, Num

if TYPE_CHECKING:
    from jaxmem.memory.flexmem.flexmem import FlexMem


class Sizes(NamedTuple):
    """Slots of a stream of one `Spec`."""

    clip: int  # n_v, rows of a full clip
    context: int  # slots of a clip's context memory
    local: int  # entries of a clip's local memory
    held: int  # slots of all context memory
    longs: int  # local memories that are seen while watching
    view: int  # slots that a chunk sees
    lines: int  # N, of the ledger


def shares_of(memory: FlexMem, clip: int) -> tuple[int, int]:
    """Return what a clip of so many rows leaves: tokens of context, and of local memory."""
    return max(1, clip // memory.context_ratio), max(1, clip // memory.local_ratio)


def sizes_of(memory: FlexMem, spec: Spec) -> Sizes:
    """Return the slots of a stream.

    Raises:
      ValueError: if the sizes do not fit the model.
    """
    clip = spec.chunk if memory.clip is None else memory.clip
    if spec.chunk > clip:
        raise ValueError(
            f"a chunk is part of a clip, of at most clip={clip} rows, but chunks have "
            f"{spec.chunk}; raise clip, or leave it out."
        )
    context, local = shares_of(memory, clip)
    half, longs = memory.window // 2, 0
    if memory.sees_local:
        longs = (memory.window - half) * context // local
        if not longs:
            raise ValueError(
                f"{memory.window - half} contexts of {context} tokens leave no room for a local "
                f"memory of {local}: raise window, or set long_term=False."
            )
    held = memory.window * context
    view = max(held, half * context + longs * local)
    lines = ledger.lines(memory.capacity, clip, memory.local_ratio)
    return Sizes(clip, context, local, held, longs, view, lines)


class Aux(NamedTuple):
    """What is not context memory; N clips have a line in the ledger.

    Only `capacity` has a leading axis of layers: all layers read the same clips.
    """

    capacity: Int[Array, "L"]
    start: Num[Array, "A"]  # where positions begin, after the prefix
    next_pos: Num[Array, "A"]  # where the next chunk begins, if positions are kept
    recent: Int[Array, "window"]  # context tokens of the last clips, the newest last
    ledger: Ledger  # where the clips' local memories lie in the bank
    dropped: Int[Array, ""]  # entries that can never be recalled
    relevance: Float[Array, "N"]  # g, of a question that is known while watching; else 0
    keys: Float[Array, "N K k G D"] | None = None  # of the MemIndex, before rotation
    worth: Float[Array, "K k"] | None = None  # what the keys of the newest clip received


def empty_aux(spec: Spec, sizes: Sizes, window: int, index: MemIndex | None) -> Aux:
    """Return the numbers of a stream that has not begun; `index`: whose keys are kept."""
    keys = worth = None
    if index is not None:
        shape = (len(index.read_layers(spec.layers)), index.keys)
        worth = jnp.zeros(shape, jnp.float32)
        keys = jnp.zeros((sizes.lines, *shape, spec.kv_heads, spec.head_dim), spec.dtype)
    return Aux(
        capacity=jnp.full((spec.layers,), sizes.held, jnp.int32),
        start=places.start(spec),
        next_pos=places.start(spec),
        recent=jnp.zeros((window,), jnp.int32),
        ledger=ledger.empty(sizes.lines),
        dropped=jnp.zeros((), jnp.int32),
        relevance=jnp.zeros((sizes.lines,), jnp.float32),
        keys=keys,
        worth=worth,
    )
