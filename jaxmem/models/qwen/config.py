"""What the config.json files of the Qwen families have alike: a decoder with three rotary axes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def mrope(text: Mapping[str, Any]) -> Rope:
    """Return the rotary embedding of a text config; ValueError without sections, or if scaled."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    check_keys(rope, ("mrope_section",), "the rope_parameters (rope_scaling) of config.json")
    make = mrope_interleaved if rope.get("mrope_interleaved") else mrope_sectioned
    return make(head_dim(text), rope_theta(text), tuple(rope["mrope_section"]))


def read_decoder(config: Mapping[str, Any], *, qkv_bias: bool, qk_norm: bool) -> DecoderConfig:
    """Return the decoder that a config.json describes, options as in `decoder_config`.

    The text settings are `text_config`, or the top level in files of the first releases.

    Raises:
      ValueError: if a key is missing, or the file asks for something that is not implemented.
    """
    text = config.get("text_config") or config
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    check_keys(text, ("hidden_size", "num_attention_heads"))
    return decoder_config(text, mrope(text), qkv_bias=qkv_bias, qk_norm=qk_norm, tied=bool(tied))
