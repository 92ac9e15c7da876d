"""`keep`: memories that hold what comes first in a fixed order of preference.

Every unit of the stream (a token or a whole frame) gets a priority when it arrives, which never
changes: the newest first, some pinned, evenly spaced, at random. The memory holds the units of
smallest priority that fit. Because a unit that was turned away once is always behind those that
were held then, the memory equals the choice among *all* tokens so far, although it sees each only
once, and it does not depend on how the stream was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.select import select
from jaxmem.kv import EMPTY, KV, append, count, take
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State, View
from jaxmem.memory.parts import positions
from jaxmem.memory.parts.units import Unit, token
from jaxmem.typing import Array, Bool, Int, Num, PyTree, UInt

NONE = np.uint32(2**32 - 1)  # the priority of an empty slot, and the bar while nothing is refused
LAST = np.uint32(2**32 - 2)  # the largest priority of a token

Priority = Callable[[UInt[Array, "T"], PyTree], UInt[Array, "T"]]
"""(unit numbers, seed) -> priorities, uint32, the smallest kept longest."""


class Slots(NamedTuple):
    """Tokens, each with the priority of its unit."""

    tokens: KV
    priority: UInt[Array, "S"]  # fixed at arrival


class Notes(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]  # slots that may be filled
    next_pos: Num[Array, "A"]  # where the next chunk begins
    bar: UInt[Array, ""]  # smallest priority refused so far
    dropped: Int[Array, ""]  # tokens that were written and are no longer held
    cursor: PyTree  # of the unit's numbering
    seed: PyTree  # what the priorities are drawn with, None where nothing is drawn


def newest(number: UInt[Array, "T"], seed: PyTree = None) -> UInt[Array, "T"]:
    """Prefer the newest: the order of a sliding window."""
    del seed
    return LAST - number


def keep(
    slots: int,
    priority: Priority,
    *,
    name: str,
    unit: Unit | None = None,
    most: int | None = None,
    seed: Callable[[Spec], PyTree] = lambda spec: None,
    rule: positions.Rule = "keep",
) -> Memory:
    """Return the memory that holds the units of smallest priority.

    Units are whole: the first unit that does not fit entirely is dropped with all behind it.
    No attention statistics are read.

    Args:
      slots: S, slots of every layer.
      priority: of unit numbers; called once for each chunk.
      name: of the memory.
      unit: what is counted and kept whole; single tokens if None.
      most: units held at most; None for as many as fit.
      seed: arrays that `priority` draws with, part of the state.
      rule: of positions, see `positions.ruled`.

    Raises:
      ValueError: if `slots` or `most` is not positive.
    """
    _positive(name, "slots", slots)
    if most is not None:
        _positive(name, "units", most)
    unit = token() if unit is None else unit

    def init(spec: Spec) -> State:
        notes = Notes(
            capacity=jnp.full((), slots, jnp.int32),
            next_pos=positions.start(spec),
            bar=jnp.full((), NONE, jnp.uint32),
            dropped=jnp.zeros((), jnp.int32),
            cursor=unit.init(spec),
            seed=seed(spec),
        )
        return State(Slots(spec.empty(slots), jnp.zeros((slots,), jnp.uint32)), notes)

    def view(state: State, bank: PyTree, rows: Embeds | None) -> View:
        del bank, rows
        return View(state.slots.tokens, state.aux.next_pos)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        held, notes = state
        number, cursor = unit.number(notes.cursor, seen.tokens, notes.capacity)
        fresh = Slots(seen.tokens, jnp.minimum(priority(number, notes.seed), LAST))
        pool: Slots = append(held, fresh, count(held.tokens))
        valid = pool.tokens.modality[:, 0] != EMPTY
        bar = jnp.minimum(notes.bar, _refused(pool.priority, valid, notes.capacity, most))
        kept = valid & (pool.priority < bar)
        scores = jnp.where(kept, jnp.float32(0), -jnp.inf)
        index, found = select(scores[None], notes.capacity[None], slots=held.priority.shape[0])
        gone = jnp.sum(valid, dtype=jnp.int32) - jnp.sum(kept, dtype=jnp.int32)
        notes = notes._replace(
            next_pos=positions.keep(seen).astype(notes.next_pos.dtype),
            bar=bar,
            dropped=notes.dropped + gone,
            cursor=cursor,
        )
        return State(take(pool, index, found), notes), None

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del query
        return view(state, bank, None)

    return positions.ruled(Memory(init, view, write, recall, name=name), rule)


def _refused(
    priority: UInt[Array, "N"], valid: Bool[Array, "N"], room: Int[Array, ""], most: int | None
) -> UInt[Array, ""]:
    """Return the smallest priority that does not fit, `NONE` if all fit.

    Exact on 32-bit integers, which float32 scores would round to 24 bits.
    """
    ranked = jnp.sort(jnp.where(valid, priority, NONE))
    refused = jnp.arange(ranked.shape[0], dtype=jnp.int32) >= room
    if most is not None:
        other = jnp.concatenate([jnp.ones((1,), bool), ranked[1:] != ranked[:-1]])
        refused |= jnp.cumsum(other, dtype=jnp.int32) > most
    return jnp.min(jnp.where(refused, ranked, NONE))


def _positive(name: str, what: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} needs at least 1 of {what}, got {value}.")
