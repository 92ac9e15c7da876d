"""LLaVA-OneVision (0.5B, 7B, 72B; arXiv 2408.03326): config, weights, token layout, positions.

A frame is one picture of the SigLIP encoder, projected to the decoder's width and pooled to half
the side (27 x 27 to 14 x 14: 196 tokens). A video is its frames one after the other, then one
learned newline vector. A picture is the whole of it in one tile and, if it came in more, the others
put together at their full resolution with a newline after every row. Positions are 1-axis.

Names of LLaVA-NeXT's own checkpoints (LLaVA-Video) are renamed to those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig, linear
from jaxmem.kv import VISION
from jaxmem.models.encoders import siglip
from jaxmem.models.encoders.resize import resize_grid
from jaxmem.models.encoders.siglip import SiglipConfig
from jaxmem.models.hf.config import (
    check_family,
    check_keys,
    check_value,
    decoder_config,
    head_dim,
    rope_theta,
)
from jaxmem.models.hf.prompt import Plan, plan
from jaxmem.models.hf.weights import Weight, decoder_table, dense, under
from jaxmem.rope import rope_1d
from jaxmem.typing import Array, Float, Int, Params

MODEL_TYPES = ("llava_onevision",)
RENAMES = (
    # transformers from 4.52 on
    ("model.language_model.", "language_model.model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    # LLaVA-NeXT
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    # both
    ("model.vision_tower.", "vision_tower."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
    # before 5
    ("vision_tower.vision_model.", "vision_tower."),
)
HEAD = "language_model.lm_head.weight"
IGNORE = ("vision_tower.head.*",)
"""The pooling head of SigLIP, which some checkpoints hold and nobody requires."""


@dataclass(frozen=True)
class LlavaConfig:
    """Static description of the model.

    Attributes:
      decoder: of the language model.
      vision: of the encoder.
      image: placeholder token of pictures.
      video: placeholder token of videos.
      layer: block of the encoder whose output is projected, before the encoder's final norm.
      sizes: (height, width) in pixels that the tiles of a picture may cover together.
      tiles: pictures of more tiles than this are scaled down (anyres_max_9: 9).
      bias: biases in the projector.
    """

    decoder: DecoderConfig
    vision: SiglipConfig
    image: int
    video: int
    layer: int
    sizes: tuple[tuple[int, int], ...]
    tiles: int
    bias: bool = True

    @property
    def frame_side(self) -> int:
        """Return the side of a frame in tokens."""
        return math.ceil(self.vision.grid / 2)

    @property
    def frame_tokens(self) -> int:
        """Return the tokens of a frame."""
        return self.frame_side**2


def _layer(config: Mapping[str, Any], depth: int) -> int:
    """Return the block that `vision_feature_layer` names; 0 of it would be the embeddings."""
    layer = config.get("vision_feature_layer", -1)
    if not isinstance(layer, int) or not (-depth <= layer < 0 or 1 <= layer <= depth):
        raise ValueError(
            f"vision_feature_layer is {layer} in config.json; supported is one block of the "
            f"{depth}, from 1 on or from -1 backwards."
        )
    return layer + depth if layer < 0 else layer - 1


def read_config(config: Mapping[str, Any]) -> LlavaConfig:
    """Return the model that a config.json describes.

    Raises:
      ValueError: if it is of another family or asks for something that is not implemented.
    """
    check_family(config, MODEL_TYPES)
    check_keys(config, ("text_config", "vision_config"))
    text, vision = config["text_config"], siglip.read_config(config["vision_config"])
    check_keys(text, ("hidden_size", "num_attention_heads"), "text_config of config.json")
    check_value("model_type of text_config", text.get("model_type", "qwen2"), "qwen2")
    for key, known in (
        ("vision_feature_select_strategy", "full"),
        ("projector_hidden_act", "gelu"),
    ):
        check_value(key, config.get(key, known), known)
    aspect = config.get("vision_aspect_ratio", "anyres_max_9")
    if not aspect.removeprefix("anyres_max_").isdecimal():
        raise ValueError(f"vision_aspect_ratio is {aspect!r}, supported is 'anyres_max_9'.")
    # Where the tie is written changed between versions; the default of both is an own matrix.
    tied = any(part.get("tie_word_embeddings", False) for part in (config, text))
    return LlavaConfig(
        decoder=decoder_config(
            text, rope_1d(head_dim(text), rope_theta(text)), qkv_bias=True, qk_norm=False, tied=tied
        ),
        vision=vision,
        image=config.get("image_token_index", config.get("image_token_id", 151646)),
        video=config.get("video_token_index", config.get("video_token_id", 151647)),
        layer=_layer(config, vision.stack.depth),
        sizes=tuple((h, w) for h, w in config.get("image_grid_pinpoints") or [[vision.side] * 2]),
        tiles=int(aspect.removeprefix("anyres_max_")),
        bias=config.get("multimodal_projector_bias", True),
    )


def weight_table(config: LlavaConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision", "projector", "newline"} after `RENAMES`."""
    wide, width, at = config.decoder.width, config.vision.stack.width, "multi_modal_projector"
    return {
        **under("decoder", decoder_table(config.decoder, "language_model.model.", HEAD)),
        **under("vision", siglip.weight_table(config.vision, "vision_tower.")),
        **dense("projector.fc1", f"{at}.linear_1", width, wide, bias=config.bias),
        **dense("projector.fc2", f"{at}.linear_2", wide, wide, bias=config.bias),
        "newline": Weight("image_newline", (wide,)),
    }


