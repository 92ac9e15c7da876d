"""The Thinker of Qwen2.5-Omni (3B, 7B; arXiv 2503.20215): config, weights, encoders.

The vision encoder is that of Qwen2.5-VL, the audio encoder Whisper's blocks window by window; how
their tokens are laid out in time is in `jaxmem.models.qwen.qwen2_5_omni_layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.encoders.vision_parts import Grid
from jaxmem.models.hf.config import check_family, check_keys
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen.audio import QwenAudioConfig, audio_table, encode_audio
from jaxmem.models.qwen.audio import read_config as read_audio
from jaxmem.models.qwen.decoder import read_decoder
from jaxmem.models.qwen.qwen2_5_omni_layout import OmniLayout
from jaxmem.models.qwen.qwen2_5_vision import Qwen25VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen2_5_vision import read_config as read_vision
from jaxmem.typing import Array, Float, Params

MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")
RENAMES = (("thinker.", ""),)
"""The released checkpoints hold the Thinker beside the Talker."""
IGNORE = (
    "lm_head.weight",  # a copy that tied checkpoints may hold
    "audio_tower.audio_bos_eos_token.weight",  # not used by the released code
    "audio_tower.positional_embedding*",
    "talker.*",
    "token2wav.*",
)
TOKENS = (
    "image_token_index", "video_token_index", "audio_token_index", "vision_start_token_id",
    "vision_end_token_id", "audio_start_token_id", "audio_end_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class Qwen25OmniConfig:
    """Static description of the model.

    Attributes:
      decoder: of the language model.
      vision: of the encoder of pictures.
      sound: of the encoder of sound.
      layout: its tokens and their positions.
    """

    decoder: DecoderConfig
    vision: Qwen25VisionConfig
    sound: QwenAudioConfig
    layout: OmniLayout


def read_config(config: Mapping[str, Any]) -> Qwen25OmniConfig:
    """Return the Thinker that a config.json describes, alone or within `thinker_config`.

    Raises:
      ValueError: if it is of another family or asks for something that is not implemented.
    """
    check_family(config, MODEL_TYPES)
    config = config.get("thinker_config") or config
    check_keys(config, (*TOKENS, "text_config", "vision_config", "audio_config"))
    vision = read_vision(config["vision_config"])
    per_second = config.get("position_id_per_seconds", 25)
    layout = OmniLayout(
        *(config[name] for name in TOKENS),
        merge=vision.merge,
        ticks_per_second=per_second,
        chunk_ticks=int(per_second * config.get("seconds_per_chunk", 2)),
    )
    decoder = read_decoder(config, qkv_bias=True, qk_norm=False)
    return Qwen25OmniConfig(decoder, vision, read_audio(config["audio_config"]), layout)


def weight_table(config: Qwen25OmniConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision", "audio"}, for names after `RENAMES`."""
    table = under("decoder", decoder_table(config.decoder))
    table |= under("vision", vision_table(config.vision, fused=False))
    return table | under("audio", audio_table(config.sound))


def encode(
    params: Params,
    config: Qwen25OmniConfig,
    patches: Float[Array, "N I"] | None,
    grids: Sequence[Grid],
    clips: Sequence[Float[Array, "J M"]] = (),
) -> Float[Array, "m E"]:
    """Return the features of pictures and videos, then those of clips of log-mel frames."""
    found = []
    if patches is not None:
        found.append(encode_vision(params["vision"], config.vision, patches, grids)[0])
    if clips:
        found.append(encode_audio(params["audio"], config.sound, clips)[0])
    return jnp.concatenate(found)
