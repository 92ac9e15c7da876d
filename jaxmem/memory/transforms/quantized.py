"""`Quantized`: any memory with its keys and values stored in 8 or 4 bits.

Keys have a few channels that are large in every token, values have large tokens: keys are rounded
on a grid per channel, values on a grid per token (KIVI, arXiv 2402.02750, section 3). Keys are
stored before rotation, where their channels are steadiest.

The policy itself sees floats. It reads and writes the state through this pair of functions only,
so every memory can be quantised, and what it keeps is rounded on the grid it is already on: a token
that stays for hours is not rounded again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.base import Spec, State, kv_of
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.parts.options import one_of
from jaxmem.memory.transforms.around import Around
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree, UInt


class Packed(NamedTuple):
    """Slots of a quantised memory (a stack of layers adds a leading axis everywhere)."""

    kv: KV  # k, v: uint8 [S, G, D * bits / 8]
    ends: Float[Array, "S G 2"]  # of a token's values: the smallest and the largest
    rest: PyTree  # the policy's own slots without their tokens


class Aux(NamedTuple):
    """The policy's numbers, and the range that each channel of the keys has had so far."""

    capacity: Int[Array, ""]
    next_pos: Num[Array, "A"]
    inner: PyTree
    low: Float[Array, "G D"]
    high: Float[Array, "G D"]
    like: Float[Array, ""]  # zero, of the dtype that the policy sees: codes have none


@dataclass(frozen=True)
class Quantized(Around):
    """Any memory of keys and values with these stored in `bits` bits.

    A channel's range only ever grows. When it does, the keys that are held move to the new grid
    and are rounded once more; records become rare in a long stream. What a memory evicts to a bank,
    and what it holds beside its slots, stays as it is.

    Attributes:
      memory: any but one of features.
      bits: 8 or 4; with 4 bits two channels share a byte.

    Raises:
      ValueError: for other numbers of bits, a memory of features, or (from `init`) an odd head size
        with 4 bits.
    """

    bits: int = 8

    def __post_init__(self):
        super().__post_init__()
        one_of("Quantized", (4, 8), bits=self.bits)

    @property
    def name(self) -> str:
        return f"{self.memory.name}_int{self.bits}"

    def inner(self, state: State) -> State:
        return unpack(state, self.bits)

    def init(self, spec: Spec, layer: int = 0) -> State:
        if self.bits == 4 and spec.head_dim % 2:
            raise ValueError(
                f"4 bits store two channels in a byte, but head_dim is {spec.head_dim}; use bits=8."
            )
        state = self.memory.init(spec, layer)
        k = kv_of(state.slots).k
        channels = (*k.shape[:-3], *k.shape[-2:])  # without S
        low, high = jnp.full(channels, jnp.inf), jnp.full(channels, -jnp.inf)
        like = jnp.zeros(k.shape[:-3], k.dtype)
        aux = Aux(state.aux.capacity, state.aux.next_pos, None, low, high, like)
        return pack(state, aux, self.bits)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, Any]:
        after, evicted = self.memory.write(spec, self.inner(state), chunk)
        return pack(after, state.aux, self.bits), evicted


def pack(state: State, aux: Aux, bits: int) -> State:
    """Return a policy's state with keys and values as codes, and the keys' ranges widened."""
    kv = kv_of(state.slots)
    real = jnp.broadcast_to(kvs.valid(kv)[..., None], kv.k.shape)
    low, high = _widened(aux, kv.k.astype(jnp.float32), real, bits)
    # In the values' own dtype both ends are exact: no range is too large for them, and no offset.
    ends = jnp.stack([jnp.min(kv.v, axis=-1), jnp.max(kv.v, axis=-1)], axis=-1)
    ends = jnp.where(real[..., :1], ends, 0)
    codes = kv._replace(
        k=_codes(kv.k, *_of_channels(low, high), real, bits),
        v=_codes(kv.v, ends[..., :1], ends[..., 1:], real, bits),
    )
    rest = None if isinstance(state.slots, KV) else state.slots._replace(kv=None)
    own = state.aux
    after = Aux(own.capacity, own.next_pos, own, low, high, aux.like)
    return State(Packed(codes, ends, rest), after)


