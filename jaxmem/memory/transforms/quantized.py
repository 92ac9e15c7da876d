"""`quantized`: any memory with its keys and values stored in 8 or 4 bits.

Keys have a few channels that are large in every token, values have large tokens: keys are rounded
on a grid per channel, values on a grid per token (KIVI, arXiv 2402.02750, section 3). Keys are
stored before rotation, where their channels are steadiest.

The policy itself sees floats. It reads and writes the state through this pair of functions only,
so every memory can be quantised, and what it keeps is rounded on the grid it is already on: a token
that stays for hours is not rounded again and again.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State, View, held, kv_of
from jaxmem.typing import Array, Bool, Float, Int, PyTree, UInt

STEP = jnp.float16
"""Of the grids of values; the keys' grids are few and stay float32."""


class Packed(NamedTuple):
    """Slots of a quantised memory (a stack of layers adds a leading axis everywhere)."""

    tokens: KV  # k, v: uint8 [S, G, D * bits / 8]
    grid: Float[Array, "S G 2"]  # of a token's values: the smallest, and the step
    rest: PyTree  # the policy's own slots without their tokens


class Notes(NamedTuple):
    """The policy's notes, and the range that each channel of the keys has had so far."""

    capacity: Int[Array, ""]
    inner: PyTree
    low: Float[Array, "G D"]
    high: Float[Array, "G D"]
    like: Float[Array, ""]  # zero, of the dtype that the policy sees: codes have none


def quantized(memory: Memory, bits: int = 8) -> Memory:
    """Return the memory with its keys and values stored in `bits` bits.

    A channel's range only ever grows. When it does, the keys that are held move to the new grid
    and are rounded once more; records become rare in a long stream. What a memory spills to a bank,
    and what it holds in its notes, stays as it is.

    Args:
      memory: of scope "layer" or "stack".
      bits: 8 or 4; with 4 bits two channels share a byte.

    Raises:
      ValueError: for other numbers of bits, a memory of scope "feature", or (from `init`) an odd
        head size with 4 bits.
    """
    if bits not in (4, 8):
        raise ValueError(f"keys and values are stored in 8 or 4 bits, got bits={bits}.")
    if memory.scope == "feature":
        raise ValueError(
            f"memory {memory.name!r} keeps features, not keys and values: there is nothing to "
            "quantise; pass a memory of scope 'layer' or 'stack'."
        )

    def init(spec: Spec) -> State:
        if bits == 4 and spec.head_dim % 2:
            raise ValueError(
                f"4 bits store two channels in a byte, but head_dim is {spec.head_dim}; use bits=8."
            )
        state = memory.init(spec)
        k = kv_of(state.slots).k
        channels = (*k.shape[:-3], *k.shape[-2:])  # without S
        low, high = jnp.full(channels, jnp.inf), jnp.full(channels, -jnp.inf)
        like = jnp.zeros(k.shape[:-3], k.dtype)
        return pack(state, Notes(state.aux.capacity, None, low, high, like), bits)

    def view(state: State, bank: PyTree, rows: Embeds) -> View:
        return memory.view(unpack(state, bits), bank, rows)

    def write(state: State, seen: Chunk) -> tuple[State, PyTree]:
        after, spill = memory.write(unpack(state, bits), seen)
        return pack(after, state.aux, bits), spill

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        return memory.recall(unpack(state, bits), bank, query)

    def numbers(state: State) -> KV:
        return held(memory, unpack(state, bits))

    name = f"{memory.name}_int{bits}"
    functions = {"init": init, "view": view, "write": write, "recall": recall, "held": numbers}
    return memory._replace(name=name, **functions)


