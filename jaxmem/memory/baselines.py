"""Baselines that look at nothing but the order of arrival."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Spec
from jaxmem.memory.parts import units
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.memory.parts.prioritized import NONE, Aux, ByAge, Drawn
from jaxmem.memory.parts.units import Number, Unit
from jaxmem.typing import Array, Bool, PyTree, UInt

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, rounded to the nearest odd number


@dataclass(frozen=True)
class Full(ByAge):
    """Holds everything, up to a capacity: the exact reference for every other memory.

    Up to the capacity a stream is the same as attention over everything seen. Beyond it the newest
    tokens win, and `state.aux.dropped` counts those that were lost: 0 means exact.

    Attributes:
      budget: S, slots of every layer.
      reindex: number what is held without gaps.

    Raises:
      ValueError: if the budget is not positive.
    """


@dataclass(frozen=True)
class Recent(ByAge):
    """Holds the first `sinks` tokens and the newest of the rest.

    The first tokens of a sequence draw attention whatever they mean, and dropping them breaks the
    distribution that the model was trained with (StreamingLLM, arXiv 2309.17453, section 3).

    Attributes:
      budget: S, slots of every layer, sinks included.
      sinks: tokens held from the start of the stream; 0 for a plain window. At most budget - 1 of
        them are held, so that something follows the stream.
      reindex: number what is held without gaps.

    Raises:
      ValueError: if the budget has no slot, or `sinks` is negative.
    """

    _: KW_ONLY
    sinks: int = 4

    def __post_init__(self):
        super().__post_init__()
        at_least(self.name, 0, sinks=self.sinks)

    @property
    def pinned(self) -> int:
        return min(self.sinks, self.budget - 1)


@dataclass(frozen=True)
class StreamingLLM(Recent):
    """StreamingLLM (arXiv 2309.17453): attention sinks, a window, and positions inside the cache.

    A token is read at its index in the cache (after the prefix), not at the position it arrived
    with (section 3.2): no distance exceeds the budget, and the time that has passed is forgotten.
    The released code also caches keys before rotation for that. It evicts *before* a chunk so that
    memory and chunk fit into the cache together; here the chunk comes on top of the budget.

    Attributes:
      budget: S, slots of every layer, sinks included.
      sinks: tokens held from the start of the stream; 4 as published.
      reindex: True as published; False is `Recent`.
    """

    _: KW_ONLY
    reindex: bool = True


@dataclass(frozen=True)
class LastFrames(ByAge):
    """Holds the last whole frames and nothing else, a baseline that is hard to beat.

    A frame comes with the text before it and the audio after it, see `units.Frame`; text and audio
    stay exactly as long as their frame does. A frame that does not fit entirely is dropped. The
    frame that is arriving counts as one of the last.

    Attributes:
      budget: S, slots of every layer.
      frames: frames held at most; None for as many as fit.
      tokens_per_frame: vision tokens of a frame. Needed where frames follow each other without text
        or audio between and positions have one axis.
      reindex: number what is held without gaps.

    Raises:
      ValueError: if a size is not positive.
    """

    _: KW_ONLY
    frames: int | None = None
    tokens_per_frame: int | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(self.name, 1, frames=self.frames)
        units.Frame(self.tokens_per_frame)

    @property
    def numbering(self) -> Unit:
        return units.Frame(self.tokens_per_frame)

    @property
    def most(self) -> int | None:
        return self.frames


@dataclass(frozen=True)
class Uniform(Drawn):
    """Holds tokens or frames evenly spaced over everything seen, however long the stream is.

    It holds the numbers whose Weyl value lies below a bar that sinks as the stream grows. By the
    three-distance theorem (Sos 1958, Swierczkowski 1959) such numbers have at most three different
    gaps; for the golden ratio they are consecutive Fibonacci numbers, so the longest is at most
    three times the shortest. The bar only sinks, so a token that was dropped is never missed.

    Attributes:
      budget: S, slots of every layer.
      unit: "token" spaces single tokens and fills every slot; "frame" spaces whole frames with
        their text and audio, as uniform frame sampling does, and may leave slots empty.
      tokens_per_frame: vision tokens of a frame, see `units.Frame`.
      reindex: number what is held without gaps.

    Raises:
      ValueError: if the budget is not positive or the unit is unknown.
    """

    def fraction(self, number: Number, seed: PyTree) -> Number:
        return Number(number.low * np.uint32(GOLDEN & 0xFFFFFFFF), weyl(number))


@dataclass(frozen=True)
class RandomSample(Drawn):
    """Holds a random sample of everything seen so far.

    Each number draws random bits from the seed's key folded with that number. As a reservoir the
    smallest are held: every subset of the stream is equally likely at every length (up to ties of
    draws, of which 24 to 32 bits are compared). The draw depends on the arrival number alone, not
    on chunks or padding. The key is part of the state, so a state that is copied or restored goes
    on identically.

    Attributes:
      budget: S, slots of every layer.
      seed: of the draw.
      unit: sample single tokens or whole frames.
      tokens_per_frame: vision tokens of a frame, see `units.Frame`.
      per_layer: draw independently in each layer instead of holding the same tokens in all.
      draw: "reservoir" holds all ages alike; "replace": a new token takes the slot of a random one,
        so that ages fall off geometrically, the mean age being the budget (as in MAMBA's bank); for
        single tokens.
      reindex: number what is held without gaps.

    Raises:
      ValueError: if the budget is not positive, the unit or the draw is unknown, or frames are to
        be replaced.
    """

    _: KW_ONLY
    seed: int = 0
    per_layer: bool = False
    draw: Literal["reservoir", "replace"] = "reservoir"

    def __post_init__(self):
        super().__post_init__()
        one_of(self.name, ("reservoir", "replace"), draw=self.draw)
        if self.draw == "replace" and self.unit != "token":
            raise ValueError(
                f'{self.name} replaces single tokens, got draw="replace" with unit="{self.unit}": '
                'give unit="token", or draw="reservoir".'
            )

    def priority(self, number: Number, aux: Aux) -> UInt[Array, "T"]:
        """Return the fraction's bits; where tokens are replaced, the number of the slot taken."""
        if self.draw == "reservoir":
            return super().priority(number, aux)
        room = jnp.maximum(aux.capacity, 1).astype(jnp.uint32)
        fills = (number.low < room) & (number.high == 0)
        return jnp.where(fills, number.low, self.fraction(number, aux.seed).high % room)

    def kept(
        self, priority: UInt[Array, "N"], valid: Bool[Array, "N"], aux: Aux
    ) -> tuple[Bool[Array, "N"], UInt[Array, ""]]:
        if self.draw == "reservoir":
            return super().kept(priority, valid, aux)
        # A token stays until a later one takes its slot, however the stream is cut.
        entry = jnp.arange(priority.shape[0], dtype=jnp.int32)
        slot = jnp.where(valid, priority, NONE)
        last = jnp.full(priority.shape, -1, jnp.int32).at[slot].max(entry, mode="drop")
        return valid & (last[slot] == entry), aux.bar

    def seed_of(self, spec: Spec, layer: int) -> Array:
        key = jax.random.key(self.seed)
        return jax.random.key_data(jax.random.fold_in(key, layer) if self.per_layer else key)

    def fraction(self, number: Number, seed: PyTree) -> Number:
        first = jax.random.wrap_key_data(seed)

        def draw(low: Array, high: Array) -> Number:
            key = jnp.where(high == 0, first, jax.random.fold_in(first, high))
            key = jax.random.fold_in(key, low)
            bits = lambda key: jax.random.bits(key, dtype="uint32")
            return Number(bits(jax.random.fold_in(key, 1)), bits(key))

        return jax.vmap(draw)(number.low, number.high)


def weyl(number: Number) -> UInt[Array, "T"]:
    """Return the upper 32 bits of frac(number / golden ratio): a Weyl sequence in integers."""
    low, high = np.uint32(GOLDEN & 0xFFFFFFFF), np.uint32(GOLDEN >> 32)
    return _upper(number.low, low) + number.low * high + number.high * low


def _upper(a: UInt[Array, "*n"], b: np.uint32) -> UInt[Array, "*n"]:
    """Return the upper 32 bits of a product, by halves of 16 bits."""
    half, mask = np.uint32(16), np.uint32(0xFFFF)
    a0, a1, b0, b1 = a & mask, a >> half, np.uint32(b & mask), np.uint32(b >> half)
    cross = (a0 * b0 >> half) + (a1 * b0 & mask) + a0 * b1  # at most 2^32 - 1
    return a1 * b1 + (a1 * b0 >> half) + (cross >> half)
