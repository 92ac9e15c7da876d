"""Reading `config.json` of a Hugging Face checkpoint, and the decoder that it describes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.hf.keys import (
    check_keys,
    check_layer_kinds,
    check_value,
    flag,
    number,
    section,
    sizes,
)
from jaxmem.rope import Rope, rope_1d, yarn

ATTENTION = ("full_attention",)
"""Words of `layer_types` for layers that attend to everything before them."""
SIZES = {
    "layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
    "mlp_width": "intermediate_size", "vocab": "vocab_size",
}  # fmt: skip
"""Fields of a decoder, and what transformers calls them."""


def read_json(directory: str | Path, name: str = "config.json") -> dict[str, Any]:
    """Return a JSON object of a directory, in which a key with null is a key that is absent.

    Raises:
      ValueError: if the file is missing, or holds something else.
    """
    path = Path(directory) / name
    if not path.is_file():
        trained = sorted(Path(directory).glob("tiny*.safetensors"))
        own = f" Of an embedded model give the file itself, {trained[0]}." if trained else ""
        raise ValueError(
            f"no {name} in {directory}: give a directory as save_pretrained writes it, with "
            f"config.json beside the safetensors files.{own}"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return without_nulls(value)


def optional_json(directory: str | Path, name: str) -> dict[str, Any]:
    """Return `read_json` of a file, {} where there is none."""
    return read_json(directory, name) if (Path(directory) / name).is_file() else {}


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the keys whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(x) for key, x in value.items() if x is not None}
    return [without_nulls(x) for x in value] if isinstance(value, list) else value


def rope_theta(text: Mapping[str, Any]) -> float:
    """Return the rotary base of newer or older files.

    Raises:
      ValueError: if it is no such number, or scaled other than by YaRN.
    """
    rope, kind = rope_settings(text)
    if kind not in ("default", "mrope", "yarn"):
        raise ValueError(
            f"config.json asks for rotary frequencies of type {kind!r}; supported are 'default', "
            "'mrope' and 'yarn'. Remove the scaling if the checkpoint was trained without it."
        )
    key = "rope_theta"
    found = {key: rope.get(key, text.get(key, 10_000.0))}
    return float(number(found, key, above=1 if kind == "yarn" else 0))  # YaRN divides by its log


def rope_settings(text: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the rotary settings of a text config, and the type of scaling that they name."""
    rope = section(text, "rope_parameters") or section(text, "rope_scaling")
    return rope, rope.get("rope_type", rope.get("type", "default"))


def scaled(rope: Rope, text: Mapping[str, Any]) -> Rope:
    """Return a rotary table as a text config stretches it: by YaRN, or not at all.

    The original context is `original_max_position_embeddings`, else `max_position_embeddings`.

    Raises:
      ValueError: if a YaRN config lacks its factor or both context lengths, or has settings that
        are not supported.
    """
    settings, kind = rope_settings(text)
    if kind != "yarn":
        return rope
    where = "the rope_scaling (rope_parameters) of config.json"
    check_keys(settings, ("factor",), where)
    for name in ("mscale", "mscale_all_dim"):
        check_value(name, settings.get(name), None)
    context, key = settings, "original_max_position_embeddings"
    if not context.get(key) and text.get("max_position_embeddings"):
        context, key = text, "max_position_embeddings"
    check_keys(context, (key,), where)
    names = ("beta_fast", "beta_slow", "attention_factor")
    given = [name for name in names if settings.get(name) is not None]
    more: dict[str, Any] = {name: number(settings, name, where, above=0) for name in given}
    more["truncate"] = flag(settings, "truncate", True, where)
    factor, original = number(settings, "factor", where), number(context, key, above=0)
    return yarn(rope, factor, theta=rope_theta(text), original=int(original), **more)


def head_dim(text: Mapping[str, Any]) -> int:
    """Return D of a text config."""
    if text.get("head_dim") is not None:
        return sizes(text, {"head_dim": "head_dim"})["head_dim"]
    found = sizes(text, {name: SIZES[name] for name in ("width", "heads")})
    return found["width"] // found["heads"]


def decoder_config(
    text: Mapping[str, Any],
    rope: Rope | None = None,
    *,
    qkv_bias: bool,
    qk_norm: bool,
    tied: bool,
    kinds: Sequence[str] = ATTENTION,
) -> DecoderConfig:
    """Return the decoder of a text config (Qwen2 and Qwen3 share its keys).

    Args:
      text: the config's part on the language model.
      rope: its rotary table, before any scaling that the config asks for; None: of one axis.
      qkv_bias: biases on q, k and v (Qwen2).
      qk_norm: norms on the heads of q and k (Qwen3).
      tied: whether the embedding is the output matrix; where it is written depends on the family.
      kinds: of layers that the family has, in the words of `layer_types`.

    Raises:
      ValueError: if a key is missing, or the decoder has parts that are not supported.
    """
    found = sizes(text, SIZES)
    check_value("hidden_act", text.get("hidden_act", "silu"), "silu")
    _check_attention(text, kinds, found["layers"])
    shared = {"num_key_value_heads": found["heads"]} | without_nulls(dict(text))
    return DecoderConfig(
        **found,
        **sizes(shared, {"kv_heads": "num_key_value_heads"}),
        head_dim=head_dim(text),
        rope=scaled(rope or rope_1d(head_dim(text), rope_theta(text)), text),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tied=tied,
        norm_eps=number({"rms_norm_eps": 1e-6, **text}, "rms_norm_eps"),
    )


def _check_attention(text: Mapping[str, Any], kinds: Sequence[str], layers: int) -> None:
    """Refuse layers of other kinds; where none are named transformers lets the later ones slide."""
    key, named = "layer_types", text.get("layer_types")
    if named is None and flag(text, "use_sliding_window", False):
        key = "use_sliding_window"
        first = number({"max_window_layers": 0, **text}, "max_window_layers")
        named = [ATTENTION[0] if i < first else "sliding_attention" for i in range(layers)]
    if named is not None:
        check_layer_kinds(named, kinds, layers, key)
