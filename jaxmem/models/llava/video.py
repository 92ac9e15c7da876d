"""LLaVA-NeXT's own checkpoints: LLaVA-Video (7B; arXiv 2410.02713), original LLaVA-OneVision.

Encoder, projector, weights and positions are those of `jaxmem.models.llava.onevision`. A frame is
pooled to half the side and written row by row with the learned newline after EVERY row: 27 x 27
patches become 14 x (14 + 1) tokens by bilinear pooling, 13 x (13 + 1) by averages. Frames follow
each other with nothing between them. LLaVA-OneVision has one newline, after the last frame, as
transformers' edition of it has (`jaxmem.models.llava.onevision`): `mm_newline_position` is
"one_token", or is not there. config.json names the encoder and does not describe it; of its
blocks the last one is not stored, and the features are the output of the one before.

The prompt is the chat template's with `<image>` and a line break in front of the question. As
released, the text before and after `<image>` is tokenised apart, and the video stands between.

Pictures are not read, and no sentence about the sampled times is written (`add_time_instruction`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from jaxmem.models.encoders import siglip
from jaxmem.models.encoders.resize import resize_grid
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.config import decoder_config
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import check_family, check_keys, check_value, is_tied, token_ids
from jaxmem.models.llava.onevision import (
    LlavaConfig,
    LlavaFamily,
    LlavaOnevision,
    project,
    with_row_ends,
)
from jaxmem.typing import Array, Float, Params

MODEL_TYPES = ("llava_qwen", "llava")
PLACEHOLDER = "<image>"
"""What a prompt says where the video stands; it need not be a token."""
TOWERS: dict[str, Mapping[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    }
}  # fmt: skip
"""Encoders that config.json may name, as their own config.json describes them."""
NEWLINES = ("grid", "one_token")
SETTINGS = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_spatial_pool_stride": 2,
}
"""Implemented values, which are also those of a config.json that does not say."""


@dataclass(frozen=True)
class LlavaVideoConfig(LlavaConfig):
    """Static description of the model."""

    # Bilinear to ceil(side / 2), or averages of 2 x 2 to floor(side / 2).
    pooling: Literal["bilinear", "average"] = "bilinear"
    # A newline after every row of a frame, or one after the last frame.
    newline: Literal["grid", "one_token"] = "grid"

    @property
    def frame_side(self) -> int:
        """Return the side of a frame in tokens, newlines not counted."""
        return self.vision.grid // 2 if self.pooling == "average" else super().frame_side

    @property
    def frame_tokens(self) -> int:
        """Return the tokens of a frame, newlines included."""
        return self.frame_side * (self.frame_side + (self.newline == "grid"))


def newline_of(config: Mapping[str, Any]) -> Any:
    """Return where newlines stand; ValueError if that is not implemented."""
    found = config.get("mm_newline_position", "one_token")  # the released code's default
    if found not in NEWLINES:
        raise ValueError(
            f"mm_newline_position is {found!r} in config.json, implemented are "
            f"{' and '.join(map(repr, NEWLINES))}."
        )
    return found


def read_config(config: Mapping[str, Any]) -> LlavaVideoConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    check_keys(config, ("mm_vision_tower",))
    newline = newline_of(config)
    for key, known in SETTINGS.items():
        check_value(key, config.get(key, known), known)
    pooling = config.get("mm_spatial_pool_mode", "bilinear")
    if pooling not in ("bilinear", "average"):
        raise ValueError(
            f"mm_spatial_pool_mode is {pooling!r} in config.json, implemented are 'bilinear' and "
            "'average'."
        )
    tower = config["mm_vision_tower"]
    if not isinstance(tower, str) or tower not in TOWERS:
        raise ValueError(
            f"mm_vision_tower is {tower!r} in config.json, known are {', '.join(TOWERS)}: add the "
            "encoder's own config to llava_video.TOWERS."
        )
    vision = dict(TOWERS[tower])
    vision = siglip.read_config(
        {**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1, "vision_use_head": False}
    )
    decoder = decoder_config(config, qkv_bias=True, qk_norm=False, tied=is_tied(config))
    key, row = "image_token_index", config.get("image_token_index", 151646)
    if type(row) is int and not 0 <= row < decoder.vocab:
        row = decoder.vocab - 1  # which no text has; the embedding has spare ones at its end
    return LlavaVideoConfig(
        decoder=decoder,
        vision=vision,
        image=-1,
        video=token_ids({key: row}, {key: key}, {key: decoder.vocab - 1}, decoder.vocab)[key],
        layer=vision.stack.depth - 1,
        sizes=((vision.side, vision.side),),
        tiles=1,
        pooling=pooling,
        newline=newline,
    )


def pool(config: LlavaVideoConfig, x: Float[Array, "F r c E"]) -> Float[Array, "F s s E"]:
    """Return projected patches at half the side."""
    side = config.frame_side
    if config.pooling == "bilinear":
        return resize_grid(x, (side, side), "linear")
    whole = x[:, : 2 * side, : 2 * side]  # an odd last row and column belong to no token
    return whole.reshape(x.shape[0], side, 2, side, 2, -1).mean((2, 4), jnp.float32).astype(x.dtype)


def encode(
    params: Params, config: LlavaVideoConfig, pixels: Float[Array, "F Y X C"]
) -> Float[Array, "m E"]:
    """Return the tokens of normalised frames, `frame_tokens` for each."""
    x = pool(config, project(params, config, pixels))
    x = with_row_ends(x, params["newline"]) if config.newline == "grid" else x
    return x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class LlavaVideo(LlavaFamily):
    """LLaVA-Video as a `Family`: a newline vector after every row of a frame."""

    config: LlavaVideoConfig
    read_config = staticmethod(read_config)
    frame_features = staticmethod(encode)

    def turn(self, question: str) -> Turn:
        return self.chat.around_text(question, PLACEHOLDER)


@dataclass(frozen=True)
class LlavaOnevisionNext(LlavaOnevision):
    """LLaVA-OneVision with LLaVA-NeXT's names and settings, and LLaVA-Video's prompt."""

    config: LlavaVideoConfig
    read_config = staticmethod(read_config)
    frame_features = staticmethod(encode)

    @property
    def names(self) -> Names:
        return super().names._replace(modules=None)

    def turn(self, question: str) -> Turn:
        return self.with_newline(self.chat.around_text(question, PLACEHOLDER))
