"""video-SALMONN 2+: a Qwen vision-language model that also hears.

Sound is cut into clips of 30 s and padded to whole ones. Whisper's encoder makes 50 rows a second,
a windowed Q-Former reads each 25 of them with one query, and a linear map takes what it read to the
decoder: 2 tokens a second. The bases are Qwen2.5-VL (3B, 7B, 72B) and, as OmniMem runs it, Qwen3-VL
(4B, 8B); `jaxmem.models.salmonn.layout` has the layout of each.

Whisper hears a clip of 30 s at once, so a piece of the stream is 30 s of frames with their audio:
exactly what one prompt over the whole video holds. Shorter pieces (`piece_seconds`) answer sooner;
each is then heard by itself with silence after it, as a short video is, and no longer what the
prompt over the whole video holds.

A stream of sound alone (frames of size (0, 0)) is its tokens of sound inside one pair of vision
tokens, on both bases; the Qwen3-VL base then has no time stamps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import linear
from jaxmem.models.base import Fitted
from jaxmem.models.encoders import qformer, whisper
from jaxmem.models.encoders.vision_parts import Grids
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import Turn, check_question
from jaxmem.models.hf.family import Files, Names
from jaxmem.models.hf.preprocessor import Limits
from jaxmem.models.hf.prompt import Plan
from jaxmem.models.qwen.clip import Size, read_clip
from jaxmem.models.qwen.qwen2_5_vl import Qwen25VLConfig
from jaxmem.models.qwen.qwen3_vl import Qwen3VLConfig, stamp_rows, stamps
from jaxmem.models.qwen.stream import ALONE, Features, QwenFamily, sound_plan, without
from jaxmem.models.salmonn import layout as lay
from jaxmem.models.salmonn.config import SalmonnConfig, names, read_config
from jaxmem.typing import Array, Float, Int, Params

SHARINGS = ("ticks", "even")
LEAST_PIXELS = 784  # of a frame, as released
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "\n{}<|im_end|>\n<|im_start|>assistant\n"
"""The released prompt around the video; the break before the question is the training data's."""


def hear(
    params: Params, config: SalmonnConfig, logmel: Float[Array, "c J M"]
) -> Float[Array, "c m E"]:
    """Return the tokens of clips, `clip_tokens` for each whole one."""
    rows, _ = whisper.encode(params["sound"], config.sound, logmel)
    return linear(qformer.encode(params["qformer"], config.qformer, rows), params["projector"])


