"""What the config.json files of the Qwen families have alike: a decoder with three rotary axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.hf.config import (
    ATTENTION,
    decoder_config,
    head_dim,
    rope_settings,
    rope_theta,
)
from jaxmem.models.hf.keys import check_keys, check_value, is_tied, number, section, whole_numbers
from jaxmem.models.qwen.vision import VisionConfig
from jaxmem.rope import Rope, mrope_interleaved, mrope_sectioned

TOKENS = {name: f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")}
TOKEN_IDS = {
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}  # fmt: skip
"""Of a config.json that does not say."""


@dataclass(frozen=True)
class VLConfig:
    """Static description of a vision-language model."""

    decoder: DecoderConfig  # its language model
    vision: VisionConfig  # its encoder
    image: int  # placeholder token of pictures
    video: int  # placeholder token of videos
    vision_start: int  # token before a picture, a video or a frame
    vision_end: int  # token after it


class Defaults(NamedTuple):
    """What transformers takes where a config.json does not say, by family."""

    text: Mapping[str, Any]  # keys of the text config
    sections: tuple[int, int, int]  # `mrope_section`
    interleaved: bool  # how the sections lie, whatever the file says
    rotated: float | None = None  # part of a head that turns; None: all, whatever it says


QWEN2_5_VL = Defaults({"rope_theta": 1e6, "rms_norm_eps": 1e-5}, (16, 24, 24), False)
QWEN2_5_OMNI = Defaults({"rope_theta": 1e6}, (16, 24, 24), False)
QWEN3_VL = Defaults({"rope_theta": 5e5, "head_dim": 128}, (24, 20, 20), True)
QWEN3_5 = Defaults({"rope_theta": 1e4, "head_dim": 256}, (11, 11, 10), True, 0.25)


def mrope(text: Mapping[str, Any], defaults: Defaults) -> Rope:
    """Return the rotary embedding of a text config.

    Where only a part of a head is rotated, its pairs come first and the others have frequency 0.

    Raises:
      ValueError: if it is scaled in an unknown way, or a key holds something else than it should.
    """
    rope, kind = rope_settings(text)
    make = mrope_interleaved if defaults.interleaved else mrope_sectioned
    sections = whole_numbers({"mrope_section": defaults.sections, **rope}, "mrope_section")
    width = head_dim(text)
    if defaults.rotated is None:
        return make(width, rope_theta(text), sections)
    check_value("rope_type", kind, "default")
    key = "partial_rotary_factor"
    found = {key: rope.get(key, text.get(key, defaults.rotated))}
    turned = make(int(width * number(found, key, above=0, most=1)), rope_theta(text), sections)
    rest = (width - turned.head_dim) // 2
    return Rope(turned.inv_freq + (0.0,) * rest, turned.axis + (0,) * rest)


def read_decoder(
    config: Mapping[str, Any],
    defaults: Defaults,
    *,
    qkv_bias: bool,
    qk_norm: bool,
    kinds: Sequence[str] = ATTENTION,
) -> DecoderConfig:
    """Return the decoder that a config.json describes, options as in `decoder_config`.

    The text settings are `text_config`, or the top level in files of the first releases.

    Raises:
      ValueError: if a key is missing, or the file asks for something that is not implemented.
    """
    text = section(config, "text_config") or config
    tied = is_tied(config, text)
    check_keys(text, ("hidden_size", "num_attention_heads"))
    text = {**defaults.text, **text}
    rope = mrope(text, defaults)
    more = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "tied": tied, "kinds": kinds}
    return decoder_config(text, rope, **more)
