"""Qwen2.5-VL (3B, 7B, 32B, 72B; arXiv 2502.13923): config, weights, token layout, positions.

A video is `<|vision_start|>`, its tokens frame by frame, `<|vision_end|>`. A token stands at (tick,
row, column) after the start of the video, where a frame's tick is
floor(frame * seconds per frame * ticks per second). Text then goes on after the largest of all
three axes; that is the rule of the original release (transformers 4.50.3) and the default here.
Later versions of transformers changed it, see `Rule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.kv import VISION
from jaxmem.models.encoders.vision_parts import Grid, as_grids
from jaxmem.models.hf.config import check_family
from jaxmem.models.hf.prompt import Plan, plan
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen.decoder import read_decoder
from jaxmem.models.qwen.mrope import (
    Block,
    Seconds,
    as_int32,
    grid_positions,
    join,
    ticks,
    to_the_end,
)
from jaxmem.models.qwen.qwen2_5_vision import Qwen25VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen2_5_vision import read_config as read_vision
from jaxmem.typing import Array, Float, Int, Params

MODEL_TYPES = ("qwen2_5_vl",)
RENAMES = (
    ("model.visual.", "visual."),
    ("model.language_model.", "model."),
)
"""Names of checkpoints that newer versions of transformers saved, to those of the release."""
IGNORE = ("lm_head.weight",)
"""A copy of the embedding that tied checkpoints may hold."""

Rule = Literal["4.50", "4.57", "5.23"]
"""Version of transformers whose positions are wanted.

"4.50" is the release. "4.57" truncates the seconds per frame to a whole number first. "5.23" lets
text of a prompt go on at max(rows, columns) after the start of a video, even if its ticks went
further; what follows the prompt stands after the largest position in all of them.
"""


@dataclass(frozen=True)
class Qwen25VLConfig:
    """Static description of the model.

    Attributes:
      decoder: of the language model.
      vision: of the encoder.
      image: placeholder token of pictures.
      video: placeholder token of videos.
      vision_start: token before a picture or video.
      vision_end: token after it.
      ticks_per_second: of the temporal axis.
    """

    decoder: DecoderConfig
    vision: Qwen25VisionConfig
    image: int
    video: int
    vision_start: int
    vision_end: int
    ticks_per_second: int = 2


def read_config(config: Mapping[str, Any]) -> Qwen25VLConfig:
    """Return the model that a config.json describes.

    Raises:
      ValueError: if it is of another family or asks for something that is not implemented.
    """
    check_family(config, MODEL_TYPES)
    vision = config["vision_config"]
    return Qwen25VLConfig(
        decoder=read_decoder(config, qkv_bias=True, qk_norm=False),
        vision=read_vision(vision),
        image=config["image_token_id"],
        video=config["video_token_id"],
        vision_start=config["vision_start_token_id"],
        vision_end=config["vision_end_token_id"],
        ticks_per_second=vision.get("tokens_per_second", 2),
    )


def weight_table(config: Qwen25VLConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision"}, for names after `RENAMES`."""
    return under("decoder", decoder_table(config.decoder)) | under(
        "vision", vision_table(config.vision)
    )


def _rule(config: Qwen25VLConfig, grid: Grid, seconds: Seconds, rule: Rule) -> Block:
    frames, rows, columns = grid
    rows, columns = rows // config.vision.merge, columns // config.vision.merge
    seconds = int(seconds) if rule == "4.57" else seconds
    times = ticks(np.arange(frames), seconds, config.ticks_per_second)
    pos = grid_positions(times, rows, columns)
    return Block(pos, max(rows, columns)) if rule == "5.23" else to_the_end(pos)


