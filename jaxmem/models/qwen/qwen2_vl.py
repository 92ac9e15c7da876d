"""Qwen2-VL (2B, 7B, 72B; arXiv 2409.12191): config, weights, encoder; the rest is Qwen2.5-VL's.

Its positions count frames of patches, whatever their rate: the same as a clock with one tick a
frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from jaxmem.models.encoders.vision_parts import Grids
from jaxmem.models.hf.checkpoint import back
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import check_family, sections, token_ids
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen import mrope
from jaxmem.models.qwen.config import QWEN2_5_VL, TOKEN_IDS, TOKENS, read_decoder
from jaxmem.models.qwen.qwen2_5_vl import IGNORE, RENAMES, TickedConfig, TickedFamily
from jaxmem.models.qwen.qwen2_vision import Qwen2VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen2_vision import read_config as read_vision
from jaxmem.models.qwen.stream import Features
from jaxmem.typing import Array, Float, Params

MODEL_TYPES = ("qwen2_vl",)


@dataclass(frozen=True)
class Qwen2VLConfig(TickedConfig):
    """Static description of the model."""

    vision: Qwen2VisionConfig
    ticks_per_second: int = 1  # with a "second" for each frame


def read_config(config: Mapping[str, Any]) -> Qwen2VLConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    vision = read_vision(*sections(config, ("vision_config",)))
    decoder = read_decoder(config, QWEN2_5_VL, qkv_bias=True, qk_norm=False)
    tokens = token_ids(config, TOKENS, TOKEN_IDS, decoder.vocab)
    return Qwen2VLConfig(decoder=decoder, vision=vision, **tokens)


def weight_table(config: Qwen2VLConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision"}, for names after `RENAMES`."""
    decoder = under("decoder", decoder_table(config.decoder))
    return decoder | under("vision", vision_table(config.vision))


def encode(
    params: Params, config: Qwen2VLConfig, patches: Float[Array, "N I"], grids: Grids
) -> Float[Array, "m E"]:
    """Return the features of pictures and videos, for `prompt.fill`."""
    return encode_vision(params["vision"], config.vision, patches, grids)


@dataclass(frozen=True)
class Qwen2VL(TickedFamily):
    """Qwen2-VL as a `Family`."""

    config: Qwen2VLConfig
    read_config = staticmethod(read_config)

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, IGNORE, back(RENAMES))

    @property
    def seconds(self) -> mrope.Seconds:
        return Fraction(1)

    def features(self, params: Params, patches: Array, grids: Grids, mel: Any) -> Features:
        return encode(params, self.config, patches, grids), None
