"""What a memory counts: single tokens, or whole frames with the audio and text that go with them.

A unit numbers what arrives. Token numbers count valid tokens, so neither the padding of a chunk nor
the gaps in `KV.index` reach them. Frame numbers are the same for every token of a frame, wherever
chunks were cut. Numbers have 64 bits in two words, so they never wrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kv import AUDIO, EMPTY, KV, SUMMARY, TEXT, VISION
from jaxmem.memory.base import Spec
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.typing import Array, Bool, Int, Num, UInt

UnitName = Literal["token", "frame"]


class Number(NamedTuple):
    """An unsigned number of 64 bits; JAX has 32 unless it is told otherwise."""

    low: UInt[Array, "*n"]
    high: UInt[Array, "*n"]

    def plus(self, more: UInt[Array, "*n"]) -> Number:
        """Return the sum with a number of 32 bits."""
        low = self.low + more
        return Number(low, self.high + (low < self.low).astype(jnp.uint32))


def zero() -> Number:
    """Return 0."""
    return Number(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.uint32))


@dataclass(frozen=True)
class Token:
    """The unit of single tokens: the i-th valid token of the stream has number i."""

    def init(self, spec: Spec) -> Number:
        """Return the cursor of a stream that has not begun."""
        return zero()

    def number(self, arrived: Number, fresh: KV, capacity: Array) -> tuple[Number, Number]:
        """Return the numbers of a chunk's tokens, and the cursor after it."""
        row = jnp.arange(fresh.modality.shape[0], dtype=jnp.uint32)
        fresh_tokens = jnp.sum(fresh.modality[:, 0] != EMPTY, dtype=jnp.uint32)
        return arrived.plus(row), arrived.plus(fresh_tokens)


class FrameCursor(NamedTuple):
    """Where the stream is inside a frame, after its last token."""

    frames: Number  # frames begun so far
    modality: Int[Array, ""]  # of the last token, EMPTY before the first
    time: Num[Array, ""]  # of the last token, on position axis 0, since its chunk began
    vision: Int[Array, ""]  # vision tokens since the frame began
    size: Int[Array, ""]  # tokens since the frame began


@dataclass(frozen=True)
class Frame:
    """The unit of whole frames.

    A frame begins

    * at a text token after one that is not text: text such as a time stamp belongs to the frame
      that follows it;
    * at a vision token after audio: audio belongs to the frame before it;
    * at a vision token whose time (position axis 0) differs from that of the vision token before
      it, where positions have several axes;
    * at a vision token after `tokens` vision tokens, if given: needed where frames follow each
      other without text or audio between and positions have one axis;
    * at the latest where it would outgrow the memory, so that audio without pictures or an
      oversized frame is cut rather than never kept.

    Attributes:
      tokens: vision tokens of one frame, or None to go by modalities and times alone.
    """

    tokens: int | None = None

    def __post_init__(self):
        at_least("a frame", 1, tokens_per_frame=self.tokens)

    def init(self, spec: Spec) -> FrameCursor:
        """Return the cursor of a stream that has not begun."""
        none = jnp.zeros((), jnp.int32)
        return FrameCursor(
            frames=zero(),
            modality=jnp.full((), EMPTY, jnp.int8),
            time=jnp.zeros((), spec.pos_dtype),
            vision=none,
            size=none,
        )

    def number(self, cursor: FrameCursor, fresh: KV, capacity: Array) -> tuple[Number, FrameCursor]:
        """Return the number of the frame of each token, and the cursor after the chunk."""
        modality, time = fresh.modality[:, 0], fresh.pos[:, 0, 0].astype(cursor.time.dtype)
        valid, image = modality != EMPTY, modality == VISION
        begins = valid & _begins(modality, time, cursor, timed=fresh.pos.shape[-1] > 1)
        vision = jnp.zeros_like(modality, jnp.int32)
        if self.tokens is not None:
            begins, vision = _cut(begins, image, self.tokens, cursor.vision)
        begins, size = _cut(begins, valid, jnp.maximum(capacity, 1), cursor.size)
        frames = cursor.frames.plus(jnp.cumsum(begins, dtype=jnp.uint32))
        rows = FrameCursor(frames, modality, time, vision, size)

        n = jnp.sum(valid, dtype=jnp.int32)
        last = jax.tree.map(lambda x: x[jnp.maximum(n - 1, 0)], rows)
        cursor = jax.tree.map(lambda new, old: jnp.where(n > 0, new, old), last, cursor)
        minus_one = jnp.uint32(2**32 - 1)
        before = Number(frames.low + minus_one, frames.high - (frames.low == 0).astype(jnp.uint32))
        return before, cursor


Unit = Token | Frame


def unit(name: UnitName, tokens_per_frame: int | None = None) -> Unit:
    """Return the unit of that name.

    Raises:
      ValueError: for another name, or if `tokens_per_frame` comes with unit "token".
    """
    one_of("a memory of units", ("token", "frame"), unit=name)
    if name == "token":
        if tokens_per_frame is not None:
            raise ValueError(
                f'tokens_per_frame={tokens_per_frame} says where frames end; pass unit="frame" '
                'with it, or leave it out with unit="token".'
            )
        return Token()
    return Frame(tokens_per_frame)


def _begins(modality: Array, time: Array, cursor: FrameCursor, timed: bool) -> Bool[Array, "T"]:
    """Return where modalities and times alone say that a frame begins."""
    before = jnp.concatenate([cursor.modality[None], modality[:-1]])
    time_before = jnp.concatenate([cursor.time[None], time[:-1]])
    image = modality == VISION
    begins = before == EMPTY
    begins |= (modality == TEXT) & (before != TEXT)
    begins |= image & ((before == AUDIO) | (before == SUMMARY))
    if timed:
        begins |= image & (before == VISION) & (time != time_before)
    return begins


def _cut(
    begins: Bool[Array, "T"], counted: Bool[Array, "T"], limit: int | Array, before: Array
) -> tuple[Bool[Array, "T"], Int[Array, "T"]]:
    """Begin a new frame also after every `limit` counted rows of a frame.

    `before` counts the rows of the frame that the first row continues, at most `limit`.

    Returns:
      The rows that begin a frame, and for each row the counted rows of its frame so far.
    """
    total = before + jnp.cumsum(counted, dtype=jnp.int32)
    earlier = total - counted
    # Counts never decrease, so the running maximum is the count where the latest frame began.
    at_start = jax.lax.cummax(jnp.where(begins, earlier, 0))
    inside = earlier - at_start
    begins = begins | (counted & (inside > 0) & (inside % limit == 0))
    so_far = total - at_start
    # 1..limit rather than 0..limit-1: a full frame must be told from one that has not begun.
    return begins, jnp.where(so_far > 0, (so_far - 1) % limit + 1, 0)