def pack(state: State, notes: Notes, bits: int) -> State:
    """Return a policy's state with keys and values as codes, and the keys' ranges widened."""
    tokens = kv_of(state.slots)
    real = jnp.broadcast_to(tk.valid(tokens)[..., None], tokens.k.shape)
    k, v = tokens.k.astype(jnp.float32), tokens.v.astype(jnp.float32)
    low, high = _widened(notes, k, real, bits)
    first, step = _channel_grid(low, high, bits)
    least = jnp.min(v, axis=-1).astype(STEP)
    rise = ((jnp.max(v, axis=-1) - least.astype(jnp.float32)) / (2**bits - 1)).astype(STEP)
    grid = jnp.where(real[..., :1], jnp.stack([least, rise], axis=-1), jnp.zeros((), STEP))
    codes = tokens._replace(
        k=_codes(k, first, step, real, bits),
        v=_codes(v, grid[..., :1], grid[..., 1:], real, bits),
    )
    rest = None if isinstance(state.slots, KV) else state.slots._replace(tokens=None)
    after = Notes(state.aux.capacity, state.aux, low, high, notes.like)
    return State(Packed(codes, grid, rest), after)


def unpack(state: State, bits: int) -> State:
    """Return the state that the policy knows, with keys and values as numbers."""
    packed, notes = state.slots, state.aux
    real = tk.valid(packed.tokens)[..., None]
    first, step = _channel_grid(notes.low, notes.high, bits)
    k = _values(packed.tokens.k, first, step, real, bits)
    v = _values(packed.tokens.v, packed.grid[..., :1], packed.grid[..., 1:], real, bits)
    tokens = packed.tokens._replace(k=k.astype(notes.like.dtype), v=v.astype(notes.like.dtype))
    slots = tokens if packed.rest is None else packed.rest._replace(tokens=tokens)
    return State(slots, notes.inner)


def _widened(
    notes: Notes, k: Float[Array, "*S G D"], real: Bool[Array, "*S G D"], bits: int
) -> tuple[Array, Array]:
    """Return the channels' ranges with these keys in them.

    A hundredth of a step does not count: what stands on the end of a grid comes back from its code
    with a rounding error, and would push the end outwards with every chunk of an endless stream.
    """
    low, high = notes.low, notes.high
    slack = 0.01 * jnp.squeeze(_channel_grid(low, high, bits)[1], -3)
    least = jnp.min(jnp.where(real, k, jnp.inf), axis=-3)
    most = jnp.max(jnp.where(real, k, -jnp.inf), axis=-3)
    low = jnp.where(least < low - slack, least, low)
    return low, jnp.where(most > high + slack, most, high)


def _channel_grid(low: Array, high: Array, bits: int) -> tuple[Array, Array]:
    """Return the first point and the step of every channel's grid, with a slot axis of 1."""
    some = high >= low  # nothing has been seen before the first chunk
    first = jnp.where(some, low, 0.0)
    step = jnp.where(some, high - low, 0.0) / (2**bits - 1)
    return jnp.expand_dims(first, -3), jnp.expand_dims(step, -3)


def _codes(
    x: Float[Array, "*S G D"], first: Array, step: Array, real: Bool[Array, "*S G D"], bits: int
) -> UInt[Array, "*S G B"]:
    first, step = (jnp.broadcast_to(a.astype(jnp.float32), x.shape) for a in (first, step))
    level = jnp.round((x - first) / jnp.where(step > 0, step, 1.0))
    level = jnp.where(real, jnp.clip(level, 0, 2**bits - 1), 0.0).astype(jnp.uint8)
    return level if bits == 8 else level[..., 0::2] | (level[..., 1::2] << 4)


def _values(
    codes: UInt[Array, "*S G B"], first: Array, step: Array, real: Array, bits: int
) -> Float[Array, "*S G D"]:
    if bits == 4:
        pair = jnp.stack([codes & 15, codes >> 4], axis=-1)
        codes = pair.reshape(*codes.shape[:-1], -1)
    first, step = (jnp.broadcast_to(a.astype(jnp.float32), codes.shape) for a in (first, step))
    level = first + step * codes.astype(jnp.float32)
    return jnp.where(jnp.broadcast_to(real, codes.shape), level, 0.0)
