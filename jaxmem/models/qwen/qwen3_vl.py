"""Qwen3-VL, dense (2B, 4B, 8B, 32B): config, weights, token layout, positions.

Every frame of a video is `<12.5 seconds>` in words, `<|vision_start|>`, its tokens,
`<|vision_end|>`. Time is in the words: a frame is a block of rows and columns at one temporal
position, and what follows stands max(rows, columns) after its start. A stream of any length is
therefore the same arithmetic from every chunk's start, on all three axes alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.kv import VISION
from jaxmem.models.encoders.vision_parts import Grid, as_grids
from jaxmem.models.hf.config import check_family, check_keys
from jaxmem.models.hf.prompt import Plan, pad, plan
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen.decoder import read_decoder
from jaxmem.models.qwen.mrope import grid_positions, join, to_the_end
from jaxmem.models.qwen.qwen3_vision import Encoded, Qwen3VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen3_vision import read_config as read_vision
from jaxmem.typing import Array, Float, Int, Params

MODEL_TYPES = ("qwen3_vl",)
RENAMES = ()
IGNORE = ("lm_head.weight",)
"""A copy of the embedding that tied checkpoints may hold."""
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class Qwen3VLConfig:
    """Static description of the model.

    Attributes:
      decoder: of the language model.
      vision: of the encoder.
      image: placeholder token of pictures.
      video: placeholder token of videos.
      vision_start: token before a picture or frame.
      vision_end: token after it.
    """

    decoder: DecoderConfig
    vision: Qwen3VisionConfig
    image: int
    video: int
    vision_start: int
    vision_end: int

    def __post_init__(self):
        if len(self.vision.deep) > self.decoder.layers:
            raise ValueError(
                f"DeepStack feeds {len(self.vision.deep)} layers, the decoder has "
                f"{self.decoder.layers}."
            )


def read_config(config: Mapping[str, Any]) -> Qwen3VLConfig:
    """Return the model that a config.json describes.

    Raises:
      ValueError: if it is of another family or asks for something that is not implemented.
    """
    check_family(config, MODEL_TYPES)
    check_keys(config, (*TOKENS, "text_config", "vision_config"))
    if config["text_config"].get("attention_bias"):
        raise ValueError("attention_bias is set: no released Qwen3-VL has biases on q, k and v.")
    image, video, start, end = (config[name] for name in TOKENS)
    return Qwen3VLConfig(
        decoder=read_decoder(config, qkv_bias=False, qk_norm=True),
        vision=read_vision(config["vision_config"]),
        image=image,
        video=video,
        vision_start=start,
        vision_end=end,
    )


def weight_table(config: Qwen3VLConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision"}."""
    decoder = decoder_table(config.decoder, "model.language_model.")
    return under("decoder", decoder) | under("vision", vision_table(config.vision))


def positions(
    config: Qwen3VLConfig,
    ids: Sequence[int] | np.ndarray,
    *,
    images: Sequence[Grid] = (),
    videos: Sequence[Grid] = (),
) -> tuple[Int[np.ndarray, "T 3"], int]:
    """Return the positions of a prompt, and where the next text token would stand.

    Args:
      config: of the model.
      ids: token ids without padding.
      images: (1, h, w) of every picture, in patches.
      videos: (F, h, w) of every video, in patches; its frames are blocks of their own.

    Raises:
      ValueError: if ids and grids do not fit together.
    """
    merge = config.vision.merge
    blocks = {
        token: [
            to_the_end(grid_positions(np.zeros(1), h // merge, w // merge))
            for frames, h, w in as_grids(grids, merge)
            for _ in range(frames)
        ]
        for token, grids in ((config.image, images), (config.video, videos))
    }
    return join(ids, blocks)


def prompt_plan(
    config: Qwen3VLConfig,
    ids: Sequence[int] | np.ndarray,
    *,
    images: Sequence[Grid] = (),
    videos: Sequence[Grid] = (),
) -> Plan:
    """Return the plan of a whole prompt, arguments as in `positions`.

    Features are those of all pictures, then those of all videos.
    """
    pos, after = positions(config, ids, images=images, videos=videos)
    first = sum(f * h * w for f, h, w in images) // config.vision.merge**2
    return plan(ids, pos, after, {config.image: (VISION, 0), config.video: (VISION, first)})


def encode(
    params: Params, config: Qwen3VLConfig, patches: Float[Array, "N I"], grids: Sequence[Grid]
) -> Encoded:
    """Return the features of pictures and videos, for `prompt.fill`."""
    return encode_vision(params["vision"], config.vision, patches, grids)


def stamp(frame: int, temporal: int, fps: Fraction | float) -> str:
    """Return the words before a frame: the mean time of its first and its last picture.

    Args:
      frame: number from 0.
      temporal: pictures per frame.
      fps: pictures per second; a Fraction for a stream of hours.
    """
    first, last = frame * temporal / fps, (frame * temporal + temporal - 1) / fps
    return f"<{float((first + last) / 2):.1f} seconds>"


def video_chunk(
    config: Qwen3VLConfig, stamps: Sequence[Sequence[int]], grid: Grid, size: int
) -> Plan:
    """Return the plan of some frames of an endless video, padded to `size` rows.

    Time stamps grow by a token now and then, so the rows of a chunk vary: `size` is what the
    longest stamps need.

    Args:
      config: of the model.
      stamps: token ids of every frame's `stamp`.
      grid: (F, h, w) of the chunk, in patches.
      size: T, rows after padding.

    Raises:
      ValueError: if the stamps are not one for each frame, or the rows do not fit.
    """
    ((frames, rows, columns),) = as_grids([grid], config.vision.merge)
    if len(stamps) != frames:
        raise ValueError(f"{frames} frames came with {len(stamps)} time stamps.")
    seen = [config.video] * (rows * columns // config.vision.merge**2)
    ids = [
        token
        for words in stamps
        for token in (*words, config.vision_start, *seen, config.vision_end)
    ]
    return pad(prompt_plan(config, ids, videos=[grid]), size)
