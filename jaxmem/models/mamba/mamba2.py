"""Mamba-2 language models (arXiv 2405.21060): config, weights, loading.

Two layouts are read: that of transformers (`Mamba2ForCausalLM`), and that of state-spaces/mamba2-*
(a config.json with `ssm_cfg`; their weights are pickled, so a safetensors file of the same names
must lie beside it). Every layer is a norm and a mixer; there is no attention and no MLP.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.models.hf import checkpoint
from jaxmem.models.hf.config import (
    check_family,
    check_keys,
    check_layer_kinds,
    check_value,
    read_json,
)
from jaxmem.models.hf.weights import Place, Weight, dense, norm
from jaxmem.models.hf.weights import abstract as shapes_of
from jaxmem.rope import rope_1d
from jaxmem.typing import Params

MODEL_TYPES = ("mamba2",)
RENAMES = (("backbone.embedding.", "backbone.embeddings."),)
"""Names of state-spaces, to those of transformers."""
IGNORE = ("lm_head.weight",)
"""A copy of the embedding that tied checkpoints may hold."""
KINDS = ("mamba2", "linear_attention")
"""Words for its layers, where a config.json names each; the second one is transformers'."""
DEFAULTS = {
    "num_heads": 128, "head_dim": 64, "state_size": 128, "n_groups": 8, "conv_kernel": 4,
    "expand": 2, "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5,
    "time_step_limit": (0.0, float("inf")), "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
"""What transformers takes where a config.json does not say."""
SSM = {
    "d_state": ("state_size", 128), "d_conv": ("conv_kernel", 4), "expand": ("expand", 2),
    "headdim": ("head_dim", 64), "ngroups": ("n_groups", 1), "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True), "dt_limit": ("time_step_limit", (0.0, float("inf"))),
}  # fmt: skip
"""Keys of `ssm_cfg` to those of transformers, and what mamba_ssm takes where one is absent."""
NOT_READ = {
    "layer": "Mamba2", "rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False,
    "d_ssm": None, "activation": "swish",
}  # fmt: skip
"""Keys of `ssm_cfg` with the one value that is implemented."""
NO_ATTENTION = {"heads": 1, "kv_heads": 1, "head_dim": 2, "mlp_width": 0, "rope": rope_1d(2)}
"""Sizes of attention and MLP, which such a decoder does not have."""


class LanguageModel(NamedTuple):
    """A decoder and its weights, or their shapes."""

    decoder: DecoderConfig
    params: Params


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Return the decoder that a config.json of either layout describes.

    Raises:
      ValueError: if a key is missing, or the file asks for something that is not implemented.
    """
    if "ssm_cfg" in config:
        config = _of_state_spaces(config)
    check_family(config, MODEL_TYPES)
    check_keys(config, ("hidden_size", "num_hidden_layers", "vocab_size"))
    found = {**DEFAULTS, **config}
    check_value("hidden_act", found["hidden_act"], "silu")
    layers = config["num_hidden_layers"]
    check_layer_kinds(config.get("layer_types", KINDS[:1] * layers), KINDS, layers)
    heads, width = found["num_heads"], found["hidden_size"]
    if heads * found["head_dim"] != found["expand"] * width:
        raise ValueError(
            f"config.json has {heads} heads of {found['head_dim']} but expand times hidden_size is "
            f"{found['expand'] * width}: the two must be equal."
        )
    mixer = Mamba2(
        heads,
        found["head_dim"],
        found["state_size"],
        groups=found["n_groups"],
        kernel=found["conv_kernel"],
        limit=_limit(found["time_step_limit"]),
        eps=found["layer_norm_epsilon"],
        bias=found["use_bias"],
        conv_bias=found["use_conv_bias"],
    )
    return DecoderConfig(
        layers=layers,
        width=width,
        vocab=found["vocab_size"],
        tied=found["tie_word_embeddings"],
        norm_eps=found["layer_norm_epsilon"],
        mixers=(mixer,) * layers,
        **NO_ATTENTION,
    )


def _limit(value: Any) -> tuple[float, float]:
    """Return the limits of a step; transformers writes infinity as {"__float__": "Infinity"}."""
    low, high = (float(x["__float__"] if isinstance(x, Mapping) else x) for x in value)
    return low, high


def _of_state_spaces(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of mamba_ssm under the keys of transformers."""
    check_keys(config, ("d_model", "n_layer", "vocab_size"))
    ssm = config["ssm_cfg"]
    for key, known in NOT_READ.items():
        check_value(f"ssm_cfg.{key}", ssm.get(key, "Mamba1" if key == "layer" else known), known)
    for key, known in (("attn_layer_idx", []), ("d_intermediate", 0), ("rms_norm", True)):
        check_value(key, config.get(key, known), known)
    found = {theirs: ssm.get(key, usual) for key, (theirs, usual) in SSM.items()}
    multiple = config.get("pad_vocab_size_multiple", 8)
    return found | {
        "model_type": "mamba2",
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layer"],
        "num_heads": found["expand"] * config["d_model"] // found["head_dim"],
        "vocab_size": -(-config["vocab_size"] // multiple) * multiple,
        "tie_word_embeddings": config.get("tie_embeddings", True),
    }


def weight_table(config: DecoderConfig, prefix: str = "") -> dict[str, Weight]:
    """Return the weight table of a decoder, for names after `RENAMES`; see `finalise`.

    Its tensors begin with `prefix`.
    """
    (mixer,) = config.stacks
    assert isinstance(mixer, Mamba2)
    n, at, own = config.layers, f"{prefix}backbone.layers.{{}}.", "mixers.0.mixer"
    width, inner, wide = config.width, mixer.inner, mixer.inner + mixer.channels + mixer.heads
    table = norm("mixers.0.norm", f"{at}norm", width, layers=n)
    table |= dense(f"{own}.in", f"{at}mixer.in_proj", width, wide, bias=mixer.bias, layers=n)
    shape = (mixer.channels, 1, mixer.kernel)
    table[f"{own}.conv.kernel"] = Weight(f"{at}mixer.conv1d.weight", shape, "patch", n)
    if mixer.conv_bias:
        table[f"{own}.conv.bias"] = Weight(f"{at}mixer.conv1d.bias", (mixer.channels,), layers=n)
    for path, name in (("dt_bias", "dt_bias"), ("a_log", "A_log"), ("d", "D")):
        table[f"{own}.{path}"] = Weight(f"{at}mixer.{name}", (mixer.heads,), layers=n)
    table |= norm(f"{own}.norm", f"{at}mixer.norm", inner, layers=n)
    table |= dense(f"{own}.out", f"{at}mixer.out_proj", inner, width, bias=mixer.bias, layers=n)
    words = f"{prefix}backbone.embeddings.weight"
    table["embedding.embedding"] = Weight(words, (config.vocab, width))
    table |= norm("norm", f"{prefix}backbone.norm_f", width)
    if not config.tied:
        table["head.kernel"] = Weight(f"{prefix}lm_head.weight", (config.vocab, width), "linear")
    return table


def finalise(params: Params) -> Params:
    """Return the weights of a table as a decoder takes them: stacks of mixers in a tuple."""
    return params | {"mixers": tuple(params["mixers"].values())}


def load(
    directory: str | Path,
    *,
    abstract: bool = False,
    dtype: Any = None,
    sharding: Place | Sharding | None = None,
) -> LanguageModel:
    """Return the language model of a directory with config.json and safetensors.

    Args:
      directory: of either layout.
      abstract: shapes for weights; config.json is enough.
      dtype: of the weights; None: as stored.
      sharding: of the weights, see `checkpoint.load`.

    Raises:
      ValueError: if something is missing, does not fit or is not implemented.
    """
    decoder = read_config(read_json(directory))
    table = weight_table(decoder)
    if abstract:
        return LanguageModel(
            decoder, jax.eval_shape(finalise, shapes_of(table, dtype or "float32"))
        )
    ignore = IGNORE if decoder.tied else ()
    more = {"renames": RENAMES, "ignore": ignore, "dtype": dtype, "sharding": sharding}
    return LanguageModel(decoder, finalise(checkpoint.load(directory, table, **more)))