def unpack(state: State, bits: int) -> State:
    """Return the state that the policy knows, with keys and values as numbers."""
    packed, aux = state.slots, state.aux
    real = kvs.valid(packed.kv)[..., None]
    k = _numbers(packed.kv.k, *_of_channels(aux.low, aux.high), real, bits)
    v = _numbers(packed.kv.v, packed.ends[..., :1], packed.ends[..., 1:], real, bits)
    kv = packed.kv._replace(k=k.astype(aux.like.dtype), v=v.astype(aux.like.dtype))
    slots = kv if packed.rest is None else packed.rest._replace(kv=kv)
    return State(slots, aux.inner)


def _widened(
    aux: Aux, k: Float[Array, "*S G D"], real: Bool[Array, "*S G D"], bits: int
) -> tuple[Array, Array]:
    """Return the channels' ranges with these keys in them.

    A hundredth of a step does not count: it costs less than moving all keys to another grid.
    """
    low, high = aux.low, aux.high
    slack = 0.02 * jnp.squeeze(_half_step(*_of_channels(low, high), bits), -3)
    least = jnp.min(jnp.where(real, k, jnp.inf), axis=-3)
    most = jnp.max(jnp.where(real, k, -jnp.inf), axis=-3)
    low = jnp.where(least < low - slack, least, low)
    return low, jnp.where(most > high + slack, most, high)


def _of_channels(low: Array, high: Array) -> tuple[Array, Array]:
    """Return the ends of every channel's grid, with a slot axis of 1; 0 before the first key."""
    some = high >= low
    low, high = jnp.where(some, low, 0.0), jnp.where(some, high, 0.0)
    return jnp.expand_dims(low, -3), jnp.expand_dims(high, -3)


def _half_step(low: Array, high: Array, bits: int) -> Float[Array, "*n"]:
    """Return half the step of a grid: the step of large numbers of unlike sign may overflow."""
    low, high = low.astype(jnp.float32), high.astype(jnp.float32)
    return (high * 0.5 - low * 0.5) / (2**bits - 1)


def _codes(
    x: Float[Array, "*S G D"], low: Array, high: Array, real: Bool[Array, "*S G D"], bits: int
) -> UInt[Array, "*S G B"]:
    """Return the index of the grid point nearest to each number; 0 for slots that hold nothing."""
    step = jnp.broadcast_to(_half_step(low, high, bits), x.shape)
    low = jnp.broadcast_to(low.astype(jnp.float32), x.shape)
    level = jnp.round((x.astype(jnp.float32) * 0.5 - low * 0.5) / jnp.where(step > 0, step, 1.0))
    level = jnp.where(real, jnp.clip(level, 0, 2**bits - 1), 0.0).astype(jnp.uint8)
    return level if bits == 8 else level[..., 0::2] | (level[..., 1::2] << 4)


def _numbers(
    codes: UInt[Array, "*S G B"], low: Array, high: Array, real: Array, bits: int
) -> Float[Array, "*S G D"]:
    """Return the grid points of codes, both ends exactly: the grid is found again from them."""
    if bits == 4:
        pair = jnp.stack([codes & 15, codes >> 4], axis=-1)
        codes = pair.reshape(*codes.shape[:-1], -1)
    step = jnp.broadcast_to(_half_step(low, high, bits), codes.shape)
    low, high = (jnp.broadcast_to(end.astype(jnp.float32), codes.shape) for end in (low, high))
    x = 2.0 * (low * 0.5 + step * codes.astype(jnp.float32))
    x = jnp.where(codes == 2**bits - 1, high, x)
    return jnp.where(jnp.broadcast_to(real, codes.shape), x, 0.0)
