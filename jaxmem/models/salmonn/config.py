"""config.json and the weights of video-SALMONN 2+, as released on both of its bases.

`model_type` is the base's; the mark is `audio_config`: Whisper's keys, with BERT's of the Q-Former
in `qformer_config`. A key that is absent has the released code's default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.encoders import qformer, whisper
from jaxmem.models.encoders.qformer import QFormerConfig
from jaxmem.models.encoders.whisper import WhisperConfig
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import (
    check_family,
    check_keys,
    check_value,
    number,
    section,
    sizes,
    token_ids,
)
from jaxmem.models.hf.weights import Weight, dense, under
from jaxmem.models.qwen import qwen2_5_vl, qwen3_vl
from jaxmem.models.qwen.qwen2_5_vl import Qwen25VLConfig
from jaxmem.models.qwen.qwen3_vl import Qwen3VLConfig

BASES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}
AUDIO_TOKEN = {"qwen2_5_vl": 151_665, "qwen3_vl": 151_669}
"""The token of sound where config.json does not say."""
NAMES = {
    "sound": "audio.",
    "qformer": "audio.qformer.bert.",
    "queries": "audio.q_tokens",
    "projector": "audio.audio_proj",
}
"""What stored names begin with; the base's stand beside them unchanged."""
RENAMES = (("model.audio.", "audio."),)
"""With the Qwen3-VL base the names of sound have a level more."""
IGNORE = ("model.language_model.layers.*.ttt_*",)
"""Selection layers that some checkpoints of the Qwen3-VL base were trained with."""
WHISPER_LARGE_V3 = {
    "model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120, "num_mel_bins": 128, "max_source_positions": 1500,
    "second_per_window": 0.5,
}  # fmt: skip
QFORMER = {
    "hidden_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12,
    "intermediate_size": 12_288, "encoder_width": 1280, "cross_attention_freq": 1,
    "query_length": 1,
}  # fmt: skip
"""The released code's defaults, as those of `WHISPER_LARGE_V3`."""
ROWS_PER_SECOND = 50  # of Whisper's encoder
TICKS_PER_SECOND = 2  # of the temporal axis, whatever config.json says


@dataclass(frozen=True)
class SalmonnConfig:
    """Static description of the model."""

    base: Qwen25VLConfig | Qwen3VLConfig  # the vision-language model
    sound: WhisperConfig  # Whisper's encoder
    qformer: QFormerConfig  # what reads its rows
    audio: int  # placeholder token of sound

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


def hears(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of this family: one of its bases with `audio_config`."""
    return config.get("model_type") in BASES and config.get("audio_config") is not None


def read_config(config: Mapping[str, Any]) -> SalmonnConfig:
    """Return the model that a config.json describes.

    Raises:
      ValueError: if it is of another family or asks for something that is not implemented.
    """
    check_family(config, tuple(BASES))
    check_keys({**config, "audio_config": hears(config) or None}, ("audio_config",))
    given = _known(section(config, "audio_config"))
    given["model_type"] = "whisper"
    heard = WHISPER_LARGE_V3 | given
    sound = whisper.read_config(heard)
    own = _known(section(heard, "qformer_config", "audio_config"))
    former = QFORMER | {"encoder_width": sound.stack.width} | own
    base = BASES[config["model_type"]].read_config(config)
    every = number(heard, "second_per_window", "audio_config", above=0)
    for key, found, known in (
        ("second_stride", heard.get("second_stride", 0.5), every),
        ("encoder_width of qformer_config", former["encoder_width"], sound.stack.width),
        ("out_hidden_size of qformer_config", former.get("out_hidden_size"), base.decoder.width),
    ):
        check_value(key, known if found is None else found, known)
    window = round(ROWS_PER_SECOND * every)
    if window < 1 or sound.rows % window:
        raise ValueError(
            f"second_per_window of audio_config is {every}, which is {window} rows; expected a "
            f"divisor of the {sound.rows} rows of a clip (max_source_positions)."
        )
    keys = {"encoder_width": "encoder_hidden_size"}
    keys["cross_attention_freq"] = "cross_attention_frequency"
    former = {keys.get(key, key): value for key, value in former.items()}
    if isinstance(base, Qwen25VLConfig):
        base = replace(base, ticks_per_second=TICKS_PER_SECOND)
    queries = sizes(former, {"queries": "query_length"}, "qformer_config")
    return SalmonnConfig(
        base=base,
        sound=sound,
        qformer=qformer.read_config(former, window=window, **queries),
        audio=_audio_token(config, base.decoder.vocab),
    )


def _audio_token(config: Mapping[str, Any], vocab: int) -> int:
    """Return the placeholder of sound; ValueError if config.json names no token."""
    key = "audio_token_id"
    if config.get(key) is None:  # its row of the embedding is never looked at
        return AUDIO_TOKEN[config["model_type"]]
    return token_ids(config, {"audio": key}, {}, vocab)["audio"]


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without the keys that are null: they have their defaults."""
    return {key: value for key, value in config.items() if value is not None}


def names(config: SalmonnConfig) -> Names:
    """Return which tensors a checkpoint holds."""
    base = config.family
    return Names(weight_table(config), (*base.RENAMES, *RENAMES), (*base.IGNORE, *IGNORE))


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
