"""`QwenFamily`: what the Qwen families share; each adds how the tokens of a piece are laid out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from jaxmem.kv import AUDIO, VISION
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import Fitted, MediaFormat
from jaxmem.models.encoders.vision_parts import Grids
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import RATE, Family, Files
from jaxmem.models.hf.prompt import Ids, Plan, fill, pad, plan
from jaxmem.models.qwen.clip import FRAME_TOKENS, Clip, Size, read_clip
from jaxmem.models.qwen.config import VLConfig
from jaxmem.models.qwen.mrope import line
from jaxmem.typing import Array, Float, Int, Params, UInt

ALONE = (0, 0)
"""Size of the frames of a stream of sound alone."""
Features = tuple[Float[Array, "m E"], Float[Array, "d m E"] | None]
"""What stands at the placeholders, and what DeepStack adds there after the first d layers."""


class Inputs(NamedTuple):
    """One chunk: where its rows come from, the frames of C pieces, and their log-mel frames."""

    plan: Plan
    frames: UInt[Any, "C F Y X 3"]
    mel: Float[Any, "J M"] | None = None


@dataclass(frozen=True)
class QwenFamily(Family):
    """A model whose rows are known once `for_frames` has the frames' size."""

    whole_videos: ClassVar[bool] = False  # see `preprocessor.limits_of`
    clip: Clip  # pictures to patches

    @staticmethod
    @abstractmethod
    def read_config(config: Mapping[str, Any]) -> Any:
        """Return the model that a config.json describes."""

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0, max_pixels: int | None = None) -> Self:
        config = cls.read_config(files.config)
        more = {"max_pixels": max_pixels, "whole_videos": cls.whole_videos}
        more["released"] = None if cls.whole_videos else FRAME_TOKENS
        return cls(config, files.chat, read_clip(files.settings, config.vision, fps, **more))

    @property
    def tokens(self) -> Any:
        """Return what names the tokens `video`, `vision_start` and `vision_end`."""
        return self.config

    def rows(self, size: Size) -> int:
        """Return the rows of a piece, the largest number."""
        return self.clip.tokens(size)

    @abstractmethod
    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk.

        Args:
          size: (height, width) of the frames, or `ALONE`.
          pieces: that the chunk has room for, and features of.
          real: the first of them that are no padding, at least one.
          start: pieces before the chunk.
        """

    @abstractmethod
    def features(self, params: Params, patches: Any, grids: Grids, mel: Any) -> Features:
        """Return the features of a chunk's patches (None: sound alone), then of its log-mel."""

    def alone(self, question: str) -> Turn:
        """Return the prompt around a stream of sound alone, of a model that hears."""
        return self.turn(question)

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
    def audio_format(self) -> tuple[int, int]:
        """Return the samples per second, and those before a chunk that are needed.

        Without audio input: a rate of which a piece holds a whole number of samples.
        """
        pictures = self.clip.fps.numerator
        return pictures * -(-RATE // pictures), 0

    @property
    def media(self) -> MediaFormat:
        clip, (rate, past) = self.clip, self.audio_format
        seconds = float(clip.seconds * clip.per_piece)
        return MediaFormat(float(clip.fps), clip.resized, rate, seconds, past)

    def turn(self, question: str) -> Turn:
        tokens = self.tokens
        turn = self.chat.around(question, tokens.video)
        # With time stamps every frame brings a pair of its own.
        pair = (tokens.vision_start, tokens.vision_end)
        return without(turn, pair) if self.timestamps else turn

    def preprocess(self, frames: Any, samples: Any, valid: Any, past: Any, start: Any) -> Inputs:
        size, pieces, real = (frames.shape[2], frames.shape[3]), len(valid), int(valid.sum())
        part = plan([], np.zeros((0, 3)), 0, {})
        if real:
            part = self.plan(size, pieces, real, start)
        part = pad(part, pieces * self.rows(size))
        return Inputs(part, frames, self.hear(samples, past, start))

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        patches, grids = None, []
        if inputs.frames.size:
            patches, grid = self.clip.patches(jnp.asarray(inputs.frames))
            grids = [grid]
        tokens, deep = self.features(params, patches, grids, inputs.mel)
        return fill(params["decoder"], inputs.plan, tokens, deep)

    def for_frames(self, size: tuple[int, int]) -> Fitted:
        if tuple(size) == ALONE and self.audio_tokens:
            at_the_end = partial(QwenFamily.question_start, self, size)
            return Fitted(self.rows(size), at_the_end, turn=self.alone)
        cell = self.clip.patch * self.clip.merge
        if len(size) != 2 or min(size) < cell or any(side % cell for side in size):
            raise ValueError(
                f"frames of this model have sides that are multiples of {cell} pixels, got {size}: "
                "resize them to model.media.size(height, width)."
            )
        start = partial(self.question_start, size)
        return Fitted(self.rows(size), start, self.clip.cells(size))


def sound_plan(token: int, count: int, axes: Sequence[int] = (1, 1, 1)) -> Plan:
    """Return the plan of a chunk of sound alone; features are those of its log-mel frames.

    Args:
      token: placeholder of sound.
      count: tokens of the chunk.
      axes: how far each of them advances every axis of the position.
    """
    step = np.asarray(axes)
    return plan([token] * count, line(count) * step, count * step, {token: (AUDIO, 0)})


def without(turn: Turn, pair: tuple[int, int]) -> Turn:
    """Return a prompt without the two tokens right around its video, where they are."""
    before, after = turn
    if (*before[-1:], *after[:1]) == pair:
        return Turn(before[:-1], after[1:])
    return turn


def vision_plan(
    config: VLConfig,
    ids: Ids,
    pos: Int[np.ndarray, "T 3"],
    advance: Sequence[int] | int,
    images: Grids = (),
) -> Plan:
    """Return a plan whose features are those of all pictures, then those of all videos.

    Arguments are those of `prompt.plan`, and the (1, h, w) of every picture, in patches.
    """
    first = sum(f * h * w for f, h, w in images) // config.vision.merge**2
    return plan(ids, pos, advance, {config.image: (VISION, 0), config.video: (VISION, first)})
