"""What a memory counts: single tokens, or whole frames with the sound and text that go with them.

A `Unit` numbers what arrives. Token numbers count valid tokens, so neither the padding of a chunk
nor the gaps in `KV.order` reach them. Frame numbers are the same for every token of a frame,
wherever chunks were cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kv import AUDIO, EMPTY, KV, SUMMARY, TEXT, VISION
from jaxmem.memory.base import Spec
from jaxmem.typing import Array, Bool, Int, Num, PyTree, UInt

UnitName = Literal["token", "frame"]


class Unit(NamedTuple):
    """A numbering of what arrives, as two pure functions over a cursor of fixed shape."""

    init: Callable[[Spec], PyTree]
    number: Callable[[PyTree, KV, Array], tuple[UInt[Array, "T"], PyTree]]  # (.., .., room)


class FrameCursor(NamedTuple):
    """Where the stream stands inside a frame, after its last token."""

    frames: UInt[Array, ""]  # frames begun so far
    modality: Int[Array, ""]  # of the last token, EMPTY before the first
    time: Num[Array, ""]  # position axis 0 of the last token
    vision: Int[Array, ""]  # vision tokens since the frame began
    size: Int[Array, ""]  # tokens since the frame began


def token() -> Unit:
    """Return the unit of single tokens: the i-th valid token of the stream has number i."""

    def init(spec: Spec) -> UInt[Array, ""]:
        del spec
        return jnp.zeros((), jnp.uint32)

    def number(arrived: Array, fresh: KV, room: Array) -> tuple[Array, Array]:
        del room
        index = jnp.arange(fresh.modality.shape[0], dtype=jnp.uint32)
        return arrived + index, arrived + jnp.sum(fresh.modality[:, 0] != EMPTY, dtype=jnp.uint32)

    return Unit(init, number)


def frame(tokens_per_frame: int | None = None) -> Unit:
    """Return the unit of whole frames.

    A frame begins

    * at a text token behind one that is not text: text such as a time stamp belongs to the frame
      that follows it;
    * at a vision token behind sound: sound belongs to the frame before it;
    * at a vision token whose time (position axis 0) differs from that of the vision token before
      it, where positions have several axes;
    * at a vision token behind `tokens_per_frame` vision tokens, if given: needed where frames
      follow each other without text or sound between and positions have one axis;
    * at the latest where it would outgrow the memory, so that sound without pictures or an
      oversized frame is cut rather than never kept.

    Args:
      tokens_per_frame: vision tokens of one frame, or None to go by kinds and times alone.

    Raises:
      ValueError: if `tokens_per_frame` is not positive.
    """
    if tokens_per_frame is not None and tokens_per_frame < 1:
        raise ValueError(f"tokens_per_frame must be positive, got {tokens_per_frame}.")

    def init(spec: Spec) -> FrameCursor:
        zero = jnp.zeros((), jnp.int32)
        return FrameCursor(
            frames=jnp.zeros((), jnp.uint32),
            modality=jnp.full((), EMPTY, jnp.int8),
            time=jnp.zeros((), spec.pos_dtype),
            vision=zero,
            size=zero,
        )

    def number(cursor: FrameCursor, fresh: KV, room: Array) -> tuple[Array, FrameCursor]:
        kind, time = fresh.modality[:, 0], fresh.pos[:, 0, 0].astype(cursor.time.dtype)
        valid, image = kind != EMPTY, kind == VISION
        begins = valid & _begins(kind, time, cursor, timed=fresh.pos.shape[-1] > 1)
        vision = jnp.zeros_like(kind, jnp.int32)
        if tokens_per_frame is not None:
            begins, vision = _cut(begins, image, tokens_per_frame, cursor.vision)
        begins, size = _cut(begins, valid, jnp.maximum(room, 1), cursor.size)
        frames = cursor.frames + jnp.cumsum(begins, dtype=jnp.uint32)
        after = FrameCursor(frames, kind, time, vision, size)

        n = jnp.sum(valid, dtype=jnp.int32)
        last = jax.tree.map(lambda rows: rows[jnp.maximum(n - 1, 0)], after)
        cursor = jax.tree.map(lambda new, old: jnp.where(n > 0, new, old), last, cursor)
        return frames - jnp.uint32(1), cursor

    return Unit(init, number)


def unit(name: UnitName, tokens_per_frame: int | None = None) -> Unit:
    """Return the unit of that name.

    Raises:
      ValueError: for another name, or if `tokens_per_frame` comes with unit "token".
    """
    if name not in ("token", "frame"):
        raise ValueError(f'unit must be "token" or "frame", got {name!r}.')
    if name == "token":
        if tokens_per_frame is not None:
            raise ValueError(
                f'tokens_per_frame={tokens_per_frame} says where frames end; pass unit="frame" '
                'with it, or leave it out with unit="token".'
            )
        return token()
    return frame(tokens_per_frame)


def _begins(kind: Array, time: Array, cursor: FrameCursor, timed: bool) -> Bool[Array, "T"]:
    """Return where kinds and times alone say that a frame begins."""
    kind_before = jnp.concatenate([cursor.modality[None], kind[:-1]])
    time_before = jnp.concatenate([cursor.time[None], time[:-1]])
    image = kind == VISION
    begins = kind_before == EMPTY
    begins |= (kind == TEXT) & (kind_before != TEXT)
    begins |= image & ((kind_before == AUDIO) | (kind_before == SUMMARY))
    if timed:
        begins |= image & (kind_before == VISION) & (time != time_before)
    return begins


def _cut(
    begins: Bool[Array, "T"], counted: Bool[Array, "T"], limit: int | Array, before: Array
) -> tuple[Bool[Array, "T"], Int[Array, "T"]]:
    """Begin a new frame also behind every `limit` counted rows of a frame.

    Args:
      begins: rows that begin a frame.
      counted: rows that count.
      limit: counted rows of a frame at most.
      before: counted rows of the frame that the first row continues, at most `limit`.

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
