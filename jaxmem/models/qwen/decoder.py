"""The text part of a Qwen config.json with three rotary axes, as the one decoder's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.hf.config import check_keys, decoder_config, head_dim, rope_theta
from jaxmem.rope import Rope, mrope_interleaved, mrope_sectioned


def mrope(text: Mapping[str, Any]) -> Rope:
    """Return the rotary embedding, from `rope_parameters` or the older `rope_scaling`.

    Raises:
      ValueError: if there are no sections, or the frequencies are scaled.
    """
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    check_keys(rope, ("mrope_section",), "the rope_parameters (rope_scaling) of config.json")
    make = mrope_interleaved if rope.get("mrope_interleaved") else mrope_sectioned
    return make(head_dim(text), rope_theta(text), tuple(rope["mrope_section"]))


def read_decoder(config: Mapping[str, Any], *, qkv_bias: bool, qk_norm: bool) -> DecoderConfig:
    """Return the decoder that a config.json describes.

    The text settings are `text_config`, or the top level in files of the first releases.

    Args:
      config: the file, or the part of it that holds the text settings.
      qkv_bias: biases on q, k and v (Qwen2.5).
      qk_norm: norms on the heads of q and k (Qwen3).

    Raises:
      ValueError: if a key is missing, or the file asks for something that is not implemented.
    """
    text = config.get("text_config") or config
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    check_keys(text, ("hidden_size", "num_attention_heads"))
    return decoder_config(text, mrope(text), qkv_bias=qkv_bias, qk_norm=qk_norm, tied=bool(tied))