def positions(
    config: Qwen25VLConfig,
    ids: Sequence[int] | np.ndarray,
    *,
    images: Sequence[Grid] = (),
    videos: Sequence[Grid] = (),
    seconds: Sequence[Seconds] | None = None,
    rule: Rule = "4.50",
) -> tuple[Int[np.ndarray, "T 3"], int]:
    """Return the positions of a prompt, and where the first token of the answer stands.

    Args:
      config: of the model.
      ids: token ids without padding.
      images: (1, h, w) of every picture, in patches.
      videos: (F, h, w) of every video, in patches.
      seconds: between the frames of each video (`second_per_grid_ts`: pictures per patch divided
        by pictures per second); None: 1. A Fraction is exact, see `mrope.ticks`.
      rule: whose positions.

    Raises:
      ValueError: if ids and grids do not fit together, or the rule is unknown.
    """
    if rule not in ("4.50", "4.57", "5.23"):
        raise ValueError(f'rule must be "4.50", "4.57" or "5.23", got {rule!r}.')
    merge = config.vision.merge
    images, videos = as_grids(images, merge), as_grids(videos, merge)
    seconds = [1.0] * len(videos) if seconds is None else list(seconds)
    if len(seconds) != len(videos):
        raise ValueError(f"{len(videos)} videos came with {len(seconds)} seconds per frame.")
    pos, after = join(
        ids,
        {
            config.image: [_rule(config, grid, 0.0, rule) for grid in images],
            config.video: [_rule(config, g, s, rule) for g, s in zip(videos, seconds, strict=True)],
        },
    )
    return pos, max(after, int(pos.max(initial=-1)) + 1)


def prompt_plan(config: Qwen25VLConfig, ids: Sequence[int] | np.ndarray, **media) -> Plan:
    """Return the plan of a whole prompt; `media` as in `positions`.

    Features are those of all pictures, then those of all videos.
    """
    pos, after = positions(config, ids, **media)
    first = sum(f * h * w for f, h, w in media.get("images", ())) // config.vision.merge**2
    return plan(ids, pos, after, {config.image: (VISION, 0), config.video: (VISION, first)})


def encode(
    params: Params, config: Qwen25VLConfig, patches: Float[Array, "N I"], grids: Sequence[Grid]
) -> Float[Array, "m E"]:
    """Return the features of pictures and videos, for `prompt.fill`."""
    return encode_vision(params["vision"], config.vision, patches, grids)[0]


def video_chunk(config: Qwen25VLConfig, first: int, grid: Grid, seconds: Seconds) -> Plan:
    """Return the plan of some frames of an endless video.

    The stream's position is where the frames before it ended: (begin + tick of the first frame,
    begin, begin). Rows and columns do not advance while the video goes on.

    Args:
      config: of the model.
      first: number of the first frame.
      grid: (F, h, w) of the chunk, in patches.
      seconds: between frames; a Fraction for a stream of hours.
    """
    ((frames, rows, columns),) = as_grids([grid], config.vision.merge)
    times = ticks(np.arange(first, first + frames + 1), seconds, config.ticks_per_second)
    times = times - times[0]
    merge = config.vision.merge
    pos = as_int32(grid_positions(times[:-1], rows // merge, columns // merge))
    ids = np.full(len(pos), config.video, np.int32)
    return plan(ids, pos, [times[-1], 0, 0], {config.video: (VISION, 0)})


def after_video(
    config: Qwen25VLConfig, frames: int, rows: int, columns: int, seconds: Seconds
) -> Int[np.ndarray, "3"]:
    """Return where text after a video stands, relative to the position that its chunks reached.

    Args:
      config: of the model.
      frames: that were streamed.
      rows: of patches in a frame.
      columns: of patches in a frame.
      seconds: between frames.
    """
    merge = config.vision.merge
    last, end = ticks(np.array([frames - 1, frames]), seconds, config.ticks_per_second)
    text = max(int(last), rows // merge - 1, columns // merge - 1) + 1
    return as_int32(np.array([text - end, text, text]))


def text_after(
    config: Qwen25VLConfig, frames: int, rows: int, columns: int, seconds: Seconds
) -> Int[np.ndarray, "3"]:
    """Return `Embeds.start` of text after a video: the rule of `after_video`, axis by axis.

    The largest coordinate of base + this is where `after_video` puts the text, and stays sensible
    where a memory has numbered the stream anew: nothing in it grows with the stream.

    Args:
      config: of the model.
      frames: that were streamed; 0: text goes on at the base.
      rows: of patches in a frame.
      columns: of patches in a frame.
      seconds: between frames.
    """
    if not frames:
        return np.zeros(3, np.int32)
    merge = config.vision.merge
    last, end = ticks(np.array([frames - 1, frames]), seconds, config.ticks_per_second)
    return as_int32(np.array([last + 1 - end, rows // merge, columns // merge]))
