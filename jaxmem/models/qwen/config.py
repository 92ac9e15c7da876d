"""What the config.json files of the Qwen families have alike: a decoder with three rotary axes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.hf.config import check_keys, decoder_config, head_dim, rope_theta
from jaxmem.models.qwen.vision import VisionConfig
from jaxmem.rope import Rope, mrope_interleaved, mrope_sectioned

TOKENS = {name: f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")}


@dataclass(frozen=True)
class VLConfig:
    """Static description of a vision-language model."""

    decoder: DecoderConfig  # its language model
    vision: VisionConfig  # its encoder
    image: int  # placeholder token of pictures
    video: int  # placeholder token of videos
    vision_start: int  # token before a picture, a video or a frame
    vision_end: int  # token after it


class Turning(NamedTuple):
    """How a family turns queries and keys: what a config.json that does not say means."""

    make: Callable[..., Rope]  # of the layout; files do not decide it
    theta: float
    sections: tuple[int, ...]


BLOCKS = Turning(mrope_sectioned, 1e6, (16, 24, 24))
"""Qwen2-VL, Qwen2.5-VL and Qwen2.5-Omni."""
INTERLEAVED = Turning(mrope_interleaved, 5e5, (24, 20, 20))
"""Qwen3-VL."""


def mrope(text: Mapping[str, Any], turning: Turning) -> Rope:
    """Return the rotary embedding of a text config; ValueError if it is scaled or does not fit."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    sections = tuple(rope.get("mrope_section", turning.sections))
    if sum(sections) != head_dim(text) // 2:
        raise ValueError(
            f"the rotary sections {list(sections)} do not add up to half of the head width "
            f"{head_dim(text)}: give mrope_section in the rope_parameters (rope_scaling) of "
            "config.json."
        )
    return turning.make(head_dim(text), rope_theta(text), sections)


def read_decoder(
    config: Mapping[str, Any], turning: Turning, *, qkv_bias: bool, qk_norm: bool
) -> DecoderConfig:
    """Return the decoder that a config.json describes, options as in `decoder_config`.

    The text settings are `text_config`, or the top level in files of the first releases. `turning`
    is the family's.

    Raises:
      ValueError: if a key is missing, or the file asks for something that is not implemented.
    """
    text = config.get("text_config") or config
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    check_keys(text, ("hidden_size", "num_attention_heads"))
    text = {"rope_theta": turning.theta, **text}
    rope = mrope(text, turning)
    return decoder_config(text, rope, qkv_bias=qkv_bias, qk_norm=qk_norm, tied=bool(tied))
