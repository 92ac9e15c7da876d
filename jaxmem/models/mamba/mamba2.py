"""Mamba-2 language models (arXiv 2405.21060): config, weights, loading.

Two layouts are read: that of transformers (`Mamba2ForCausalLM`), and that of state-spaces/mamba2-*
(a config.json with `ssm_cfg`; their weights are pickled, so a safetensors file of the same names
must lie beside it). Every layer is a norm and a mixer; there is no attention and no MLP.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.models.hf import checkpoint
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import (
    check_family,
    check_layer_kinds,
    check_value,
    flag,
    is_tied,
    number,
    sizes,
)
from jaxmem.models.hf.weights import Layers, Place, Weight, dense, norm
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
SIZES = {
    "width": "hidden_size", "layers": "num_hidden_layers", "vocab": "vocab_size",
    "heads": "num_heads", "head_dim": "head_dim", "size": "state_size", "groups": "n_groups",
    "kernel": "conv_kernel", "expand": "expand",
}  # fmt: skip
"""Sizes of a decoder and its layers, and what transformers calls them."""
DEFAULTS = {
    "num_heads": 128, "head_dim": 64, "state_size": 128, "n_groups": 8, "conv_kernel": 4,
    "expand": 2, "layer_norm_epsilon": 1e-5, "time_step_limit": (0.0, math.inf),
    "hidden_act": "silu",
}  # fmt: skip
"""What transformers takes where a config.json does not say."""
SSM = {
    "d_state": ("state_size", 128), "d_conv": ("conv_kernel", 4), "expand": ("expand", 2),
    "headdim": ("head_dim", 64), "ngroups": ("n_groups", 1), "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True), "dt_limit": ("time_step_limit", (0.0, math.inf)),
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
    found = {**DEFAULTS, **config}
    own = sizes(found, SIZES)
    check_value("hidden_act", found["hidden_act"], "silu")
    ends = {name: own.pop(name) for name in ("layers", "width", "vocab")}
    layers, inner = ends["layers"], own.pop("expand") * ends["width"]
    check_layer_kinds(config.get("layer_types", KINDS[:1] * layers), KINDS, layers)
    if own["heads"] * own["head_dim"] != inner:
        raise ValueError(
            f"config.json has {own['heads']} heads of {own['head_dim']} but expand times "
            f"hidden_size is {inner}: the two must be equal."
        )
    eps = number(found, "layer_norm_epsilon")
    mixer = Mamba2(
        **own,
        limit=_limit(found["time_step_limit"], "time_step_limit"),
        eps=eps,
        bias=flag(config, "use_bias", False),
        conv_bias=flag(config, "use_conv_bias", True),
    )
    return DecoderConfig(
        **ends,
        tied=is_tied(config),
        norm_eps=eps,
        mixers=(mixer,) * layers,
        **NO_ATTENTION,
    )


def _limit(value: Any, key: str) -> tuple[float, float]:
    """Return the limits of a step; transformers writes infinity as {"__float__": "Infinity"}.

    Raises:
      ValueError: if they are not two numbers from 0 on, the smaller one first.
    """
    pair = list(value) if isinstance(value, list | tuple) else []
    pair = [math.inf if x == {"__float__": "Infinity"} else x for x in pair]
    numbers = len(pair) == 2 and not {type(x) for x in pair} - {int, float}
    if not numbers or not 0 <= pair[0] <= pair[1] or pair[0] == math.inf:
        raise ValueError(
            f"{key} is {value!r} in config.json, expected the smallest step, a number from 0 on, "
            "and the largest one, in this order: use the config.json of the checkpoint."
        )
    return float(pair[0]), float(pair[1])


def _of_state_spaces(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of mamba_ssm under the keys of transformers."""
    ends = sizes(config, {"width": "d_model", "layers": "n_layer", "vocab": "vocab_size"})
    ssm = config["ssm_cfg"]
    if not isinstance(ssm, Mapping):
        raise ValueError(
            f"ssm_cfg is {ssm!r} in config.json, expected a JSON object: use the config.json of "
            "the checkpoint."
        )
    for key, known in NOT_READ.items():
        check_value(f"ssm_cfg.{key}", ssm.get(key, "Mamba1" if key == "layer" else known), known)
    for key, known in (("attn_layer_idx", []), ("d_intermediate", 0), ("rms_norm", True)):
        check_value(key, config.get(key, known), known)
    given = {key: ssm.get(key, usual) for key, (_, usual) in SSM.items()}
    whole = {key: key for key in ("d_state", "d_conv", "expand", "headdim", "ngroups")}
    where = "ssm_cfg of config.json"
    own = sizes(given, whole, where)
    given |= {key: flag(given, key, key == "conv_bias", where) for key in ("bias", "conv_bias")}
    given["dt_limit"] = _limit(given["dt_limit"], "ssm_cfg.dt_limit")
    key = "pad_vocab_size_multiple"
    multiple = sizes({key: 8, **config}, {"vocab": key})["vocab"]
    return {theirs: given[key] for key, (theirs, _) in SSM.items()} | {
        "model_type": "mamba2",
        "hidden_size": ends["width"],
        "num_hidden_layers": ends["layers"],
        "num_heads": own["expand"] * ends["width"] // own["headdim"],
        "vocab_size": -(-ends["vocab"] // multiple) * multiple,
        "tie_word_embeddings": flag(config, "tie_embeddings", True),
    }


def weight_table(config: DecoderConfig, prefix: str = "") -> dict[str, Weight]:
    """Return the weight table of a decoder, for names after `RENAMES`; see `finalise`.

    Its tensors begin with `prefix`.
    """
    (mixer,) = config.stacks
    assert isinstance(mixer, Mamba2)
    n, at = config.layers, f"{prefix}backbone.layers.{{}}."
    table = norm("mixers.0.norm", f"{at}norm", config.width, layers=n)
    table |= mixer_table(mixer, "mixers.0.mixer", f"{at}mixer.", config.width, n)
    return table | ends_table(config, prefix)


def mixer_table(
    mixer: Mamba2, own: str, theirs: str, width: int, layers: Layers
) -> dict[str, Weight]:
    """Return the entries of Mamba-2 layers: paths begin with `own`, tensors with `theirs`."""
    inner, wide = mixer.inner, mixer.inner + mixer.channels + mixer.heads
    more, shape = {"bias": mixer.bias, "layers": layers}, (mixer.channels, 1, mixer.kernel)
    table = dense(f"{own}.in", f"{theirs}in_proj", width, wide, **more)
    table[f"{own}.conv.kernel"] = Weight(f"{theirs}conv1d.weight", shape, "patch", layers)
    if mixer.conv_bias:
        bias = Weight(f"{theirs}conv1d.bias", (mixer.channels,), layers=layers)
        table[f"{own}.conv.bias"] = bias
    for path, name in (("dt_bias", "dt_bias"), ("a_log", "A_log"), ("d", "D")):
        table[f"{own}.{path}"] = Weight(f"{theirs}{name}", (mixer.heads,), layers=layers)
    table |= norm(f"{own}.norm", f"{theirs}norm", inner, layers=layers)
    return table | dense(f"{own}.out", f"{theirs}out_proj", inner, width, **more)


def ends_table(config: DecoderConfig, prefix: str = "") -> dict[str, Weight]:
    """Return the entries of embedding, final norm and output matrix."""
    words = f"{prefix}backbone.embeddings.weight"
    table = {"embedding.embedding": Weight(words, (config.vocab, config.width))}
    table |= norm("norm", f"{prefix}backbone.norm_f", config.width)
    if not config.tied:
        shape = (config.vocab, config.width)
        table["head.kernel"] = Weight(f"{prefix}lm_head.weight", shape, "linear")
    return table


def finalise(params: Params) -> Params:
    """Return the weights of a table as a decoder takes them: stacks of mixers in a tuple."""
    if "mixers" not in params:
        return params
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

    def names(decoder: DecoderConfig) -> Names:
        return Names(weight_table(decoder), RENAMES, IGNORE if decoder.tied else ())

    more = {"abstract": abstract, "dtype": dtype, "sharding": sharding}
    return loaded(directory, read_config, names, **more)


def loaded(
    directory: str | Path,
    read: Callable[[Mapping[str, Any]], DecoderConfig],
    names: Callable[[DecoderConfig], Names],
    *,
    abstract: bool,
    dtype: Any,
    sharding: Place | Sharding | None,
) -> LanguageModel:
    """Return `load` of a family, by its functions from config.json to decoder to tensors.

    Raises:
      ValueError: as `load`.
    """
    decoder = read(read_json(directory))
    table, renames, ignore, _ = names(decoder)
    if abstract:
        shapes = shapes_of(table, dtype or "float32")
        return LanguageModel(decoder, jax.eval_shape(finalise, shapes))
    more = {"renames": renames, "ignore": ignore, "dtype": dtype, "sharding": sharding}
    return LanguageModel(decoder, finalise(checkpoint.load(directory, table, **more)))
