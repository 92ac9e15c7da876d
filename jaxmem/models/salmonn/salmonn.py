"""video-SALMONN 2+: a Qwen vision-language model that also hears; config and weights.

Sound is cut into clips of 30 s and padded to whole ones. Whisper's encoder makes 50 rows a second,
a windowed Q-Former reads each 25 of them with one query, and a linear map takes what it read to the
decoder: 2 tokens a second. The bases are Qwen2.5-VL (3B, 7B, 72B) and, as OmniMem runs it, Qwen3-VL
(4B, 8B); `jaxmem.models.salmonn.layout` has the layout of each.

The names of the released tensors and config keys are not known here: `MODEL_TYPES`, `NAMES` and the
keys that `read_config` adds to the base's are this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax.numpy as jnp

from jaxmem.decoder.decoder import DecoderConfig, linear
from jaxmem.models.encoders import qformer, whisper
from jaxmem.models.encoders.qformer import QFormerConfig
from jaxmem.models.encoders.whisper import WhisperConfig
from jaxmem.models.hf.config import check_family, check_keys
from jaxmem.models.hf.weights import Weight, dense, under
from jaxmem.models.qwen import qwen2_5_vl, qwen3_vl
from jaxmem.models.qwen.qwen2_5_vl import Qwen25VLConfig
from jaxmem.models.qwen.qwen3_vl import Qwen3VLConfig
from jaxmem.typing import Array, Float, Params

BASES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}
PREFIX = "video_salmonn_2_plus_"
MODEL_TYPES = tuple(PREFIX + base for base in BASES)
NAMES = {
    "sound": "audio_encoder.",
    "qformer": "audio_qformer.",
    "queries": "audio_query_tokens",
    "projector": "audio_projector",
}
"""What stored names begin with; the base's stand beside them unchanged."""
WHISPER_LARGE_V3 = {
    "model_type": "whisper",
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}
QFORMER = {
    "hidden_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
"""The released code's defaults; the inner width of the MLP is that of BERT's base model."""
ROWS_PER_SECOND = 50  # of Whisper's encoder


@dataclass(frozen=True)
class SalmonnConfig:
    """Static description of the model.

    Attributes:
      base: of the vision-language model.
      sound: of Whisper's encoder.
      qformer: of the Q-Former.
      audio: placeholder token of sound.
    """

    base: Qwen25VLConfig | Qwen3VLConfig
    sound: WhisperConfig
    qformer: QFormerConfig
    audio: int

    @property
    def decoder(self) -> DecoderConfig:
        """Return the language model."""
        return self.base.decoder

    @property
    def family(self) -> Any:
        """Return the module of the base."""
        return qwen3_vl if isinstance(self.base, Qwen3VLConfig) else qwen2_5_vl

    @property
    def per_second(self) -> Fraction:
        """Return the tokens of sound in a second."""
        return Fraction(ROWS_PER_SECOND * self.qformer.queries, self.qformer.window)

    @property
    def clip_tokens(self) -> int:
        """Return the tokens of a clip."""
        return self.sound.rows // self.qformer.window * self.qformer.queries


def read_config(config: Mapping[str, Any]) -> SalmonnConfig:
    """Return the model that a config.json describes.

    It is the base's with `model_type` after `PREFIX`, `audio_token_id`, and, where they differ from
    `WHISPER_LARGE_V3` and `QFORMER`, `audio_config` (Whisper's keys) and `qformer_config` (those of
    BERT, and `window` and `queries`).

    Raises:
      ValueError: if it is of another family or asks for something that is not implemented.
    """
    check_family(config, MODEL_TYPES)
    check_keys(config, ("audio_token_id",))
    base = config["model_type"].removeprefix(PREFIX)
    sound = whisper.read_config(config.get("audio_config") or WHISPER_LARGE_V3)
    former = {**QFORMER, **(config.get("qformer_config") or {})}
    former["encoder_hidden_size"] = sound.stack.width
    window, queries = former.pop("window", ROWS_PER_SECOND // 2), former.pop("queries", 1)
    if window < 1 or sound.rows % window:
        raise ValueError(
            f"qformer_config.window is {window}, expected a divisor of the {sound.rows} rows of a "
            "clip (max_source_positions)."
        )
    return SalmonnConfig(
        base=BASES[base].read_config({**config, "model_type": base}),
        sound=sound,
        qformer=qformer.read_config(former, window=window, queries=queries),
        audio=config["audio_token_id"],
    )


def weight_table(config: SalmonnConfig) -> dict[str, Weight]:
    """Return the base's table with {"sound", "qformer", "projector"}."""
    former = qformer.weight_table(config.qformer, NAMES["queries"], NAMES["qformer"])
    width, wide = config.qformer.width, config.decoder.width
    return {
        **config.family.weight_table(config.base),
        **under("sound", whisper.weight_table(config.sound, NAMES["sound"])),
        **under("qformer", former),
        **dense("projector", NAMES["projector"], width, wide),
    }


def hear(
    params: Params, config: SalmonnConfig, logmel: Float[Array, "c J M"]
) -> Float[Array, "c m E"]:
    """Return the tokens of clips, `clip_tokens` for each whole one."""
    rows, _ = whisper.encode(params["sound"], config.sound, logmel)
    return linear(qformer.encode(params["qformer"], config.qformer, rows), params["projector"])


def features(
    seen: Float[Array, "m E"],
    heard: Float[Array, "n E"],
    deep: Float[Array, "d m E"] | None,
) -> tuple[Float[Array, "m+n E"], Float[Array, "d m+n E"] | None]:
    """Return all features for `prompt.fill`; DeepStack adds nothing to sound."""
    both = jnp.concatenate([seen, heard.astype(seen.dtype)])
    if deep is not None:
        deep = jnp.pad(deep, ((0, 0), (0, heard.shape[0]), (0, 0)))
    return both, deep
