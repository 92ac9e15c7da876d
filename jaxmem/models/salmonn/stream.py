"""A video-SALMONN 2+ checkpoint directory as a `Model` that the streaming loop takes.

Whisper hears a clip of 30 s at once, so a piece of the stream is 30 s of frames with their sound:
exactly what one prompt over the whole video holds. Shorter pieces (`piece_seconds`) answer sooner;
each is then heard by itself with silence behind it, as a short video is, and no longer what the
prompt over the whole video holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Embeds
from jaxmem.models.base import MediaFormat
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import Chat, read_chat
from jaxmem.models.hf.checkpoint import read_json
from jaxmem.models.hf.family import Parts
from jaxmem.models.hf.prompt import Plan, fill
from jaxmem.models.qwen import qwen3_vl
from jaxmem.models.qwen.clip import Clip, Size, read_clip
from jaxmem.models.qwen.qwen3_vl_stream import LONGEST
from jaxmem.models.qwen.stream import Inputs, qwen_parts, turn_of
from jaxmem.models.salmonn import layout as lay
from jaxmem.models.salmonn import salmonn
from jaxmem.models.salmonn.salmonn import SalmonnConfig
from jaxmem.typing import Float, Int, Params

MAX_PIXELS = {"qwen2_5_vl": 61_250, "qwen3_vl": 176_400}
"""Of a frame, as released."""


@dataclass(frozen=True)
class Layout:
    """See `qwen_model.Layout`; this is the one of the Qwen2.5-VL base.

    Attributes:
      config: of the model.
      clip: pictures to patches.
      sounds: tokens of sound in a piece.
    """

    config: SalmonnConfig
    clip: Clip
    sounds: int

    def rows(self, size: Size) -> int:
        """Return the rows of a piece."""
        return self.clip.tokens(size) + self.sounds

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        """Return the tokens of frames of the stream."""
        ends = range(first, first + frames + 1)
        sounds = lay.shares(self.config, ends, self.clip.seconds)
        return lay.aligned_video(
            self.config, ends, sounds, self.clip.cells(size), self.clip.seconds
        )

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all sound."""
        each = self.clip.per_piece
        video = self.video(size, start * each, real * each)
        return lay.video_plan(self.config, video, pieces * self.clip.tokens(size))

    def after(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return `Embeds.after` of a question behind so many pieces."""
        frames, cells = pieces * self.clip.per_piece, self.clip.cells(size)
        return lay.text_after(self.config, frames, cells, self.clip.seconds)


@dataclass(frozen=True)
class TimedLayout(Layout):
    """The layout of the Qwen3-VL base.

    Attributes:
      chat: tokenizer of the time stamps.
      words: tokens of the longest time stamp.
      group: frames under one time stamp.
    """

    chat: Chat
    words: int
    group: int

    def rows(self, size: Size) -> int:
        """Return the rows of a piece with the longest time stamps."""
        return super().rows(size) + self.clip.per_piece // self.group * (self.words + 2)

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        """Return the tokens of frames of the stream."""
        ends, wide = lay.group_ends(first, frames, self.group), self.clip.temporal * self.group
        numbers = range(first // self.group, (first + frames) // self.group)
        stamps = [self.chat.ids(qwen3_vl.stamp(i, wide, self.clip.fps)).tolist() for i in numbers]
        sounds = lay.shares(self.config, ends, self.clip.seconds)
        return lay.timed_video(self.config, stamps, ends, sounds, self.clip.cells(size))

    def after(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return zeros: text goes on where the last frame's closing token ended."""
        return np.zeros(3, np.int32)


def encode(
    config: SalmonnConfig, clip: Clip, sounds: int, params: Params, inputs: Inputs
) -> Embeds:
    """Return a chunk as rows; DeepStack adds to the frames only."""
    patches, grid = clip.patches(jnp.asarray(inputs.frames))
    seen = config.family.encode(params, config.base, patches, [grid])
    seen, deep = (seen.tokens, seen.deep) if config.family is qwen3_vl else (seen, None)
    heard = salmonn.hear(params, config, jnp.asarray(inputs.mel))[:, :sounds]
    both, deep = salmonn.features(seen, heard.reshape(-1, heard.shape[-1]), deep)
    return fill(params["decoder"], inputs.plan, both, deep)


def hear(
    config: SalmonnConfig, mel: LogMel, samples: np.ndarray, past: np.ndarray, start: int
) -> Float[np.ndarray, "C J M"]:
    """Return the log-mel frames of pieces [C, n], each with silence up to a whole clip."""
    del past, start
    whole = 2 * config.sound.rows * mel.hop
    samples = np.pad(samples, ((0, 0), (0, whole - samples.shape[1])))
    return np.stack([mel(piece, None) for piece in samples])


def _sounds(config: SalmonnConfig, seconds: Fraction) -> int:
    """Return the tokens of sound in a piece."""
    count = seconds * config.per_second
    if count != int(count) or not 0 < count <= config.clip_tokens:
        raise ValueError(
            f"piece_seconds is {float(seconds):g}, expected a multiple of "
            f"{float(1 / config.per_second):g} s up to {config.clip_tokens} of them: what the "
            "audio encoder hears at once."
        )
    return int(count)


def _layout(config: SalmonnConfig, clip: Clip, sounds: int, chat: Chat, group: int) -> Layout:
    """Return the layout of the base."""
    if config.family is not qwen3_vl:
        return Layout(config, clip, sounds)
    if group < 1 or clip.per_piece % group:
        raise ValueError(
            f"group is {group}, expected a divisor of the {clip.per_piece} frames of a piece."
        )
    return TimedLayout(config, clip, sounds, chat, len(chat.ids(LONGEST)), group)


def read_parts(
    directory: str | Path,
    *,
    fps: float = 1.0,
    max_pixels: int | None = None,
    piece_seconds: float | None = None,
    group: int = 1,
) -> Parts:
    """Return the parts of a checkpoint directory; the arguments are those of `load.load`.

    Args:
      directory: the checkpoint.
      fps: pictures per second.
      max_pixels: of a frame; None: as released.
      piece_seconds: length of a piece; None: what the audio encoder hears at once.
      group: frames (of two pictures) under one time stamp, with the Qwen3-VL base. The released
        layout takes 1 for videos of up to 256 frames, and as many more as keep within 256 stamps.

    Raises:
      ValueError: if something is missing or does not fit.
    """
    raw = read_json(directory)
    config, chat = salmonn.read_config(raw), read_chat(directory)
    every = Fraction(config.clip_tokens) / config.per_second
    if piece_seconds is not None:
        every = Fraction(piece_seconds).limit_denominator(1000)
    sounds, timed = _sounds(config, every), config.family is qwen3_vl
    around = (config.base.vision_start, config.base.vision_end)
    limit = MAX_PIXELS[raw["model_type"].removeprefix(salmonn.PREFIX)]
    clip = read_clip(
        directory,
        config.base.vision,
        fps,
        piece_seconds=every,
        max_pixels=limit if max_pixels is None else max_pixels,
        whole_videos=timed,
    )
    mel = LogMel(config.sound.mel_bins)
    parts = qwen_parts(
        config.family,
        config.base,
        chat,
        clip,
        _layout(config, clip, sounds, chat, group),
        turn_of(chat, config.base.video, drop=around if timed else None),
        partial(encode, config, clip, sounds),
        media=MediaFormat(float(clip.fps), clip.resized, mel.rate, float(every)),
        hear=partial(hear, config, mel),
    )
    heard = math.ceil(config.per_second)
    table = salmonn.weight_table(config)
    return replace(parts, table=table, audio_tokens=heard, timestamps=timed)
