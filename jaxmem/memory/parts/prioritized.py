"""`Prioritized`: memories that hold what comes first in a fixed order of preference.

Every unit of the stream (a token or a whole frame) gets a priority when it arrives, which never
changes: the newest first, some pinned, evenly spaced, at random. The memory holds the units of
smallest priority that fit. Because a unit that was turned away once always ranks after those that
were held then, the memory equals the choice among *all* tokens so far, although it sees each only
once, and it does not depend on how the stream was cut into chunks.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.select import select
from jaxmem.kv import EMPTY, KV, append, count, take
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.parts import units
from jaxmem.memory.parts.options import at_least
from jaxmem.memory.parts.positions import Reindexed, numbered, start
from jaxmem.memory.parts.units import Frame, FrameCursor, Number, Token, Unit, UnitName
from jaxmem.typing import Array, Bool, Int, Num, PyTree, UInt

NONE = np.uint32(2**32 - 1)  # the priority of an empty slot, and the bar while nothing is refused
LAST = np.uint32(2**32 - 2)  # the largest priority of a token
EDGE, STEP = np.uint32(2**31), np.uint32(2**30)
"""Past EDGE, numbers of an order by age are moved down by STEP, again and again."""
COARSE, CLOSER, CLOSEST = np.uint32(2**24), np.uint32(8), np.uint32(24)
"""Below COARSE, drawn priorities are magnified by CLOSER bits, up to CLOSEST."""


class Slots(NamedTuple):
    """Tokens, each with the priority of its unit."""

    kv: KV
    priority: UInt[Array, "S"]  # fixed at arrival


class Aux(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]  # slots that may be filled
    next_pos: Num[Array, "A"]  # where the next chunk begins
    bar: UInt[Array, ""]  # smallest priority refused so far
    dropped: Int[Array, ""]  # tokens that were written and are no longer held, at most 2^31 - 1
    cursor: PyTree  # of the unit's numbering
    seed: PyTree  # what the priorities are drawn with, None where nothing is drawn
    # Where the stream is, while frames are told apart and positions are renumbered.
    arrived: Num[Array, "A"] | None = None
    shift: UInt[Array, ""] | None = None  # bits that drawn priorities are magnified by


@dataclass(frozen=True)
class Prioritized(Reindexed):
    """Holds the units of smallest priority that fit. No attention statistics are read.

    Units are whole: the first unit that does not fit entirely is dropped with all that rank after
    it.

    Attributes:
      budget: S, slots of every layer.

    Raises:
      ValueError: if the budget is not positive.
    """

    budget: int

    def __post_init__(self):
        at_least(self.name, 1, budget=self.budget)

    @property
    def numbering(self) -> Unit:
        """Return what is counted and kept whole: single tokens, unless overridden."""
        return Token()

    @property
    def most(self) -> int | None:
        """Return how many units are held at most; None: as many as fit."""
        return None

    def priority(self, number: Number, aux: Aux) -> UInt[Array, "T"]:
        """Return the priorities of unit numbers, the smallest kept longest."""
        raise NotImplementedError(f"{self.name}.priority")

    def seed_of(self, spec: Spec, layer: int) -> PyTree:
        """Return arrays that priorities are drawn with, part of the state."""
        return None

    def rebased(self, slots: Slots, aux: Aux) -> tuple[Slots, Aux]:
        """Return slots and aux as before, in numbers that stay in range however long it goes on."""
        return slots, aux

    def init(self, spec: Spec, layer: int = 0) -> State:
        slots = self.budget
        aux = Aux(
            capacity=jnp.full((), slots, jnp.int32),
            next_pos=start(spec),
            bar=jnp.full((), NONE, jnp.uint32),
            dropped=jnp.zeros((), jnp.int32),
            cursor=self.numbering.init(spec),
            seed=self.seed_of(spec, layer),
            arrived=start(spec) if self.reindex and isinstance(self.numbering, Frame) else None,
        )
        return State(Slots(spec.empty(slots), jnp.zeros((slots,), jnp.uint32)), aux)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        held, aux = self.rebased(*state)
        arrived, fresh_kv = self._arrived(held.kv, chunk, aux)
        number, cursor = self.numbering.number(aux.cursor, fresh_kv, aux.capacity)
        fresh = Slots(chunk.kv, jnp.minimum(self.priority(number, aux), LAST))
        pool: Slots = append(held, fresh, count(held.kv))
        valid = pool.kv.modality[:, 0] != EMPTY
        kept, bar = self.kept(pool.priority, valid, aux)
        scores = jnp.where(kept, jnp.float32(0), -jnp.inf)
        index, found = select(scores[None], aux.capacity[None], slots=held.priority.shape[0])
        gone = jnp.sum(valid, dtype=jnp.int32) - jnp.sum(kept, dtype=jnp.int32)
        most = jnp.iinfo(jnp.int32).max
        aux = aux._replace(
            bar=bar,
            dropped=jnp.where(aux.dropped > most - gone, most, aux.dropped + gone),
            cursor=cursor,
            arrived=arrived,
        )
        return State(take(pool, index, found), self.moved(aux, chunk)), None

    def kept(
        self, priority: UInt[Array, "N"], valid: Bool[Array, "N"], aux: Aux
    ) -> tuple[Bool[Array, "N"], UInt[Array, ""]]:
        """Return which entries of memory and chunk, oldest first, stay; and the bar after them."""
        bar = jnp.minimum(aux.bar, _refused(priority, valid, aux.capacity, self.most))
        return valid & (priority < bar), bar

    def _arrived(self, held: KV, chunk: Chunk, aux: Aux) -> tuple[Num[Array, "A"] | None, KV]:
        """Return where the stream is after a chunk, and its tokens at the positions of arrival.

        Frames are told apart by these, whatever positions tokens are read at.
        """
        if aux.arrived is None:
            return None, chunk.kv
        _, base = numbered(held, aux.next_pos)
        moved = aux.arrived - base
        pos = chunk.kv.pos + moved[None, None].astype(chunk.kv.pos.dtype)
        return chunk.next_pos + moved.astype(chunk.next_pos.dtype), chunk.kv._replace(pos=pos)


@dataclass(frozen=True)
class ByAge(Prioritized):
    """Prefers the newest: the order of a sliding window. The first numbers may be pinned."""

    @property
    def pinned(self) -> int:
        """Return how many of the first units are held for good."""
        return 0

    def priority(self, number: Number, aux: Aux) -> UInt[Array, "T"]:
        """Return LAST - number, and the number itself of what is pinned."""
        pinned = (number.low < np.uint32(self.pinned)) & (number.high == 0)
        return jnp.where(pinned, number.low, LAST - number.low)

    def rebased(self, slots: Slots, aux: Aux) -> tuple[Slots, Aux]:
        """Move the numbers of the stream, of what is held and of the bar down by STEP."""
        frames = isinstance(aux.cursor, FrameCursor)
        low = aux.cursor.frames.low if frames else aux.cursor.low
        far = low >= EDGE

        def older(priority: UInt[Array, "*n"]) -> UInt[Array, "*n"]:
            moves = far & (priority >= STEP) & (priority <= LAST - STEP)  # neither pinned nor NONE
            return jnp.where(moves, priority + STEP, priority)

        low = jnp.where(far, low - STEP, low)
        cursor = aux.cursor
        if frames:
            cursor = cursor._replace(frames=cursor.frames._replace(low=low))
        else:
            cursor = cursor._replace(low=low)
        slots = slots._replace(priority=older(slots.priority))
        return slots, aux._replace(cursor=cursor, bar=older(aux.bar))


@dataclass(frozen=True)
class Drawn(Prioritized):
    """Prefers numbers by fractions in [0, 1), evenly spread over the stream.

    What is held lies below a bar that sinks as the stream grows, to the part of it that fits. After
    2^32 units few 32-bit values would be left below it, so priorities are bits of a longer fraction
    and are read further down whenever the bar has sunk far.

    Attributes:
      unit: what is drawn: single tokens, or whole frames.
      tokens_per_frame: vision tokens of a frame, see `units.Frame`.

    Raises:
      ValueError: if the unit is unknown.
    """

    _: KW_ONLY
    unit: UnitName = "token"
    tokens_per_frame: int | None = None

    def __post_init__(self):
        super().__post_init__()
        units.unit(self.unit, self.tokens_per_frame)

    @property
    def numbering(self) -> Unit:
        return units.unit(self.unit, self.tokens_per_frame)

    def fraction(self, number: Number, seed: PyTree) -> Number:
        """Return the first 64 bits of the fractions of unit numbers."""
        raise NotImplementedError(f"{self.name}.fraction")

    def init(self, spec: Spec, layer: int = 0) -> State:
        slots, aux = super().init(spec, layer)
        return State(slots, aux._replace(shift=jnp.zeros((), jnp.uint32)))

    def priority(self, number: Number, aux: Aux) -> UInt[Array, "T"]:
        """Return the fraction's bits from `aux.shift` on."""
        assert aux.shift is not None
        return magnified(self.fraction(number, aux.seed), aux.shift)

    def rebased(self, slots: Slots, aux: Aux) -> tuple[Slots, Aux]:
        """Magnify what is held and the bar, all of them small, if the bar has sunk far.

        The bits that follow of what is held are taken as 0: with at least 24 left, that is no
        matter.
        """
        assert aux.shift is not None
        more = jnp.where((aux.bar < COARSE) & (aux.shift < CLOSEST), CLOSER, np.uint32(0))
        slots = slots._replace(priority=slots.priority << more)
        return slots, aux._replace(bar=aux.bar << more, shift=aux.shift + more)


