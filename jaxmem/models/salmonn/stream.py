"""video-SALMONN 2+ as a `Family` that streams.

Whisper hears a clip of 30 s at once, so a piece of the stream is 30 s of frames with their audio:
exactly what one prompt over the whole video holds. Shorter pieces (`piece_seconds`) answer sooner;
each is then heard by itself with silence after it, as a short video is, and no longer what the
prompt over the whole video holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Embeds
from jaxmem.models.base import MediaFormat
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import Files, Names
from jaxmem.models.hf.prompt import Plan, fill
from jaxmem.models.qwen.clip import Size, read_clip
from jaxmem.models.qwen.qwen3_vl_stream import stamp_rows, stamps
from jaxmem.models.qwen.stream import Inputs, QwenFamily, without
from jaxmem.models.salmonn import layout as lay
from jaxmem.models.salmonn import salmonn as family
from jaxmem.typing import Float, Int, Params


@dataclass(frozen=True)
class Salmonn(QwenFamily):
    """video-SALMONN 2+ on Qwen2.5-VL; see `Family`.

    Attributes:
      sounds: audio tokens of a piece.
    """

    whole_videos: ClassVar[bool] = False  # see `preprocessor.limits_of`
    max_pixels: ClassVar[int] = 61_250  # of a frame, as released
    config: family.SalmonnConfig
    sounds: int

    @classmethod
    def read(
        cls,
        files: Files,
        *,
        fps: float = 1.0,
        max_pixels: int | None = None,
        piece_seconds: float | None = None,
        **more: Any,
    ) -> Self:
        """Return the member that a checkpoint holds.

        Args:
          files: of the checkpoint.
          fps: pictures per second.
          max_pixels: of a frame; None: as released.
          piece_seconds: length of a piece; None: what the audio encoder hears at once.
          more: of the base.
        """
        config = family.read_config(files.config)
        every = Fraction(config.clip_tokens) / config.per_second
        if piece_seconds is not None:
            every = Fraction(piece_seconds).limit_denominator(1000)
        sounds = tokens_in(config, every)
        clip = read_clip(
            files.settings,
            config.base.vision,
            fps,
            piece_seconds=every,
            max_pixels=cls.max_pixels if max_pixels is None else max_pixels,
            whole_videos=cls.whole_videos,
        )
        return cls(config, files.chat, clip, sounds, **more)

    @property
    def names(self) -> Names:
        """Return which tensors the checkpoint must hold: the base's and the audio encoder's."""
        base = self.config.family
        return Names(family.weight_table(self.config), base.RENAMES, base.IGNORE)

    @property
    def mel(self) -> LogMel:
        """Return what makes log-mel frames."""
        return LogMel(self.config.sound.mel_bins)

    @property
    def media(self) -> MediaFormat:
        """Return how video and audio are wanted."""
        clip = self.clip
        seconds = float(clip.seconds * clip.per_piece)
        return MediaFormat(float(clip.fps), clip.resized, self.mel.rate, seconds)

    @property
    def audio_tokens(self) -> int:
        """Return the audio tokens of a second."""
        return math.ceil(self.config.per_second)

    def turn(self, question: str) -> Turn:
        """Return the token ids around the video."""
        return self.chat.around(question, self.config.base.video)

    def rows(self, size: Size) -> int:
        """Return the rows of a piece."""
        return self.clip.tokens(size) + self.sounds

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        """Return the tokens of frames of the stream."""
        ends, seconds = range(first, first + frames + 1), self.clip.seconds
        sounds = lay.shares(self.config, ends, seconds)
        return lay.aligned_video(self.config, ends, sounds, self.clip.cells(size), seconds)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all audio."""
        each = self.clip.per_piece
        video = self.video(size, start * each, real * each)
        return lay.video_plan(self.config, video, pieces * self.clip.tokens(size))

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return `Embeds.start` of a question after so many pieces."""
        frames = pieces * self.clip.per_piece
        return lay.text_after(self.config, frames, self.clip.cells(size), self.clip.seconds)

    def hear(self, samples: np.ndarray, past: np.ndarray, start: int) -> Float[np.ndarray, "C J M"]:
        """Return the log-mel frames of pieces [C, n], each with silence up to a whole clip."""
        del past, start
        whole = 2 * self.config.sound.rows * self.mel.hop
        samples = np.pad(samples, ((0, 0), (0, whole - samples.shape[1])))
        return np.stack([self.mel(piece, None) for piece in samples])

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        """Return a chunk as rows; DeepStack adds to the frames only."""
        patches, grid = self.clip.patches(jnp.asarray(inputs.frames))
        seen = self.config.family.encode(params, self.config.base, patches, [grid])
        seen, deep = (seen.tokens, seen.deep) if self.timestamps else (seen, None)
        heard = family.hear(params, self.config, jnp.asarray(inputs.mel))[:, : self.sounds]
        both, deep = family.features(seen, heard.reshape(-1, heard.shape[-1]), deep)
        return fill(params["decoder"], inputs.plan, both, deep)


@dataclass(frozen=True)
class TimedSalmonn(Salmonn):
    """video-SALMONN 2+ on Qwen3-VL, with the time in words.

    Attributes:
      group: frames (of two pictures) under one time stamp. The released layout takes 1 for videos
        of up to 256 frames, and as many more as keep within 256 stamps.
    """

    timestamps = True
    whole_videos = True
    max_pixels = 176_400
    group: int = 1

    def __post_init__(self):
        if self.group < 1 or self.clip.per_piece % self.group:
            raise ValueError(
                f"group is {self.group}, expected a divisor of the {self.clip.per_piece} frames of "
                "a piece."
            )

    def turn(self, question: str) -> Turn:
        """Return the token ids around the frames, each of which brings its own pair."""
        base = self.config.base
        return without(super().turn(question), (base.vision_start, base.vision_end))

    def rows(self, size: Size) -> int:
        """Return the rows of a piece with the longest time stamps."""
        return super().rows(size) + self.clip.per_piece // self.group * stamp_rows(self.chat)

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        """Return the tokens of frames of the stream."""
        ends, wide = lay.group_ends(first, frames, self.group), self.clip.temporal * self.group
        numbers = range(first // self.group, (first + frames) // self.group)
        words = stamps(self.chat, numbers, wide, self.clip)
        sounds = lay.shares(self.config, ends, self.clip.seconds)
        return lay.timed_video(self.config, words, ends, sounds, self.clip.cells(size))

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return zeros: text goes on where the last frame's closing token ended."""
        return QwenFamily.question_start(self, size, pieces)


def tokens_in(config: family.SalmonnConfig, seconds: Fraction) -> int:
    """Return the audio tokens of a piece.

    Raises:
      ValueError: if it is no whole number of them, or longer than a clip.
    """
    count = seconds * config.per_second
    if count != int(count) or not 0 < count <= config.clip_tokens:
        raise ValueError(
            f"piece_seconds is {float(seconds):g}, expected a multiple of "
            f"{float(1 / config.per_second):g} s up to {config.clip_tokens} of them: what the "
            "audio encoder hears at once."
        )
    return int(count)
