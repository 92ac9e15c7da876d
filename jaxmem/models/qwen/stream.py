"""What the `Parts` of the Qwen families share: pieces to plans, the prompt, sizes of frames.

A family adds its `Layout`, how the tokens of a piece stand in the prompt, and its encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxmem.memory.base import Embeds
from jaxmem.models.base import Fitted, MediaFormat
from jaxmem.models.hf.chat import Chat, around
from jaxmem.models.hf.family import RATE, Parts, Turn
from jaxmem.models.hf.prompt import Plan, pad, plan
from jaxmem.models.qwen.clip import Clip, Size
from jaxmem.typing import Float, Int, Params, UInt

Encode = Callable[[Params, Any], Embeds]


class Inputs(NamedTuple):
    """One chunk: where its rows come from, the frames of C pieces, and their log-mel frames."""

    plan: Plan
    frames: UInt[Any, "C F Y X 3"]
    mel: Float[Any, "J M"] | None = None


class Layout(Protocol):
    """How the tokens of a piece stand in the prompt of a family."""

    def rows(self, size: Size) -> int:
        """Return the rows of a piece, the largest number."""
        ...

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk.

        Args:
          size: (height, width) of the frames.
          pieces: that the chunk has room for, and features of.
          real: the first of them that are no padding, at least one.
          start: pieces before the chunk.
        """
        ...

    def after(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return `Embeds.after` of a question behind so many pieces."""
        ...


def preprocess(
    layout: Layout,
    hear: Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None,
    frames: np.ndarray,
    samples: np.ndarray,
    valid: np.ndarray,
    past: np.ndarray,
    start: int,
) -> Inputs:
    """Return a chunk's inputs, its plan padded to a fixed number of rows; see `Model.pack`.

    Args:
      layout: of the family.
      hear: (samples, past, start) -> log-mel frames; None: sound is not used.
      frames: uint8 [C, F, h, w, 3].
      samples: float32 [C, n].
      valid: [C] which pieces are real.
      past: float32, the samples before the chunk.
      start: pieces before the chunk.
    """
    size, pieces, real = (frames.shape[2], frames.shape[3]), len(valid), int(valid.sum())
    part = plan([], np.zeros((0, 3)), 0, {})
    if real:
        part = layout.plan(size, pieces, real, start)
    part = pad(part, pieces * layout.rows(size))
    return Inputs(part, frames, None if hear is None else hear(samples, past, start))


def media_of(clip: Clip) -> MediaFormat:
    """Return the media of a model that does not hear.

    Sound is read and dropped; its rate is one of which a piece holds a whole number of samples.
    """
    rate = clip.fps.numerator * -(-RATE // clip.fps.numerator)
    return MediaFormat(float(clip.fps), clip.resized, rate, float(clip.seconds * clip.per_piece))


def fit(layout: Layout, clip: Clip, size: Size) -> Fitted:
    """Return what depends on the (height, width) of the frames.

    Raises:
      ValueError: if they are not cut into whole cells.
    """
    cell = clip.patch * clip.merge
    if len(size) != 2 or min(size) < cell or any(side % cell for side in size):
        raise ValueError(
            f"frames of this model have sides that are multiples of {cell} pixels, got {size}: "
            "resize them to model.media.size(height, width)."
        )
    frame = (size[0] // cell, size[1] // cell)
    return Fitted(layout.rows(size), partial(layout.after, size), frame)


def qwen_parts(
    family: Any,
    config: Any,
    chat: Chat,
    clip: Clip,
    layout: Layout,
    turn: Turn,
    encode: Encode,
    *,
    media: MediaFormat | None = None,
    hear: Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None = None,
    steps: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Parts:
    """Return the parts of a model whose rows are known once `fit` has the frames' size.

    Args:
      family: module with `weight_table`, `RENAMES` and `IGNORE`.
      config: of the family.
      chat: tokenizer and chat template.
      clip: pictures to patches.
      layout: pieces to rows.
      turn: a question to the ids around the video.
      encode: `Model.encode`.
      media: how video and sound are wanted; None: sound is dropped.
      hear: see `preprocess`.
      steps: `Model.text_steps`.
    """
    return Parts(
        decoder=config.decoder,
        chat=chat,
        turn=turn,
        media=media_of(clip) if media is None else media,
        preprocess=partial(preprocess, layout, hear),
        encode=encode,
        table=family.weight_table(config),
        renames=family.RENAMES,
        ignore=family.IGNORE,
        for_frames=partial(fit, layout, clip),
        text_steps=steps,
    )


def turn_of(
    chat: Chat, placeholder: int, *, drop: tuple[int, int] | None = None,
    add: tuple[int, int] | None = None,
) -> Turn:  # fmt: skip
    """Return what turns a question into the ids before and behind the video.

    Args:
      chat: of the checkpoint.
      placeholder: token that the template writes for the video.
      drop: tokens right before and behind the placeholder that are left out, where they are.
      add: tokens to put between them and the video.
    """

    def turn(question: str) -> tuple[np.ndarray, np.ndarray]:
        before, behind = around(chat, question, placeholder)
        if drop is not None and (*before[-1:], *behind[:1]) == drop:
            before, behind = before[:-1], behind[1:]
        if add is not None:
            before, behind = np.append(before, add[0]), np.insert(behind, 0, add[1])
        return before.astype(np.int32), behind.astype(np.int32)

    return turn