def ignored(config: LlavaConfig) -> tuple[str, ...]:
    """Return the patterns of stored names that the model does not read."""
    return (*IGNORE, HEAD) if config.decoder.tied else IGNORE


def project(
    params: Params, config: LlavaConfig, pixels: Float[Array, "n Y X C"]
) -> Float[Array, "n r c E"]:
    """Return the projected patches of normalised pictures, not pooled."""
    out, tapped = siglip.encode(params["vision"], config.vision, pixels, taps=(config.layer,))
    x = tapped[0] if config.layer + 1 < config.vision.stack.depth else out
    weights = params["projector"]
    x = linear(jax.nn.gelu(linear(x, weights["fc1"]), approximate=False), weights["fc2"])
    rows = pixels.shape[1] // config.vision.patch
    return x.reshape(x.shape[0], rows, -1, x.shape[-1])


def encode(
    params: Params, config: LlavaConfig, pixels: Float[Array, "F Y X C"]
) -> Float[Array, "m E"]:
    """Return the tokens of frames, without a newline: ceil(side / 2)^2 for each."""
    x = project(params, config, pixels)
    size = (math.ceil(x.shape[1] / 2), math.ceil(x.shape[2] / 2))
    return resize_grid(x, size, "linear").reshape(-1, x.shape[-1])


def video_features(
    params: Params, config: LlavaConfig, pixels: Float[Array, "F Y X C"]
) -> Float[Array, "m E"]:
    """Return the tokens of a whole video: its frames and one newline after the last."""
    return jnp.concatenate([encode(params, config, pixels), params["newline"][None]])


def best_size(config: LlavaConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of `config.sizes` that keeps most of a picture, wasting least."""
    height, width = size

    def kept(new: tuple[int, int]) -> tuple[int, int]:
        scale = min(new[1] / width, new[0] / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - new[0] * new[1]

    return max(config.sizes, key=kept)


def image_layout(config: LlavaConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of tokens of a tiled picture of `size` pixels, no newlines."""
    (_, rows), (_, columns) = _unpadded(config, size)
    ratio = math.sqrt(rows * columns / (config.tiles * config.vision.grid**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _unpadded(
    config: LlavaConfig, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (first, count) of the rows and of the columns of the tiles that are no padding."""
    best, grid, side = best_size(config, size), config.vision.grid, config.vision.side
    rows, columns = (length // side * grid for length in best)
    if size[1] / size[0] > columns / rows:
        skip = (rows - int(round(size[0] * (columns / size[1]), 7))) // 2
        return (skip, rows - 2 * skip), (0, columns)
    skip = (columns - int(round(size[1] * (rows / size[0]), 7))) // 2
    return (0, rows), (skip, columns - 2 * skip)


def image_features(
    params: Params, config: LlavaConfig, tiles: Float[Array, "n Y X C"], size: tuple[int, int]
) -> Float[Array, "m E"]:
    """Return the tokens of one picture.

    Args:
      params: of the model.
      config: of the model.
      tiles: the whole picture, then the tiles of `best_size` in raster order; or only the whole
        one (prompts of several pictures).
      size: (height, width) of the picture in pixels before it was resized.

    Raises:
      ValueError: if the number of tiles is not the one that the size asks for.
    """
    x, newline = project(params, config, tiles), params["newline"]
    whole = x[0].reshape(-1, x.shape[-1])
    if tiles.shape[0] == 1:
        return jnp.concatenate([whole, newline[None]])
    down, across = (length // config.vision.side for length in best_size(config, size))
    if tiles.shape[0] != 1 + down * across:
        raise ValueError(
            f"a picture of {size} pixels has 1 + {down} x {across} tiles, got {tiles.shape[0]}."
        )
    n, grid = x.shape[-1], config.vision.grid
    x = x[1:].reshape(down, across, grid, grid, n).transpose(0, 2, 1, 3, 4)
    (top, rows), (left, columns) = _unpadded(config, size)
    x = x.reshape(down * grid, across * grid, n)[top : top + rows, left : left + columns]
    x = resize_grid(x, image_layout(config, size), "linear")
    ends = jnp.broadcast_to(newline.reshape(1, 1, -1), (x.shape[0], 1, n)).astype(x.dtype)
    return jnp.concatenate([whole, jnp.concatenate([x, ends], 1).reshape(-1, n)])


def image_tokens(config: LlavaConfig, size: tuple[int, int], *, tiled: bool = True) -> int:
    """Return the tokens of a picture, newlines included."""
    whole = config.vision.grid**2
    if not tiled:
        return whole + 1
    rows, columns = image_layout(config, size)
    return whole + rows * (columns + 1)


def positions(ids: Sequence[int] | np.ndarray) -> tuple[Int[np.ndarray, "T 1"], int]:
    """Return the positions of a prompt (every token is one further), and the next one."""
    return np.arange(len(ids), dtype=np.int32)[:, None], len(ids)


def prompt_plan(config: LlavaConfig, ids: Sequence[int] | np.ndarray) -> Plan:
    """Return the plan of a whole prompt; its features are those of all pictures, then videos."""
    pos, after = positions(ids)
    pictures = int((np.asarray(ids) == config.image).sum())
    return plan(ids, pos, after, {config.image: (VISION, 0), config.video: (VISION, pictures)})


def video_chunk(config: LlavaConfig, frames: int) -> Plan:
    """Return the plan of some frames of an endless video; the newline comes with what follows."""
    count = frames * config.frame_tokens
    ids = np.full(count, config.video, np.int32)
    return plan(ids, positions(ids)[0], count, {config.video: (VISION, 0)})
