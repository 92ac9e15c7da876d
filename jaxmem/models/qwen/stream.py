"""`QwenFamily`: what the Qwen families share; each adds how the tokens of a piece are laid out."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxmem.models.base import Fitted, MediaFormat
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import RATE, Family, Names
from jaxmem.models.hf.prompt import Plan, pad, plan
from jaxmem.models.qwen.clip import Clip, Size
from jaxmem.typing import Float, Int, UInt


class Inputs(NamedTuple):
    """One chunk: where its rows come from, the frames of C pieces, and their log-mel frames."""

    plan: Plan
    frames: UInt[Any, "C F Y X 3"]
    mel: Float[Any, "J M"] | None = None


@dataclass(frozen=True)
class QwenFamily(Family):
    """A model whose rows are known once `for_frames` has the frames' size.

    Attributes:
      module: of the family, with `weight_table`, `RENAMES` and `IGNORE`.
      clip: pictures to patches.
    """

    module: ClassVar[Any]
    clip: Clip

    @property
    def names(self) -> Names:
        """Return which tensors the checkpoint must hold."""
        own = self.module
        return Names(own.weight_table(self.config), own.RENAMES, own.IGNORE)

    @abstractmethod
    def rows(self, size: Size) -> int:
        """Return the rows of a piece, the largest number."""

    @abstractmethod
    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk.

        Args:
          size: (height, width) of the frames.
          pieces: that the chunk has room for, and features of.
          real: the first of them that are no padding, at least one.
          start: pieces before the chunk.
        """

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return `Embeds.start` of a question after so many pieces: text goes on where they end."""
        del size, pieces
        return np.zeros(3, np.int32)

    def hear(
        self, samples: np.ndarray, past: np.ndarray, start: int
    ) -> Float[np.ndarray, "J M"] | None:
        """Return the log-mel frames of pieces [C, n]; None: audio is not used."""
        del samples, past, start
        return None

    @property
    def media(self) -> MediaFormat:
        """Return the media of a model without audio input.

        Audio is read and dropped; its rate is one of which a piece holds a whole number of samples.
        """
        clip = self.clip
        rate = clip.fps.numerator * -(-RATE // clip.fps.numerator)
        seconds = float(clip.seconds * clip.per_piece)
        return MediaFormat(float(clip.fps), clip.resized, rate, seconds)

    def preprocess(
        self,
        frames: np.ndarray,
        samples: np.ndarray,
        valid: np.ndarray,
        past: np.ndarray,
        start: int,
    ) -> Inputs:
        """Return a chunk's inputs, its plan padded to a fixed number of rows.

        Args:
          frames: uint8 [C, F, h, w, 3].
          samples: float32 [C, n].
          valid: [C] which pieces are real.
          past: float32, the samples before the chunk.
          start: pieces before the chunk.
        """
        size, pieces, real = (frames.shape[2], frames.shape[3]), len(valid), int(valid.sum())
        part = plan([], np.zeros((0, 3)), 0, {})
        if real:
            part = self.plan(size, pieces, real, start)
        part = pad(part, pieces * self.rows(size))
        return Inputs(part, frames, self.hear(samples, past, start))

    def for_frames(self, size: Size) -> Fitted:
        """Return what depends on the (height, width) of the frames.

        Raises:
          ValueError: if they are not cut into whole cells.
        """
        cell = self.clip.patch * self.clip.merge
        if len(size) != 2 or min(size) < cell or any(side % cell for side in size):
            raise ValueError(
                f"frames of this model have sides that are multiples of {cell} pixels, got {size}: "
                "resize them to model.media.size(height, width)."
            )
        start = partial(self.question_start, size)
        return Fitted(self.rows(size), start, self.clip.cells(size))


def without(turn: Turn, pair: tuple[int, int]) -> Turn:
    """Return a prompt without the two tokens right around its video, where they are."""
    before, after = turn
    if (*before[-1:], *after[:1]) == pair:
        return Turn(before[:-1], after[1:])
    return turn


def between(turn: Turn, pair: tuple[int, int]) -> Turn:
    """Return a prompt with two more tokens right around its video."""
    first, last = np.array(pair, np.int32)
    return Turn(np.append(turn.before, first), np.insert(turn.after, 0, last))