def magnified(fraction: Number, shift: UInt[Array, ""]) -> UInt[Array, "*n"]:
    """Return the 32 bits of 64-bit fractions after the first `shift` (0 to 31).

    Fractions that do not begin with so many zeros lie far above the bar; they become LAST.
    """
    # Two steps: a shift by 32 is undefined.
    below = lambda x: (x >> np.uint32(1)) >> (np.uint32(31) - shift)
    bits = (fraction.high << shift) | below(fraction.low)
    return jnp.where(below(fraction.high) > 0, LAST, bits)


def _refused(
    priority: UInt[Array, "N"], valid: Bool[Array, "N"], capacity: Int[Array, ""], most: int | None
) -> UInt[Array, ""]:
    """Return the smallest priority that does not fit, `NONE` if all fit.

    Exact on 32-bit integers, which float32 scores would round to 24 bits.
    """
    ranked = jnp.sort(jnp.where(valid, priority, NONE))
    refused = jnp.arange(ranked.shape[0], dtype=jnp.int32) >= capacity
    if most is not None:
        other = jnp.concatenate([jnp.ones((1,), bool), ranked[1:] != ranked[:-1]])
        refused |= jnp.cumsum(other, dtype=jnp.int32) > most
    return jnp.min(jnp.where(refused, ranked, NONE))