@dataclass(frozen=True)
class Salmonn(QwenFamily):
    """video-SALMONN 2+ on Qwen2.5-VL, as a `Family`."""

    max_pixels: ClassVar[int] = 61_250  # of a frame, as released
    config: SalmonnConfig
    sounds: int  # audio tokens of a piece
    # How they are spread over its frames: by time, or evenly as in the release of 2025-07.
    sharing: str = "ticks"
    # Frames (of two pictures) of the whole video, for the positions of the released `generate`;
    # None: those of the training. See `layout.inferred_video`.
    inference_frames: int | None = None
    read_config = staticmethod(read_config)

    def __post_init__(self):
        if self.sharing not in SHARINGS:
            raise ValueError(f"sharing is {self.sharing!r}, expected {' or '.join(SHARINGS)}.")
        if self.inference_frames is not None and self.inference_frames < 1:
            raise ValueError(
                f"inference_frames is {self.inference_frames}, expected the frames of the whole "
                "video, or None for the positions of the training."
            )

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
          fps: pictures per second.
          max_pixels: of a frame; None: as released.
          piece_seconds: length of a piece; None: what the audio encoder hears at once.
          more: `sharing`, `inference_frames` (Qwen2.5-VL) or `group` (Qwen3-VL), see the class.
        """
        config = read_config(files.config)
        every = Fraction(config.clip_tokens) / config.per_second
        if piece_seconds is not None:
            every = Fraction(piece_seconds).limit_denominator(1000)
        sounds = tokens_in(config, every)
        most = cls.max_pixels if max_pixels is None else max_pixels
        limits = {"max_pixels": most, "whole_videos": cls.whole_videos}
        clip = read_clip(files.settings, config.base.vision, fps, piece_seconds=every, **limits)
        clip = replace(clip, limits=Limits(min(LEAST_PIXELS, most), most))
        return cls(config, files.chat, clip, sounds, **more)

    @property
    def names(self) -> Names:
        return names(self.config)

    @property
    def tokens(self) -> Qwen25VLConfig | Qwen3VLConfig:
        return self.config.base

    @property
    def mel(self) -> LogMel:
        """Return what makes log-mel frames."""
        return LogMel(self.config.sound.mel_bins)

    @property
    def audio_format(self) -> tuple[int, int]:
        return self.mel.rate, 0

    @property
    def audio_tokens(self) -> int:
        return math.ceil(self.config.per_second)

    def turn(self, question: str) -> Turn:
        turn, tokens = self.alone(question), self.tokens
        # With time stamps every frame brings a pair of vision tokens of its own.
        return without(turn, (tokens.vision_start, tokens.vision_end)) if self.timestamps else turn

    def alone(self, question: str) -> Turn:
        # As released: neither base's own template has this system message and this line break.
        check_question(question)
        before, after = self.chat.ids(BEFORE), self.chat.ids(AFTER.format(question))
        tokens = self.tokens
        if np.isin(after, (tokens.video, self.config.audio)).any():
            raise ValueError("the question holds the placeholder of video or sound; leave it out.")
        pair = np.array([[tokens.vision_start], [tokens.vision_end]], np.int32)
        return Turn(np.append(before, pair[0]), np.append(pair[1], after))

    def rows(self, size: Size) -> int:
        return super().rows(size) + self.sounds

    def for_frames(self, size: Size) -> Fitted:
        if tuple(size) == ALONE and self.inference_frames is not None:
            raise ValueError(
                f"inference_frames is {self.inference_frames}, and this source has no pictures: "
                "leave it out."
            )
        return super().for_frames(size)

    def shares(self, ends: Sequence[int]) -> list[int]:
        """Return the tokens of sound of spans of frames that begin and end with a piece."""
        if self.sharing == "ticks":
            return lay.shares(self.config, ends, self.clip.seconds)
        each = self.clip.per_piece
        one = lay.even_shares(each, self.sounds) * ((ends[-1] - ends[0]) // each)
        return [sum(one[a - ends[0] : b - ends[0]]) for a, b in pairwise(ends)]

    def before(self, frames: int, size: Size) -> int:
        """Return the tokens of whole pieces of so many frames."""
        pieces, cells = frames // self.clip.per_piece, self.clip.cells(size)
        return frames * math.prod(cells) + pieces * self.sounds

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        """Return the tokens of frames of the stream."""
        ends, cells = range(first, first + frames + 1), self.clip.cells(size)
        video = lay.aligned_video(self.config, ends, self.shares(ends), cells, self.clip.seconds)
        if self.inference_frames is None:
            return video
        begin = self.before(first, size)
        return lay.inferred_video(video.ids, begin, cells, self.inference_frames)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all audio."""
        if not any(size):
            axes = (1, 1, 1) if self.timestamps else lay.SOUND_AXES
            return sound_plan(self.config.audio, real * self.sounds, axes)
        each = self.clip.per_piece
        video = self.video(size, start * each, real * each)
        return lay.video_plan(self.config, video, pieces * self.clip.tokens(size))

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        frames = pieces * self.clip.per_piece
        if self.inference_frames is None:
            return lay.text_after(self.config, frames, self.clip.seconds)
        cells, count = self.clip.cells(size), self.before(frames, size)
        return lay.text_after_inferred(count, cells, self.inference_frames)

    def hear(self, samples: np.ndarray, past: np.ndarray, start: int) -> Float[np.ndarray, "C J M"]:
        # Each piece by itself, with silence up to a whole clip.
        del past, start
        whole = 2 * self.config.sound.rows * self.mel.hop
        samples = np.pad(samples, ((0, 0), (0, whole - samples.shape[1])))
        return np.stack([self.mel(piece, None) for piece in samples])

    def features(self, params: Params, patches: Any, grids: Grids, mel: Any) -> Features:
        """Return the features of the frames, then of the audio; DeepStack adds to the frames."""
        heard = hear(params, self.config, jnp.asarray(mel))[:, : self.sounds]
        heard = heard.reshape(-1, heard.shape[-1])
        if patches is None:
            return heard, None
        seen, deep = self.config.family.encode(params, self.config.base, patches, grids), None
        if self.timestamps:
            seen, deep = seen.tokens, jnp.pad(seen.deep, ((0, 0), (0, len(heard)), (0, 0)))
        return jnp.concatenate([seen, heard.astype(seen.dtype)]), deep


@dataclass(frozen=True)
class TimedSalmonn(Salmonn):
    """video-SALMONN 2+ on Qwen3-VL, with the time in words."""

    timestamps = True
    whole_videos = True
    max_pixels = 176_400
    # Frames (of two pictures) under one time stamp. The released layout takes 1 for videos of up to
    # 256 frames, and as many more as keep within 256 stamps.
    group: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.inference_frames is not None:
            raise ValueError(
                "inference_frames is for the Qwen2.5-VL base: the Qwen3-VL base has one rule of "
                "positions; leave it out."
            )
        if self.group < 1 or self.clip.per_piece % self.group:
            raise ValueError(
                f"group is {self.group}, expected a divisor of the {self.clip.per_piece} frames of "
                "a piece."
            )

    def rows(self, size: Size) -> int:
        words = self.clip.per_piece // self.group * stamp_rows(self.chat) if any(size) else 0
        return super().rows(size) + words

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        ends = lay.group_ends(first, frames, self.group)
        words = stamps(self.chat, ends[:-1], self.clip.temporal, self.clip)  # of its first frame
        return lay.timed_video(self.config, words, ends, self.shares(ends), self.clip.cells(size))

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        # Text goes on where the last frame's closing token ended.
        return QwenFamily.question_start(self, size, pieces)


def tokens_in(config: SalmonnConfig, seconds: Fraction) -> int:
    """Return the audio tokens of a piece; ValueError if that is no whole number within a clip."""
    count = seconds * config.per_second
    if count != int(count) or not 0 < count <= config.clip_tokens:
        raise ValueError(
            f"piece_seconds is {float(seconds):g}, expected a multiple of "
            f"{float(1 / config.per_second):g} s up to {config.clip_tokens} of them: what the "
            "audio encoder hears at once."
        )
    return int(count)
