"""config.json of LLaVA-OneVision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.encoders import siglip
from jaxmem.models.encoders.siglip import SiglipConfig
from jaxmem.models.hf.config import decoder_config
from jaxmem.models.hf.keys import (
    check_family,
    check_value,
    flag,
    is_tied,
    refusal,
    sections,
    token_ids,
)

MODEL_TYPES = ("llava_onevision",)
TOKENS = {"image": "image_token_index", "video": "video_token_index"}
TOKEN_IDS = {"image_token_index": 151646, "video_token_index": 151647}
"""Of a config.json that does not say."""


@dataclass(frozen=True)
class LlavaConfig:
    """Static description of the model."""

    decoder: DecoderConfig  # its language model
    vision: SiglipConfig  # its encoder
    image: int  # placeholder token of pictures
    video: int  # placeholder token of videos
    layer: int  # block of the encoder whose output is projected, before the encoder's final norm
    # (height, width) in pixels that the tiles of a picture may cover together.
    sizes: tuple[tuple[int, int], ...]
    tiles: int  # pictures of more tiles than this are scaled down (anyres_max_9: 9)
    bias: bool = True  # biases in the projector

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
    if type(layer) is not int or not (-depth <= layer < 0 or 1 <= layer <= depth):
        raise ValueError(
            f"vision_feature_layer is {layer} in config.json; supported is one block of the "
            f"{depth}, from 1 on or from -1 backwards."
        )
    return layer + depth if layer < 0 else layer - 1


def _tiles(config: Mapping[str, Any]) -> int:
    """Return how many tiles of a picture `vision_aspect_ratio` allows."""
    found = config.get("vision_aspect_ratio", "anyres_max_9")
    number = str(found).removeprefix("anyres_max_")
    if not isinstance(found, str) or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"vision_aspect_ratio is {found!r}, supported is 'anyres_max_9'.")
    return int(number)


def _is_size(pair: Any) -> bool:
    """Return whether a value is a height and a width."""
    return isinstance(pair, list) and [type(n) for n in pair] == [int, int] and min(pair) > 0


def _tiled_sizes(config: Mapping[str, Any], side: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of `image_grid_pinpoints`; that of one tile where there are none."""
    key = "image_grid_pinpoints"
    found = config.get(key) or [[side, side]]
    pairs = found if isinstance(found, list) else []
    if not pairs or not all(map(_is_size, pairs)):
        raise refusal(key, found, "a list of pairs of whole numbers from 1 on, height and width")
    return tuple((height, width) for height, width in pairs)


def read_config(config: Mapping[str, Any]) -> LlavaConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    text, encoder = sections(config, ("text_config", "vision_config"))
    vision = siglip.read_config(encoder)
    check_value("model_type of text_config", text.get("model_type", "qwen2"), "qwen2")
    settings = {"vision_feature_select_strategy": "full", "projector_hidden_act": "gelu"}
    for key, known in settings.items():
        check_value(key, config.get(key, known), known)
    tied = is_tied(config, text)
    decoder = decoder_config(text, qkv_bias=True, qk_norm=False, tied=tied)
    return LlavaConfig(
        decoder=decoder,
        vision=vision,
        **token_ids(config, TOKENS, TOKEN_IDS, decoder.vocab),
        layer=_layer(config, vision.stack.depth),
        sizes=_tiled_sizes(config, vision.side),
        tiles=_tiles(config),
        bias=flag(config, "multimodal_projector_bias", True),
    )
