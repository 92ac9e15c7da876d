"""Nemotron-H language models (arXiv 2504.03624): config, weights, loading.

Layers of one block each (norm, block, residual) in the order of a pattern: `M` Mamba-2, `*`
attention without positions, `-` an MLP with a squared ReLU. Experts (`E`) are not implemented, and
the heads of a multi-token prediction (`mtp.*`) are not read.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Sharding

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.mixers.feed_forward import FeedForward
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import (
    check_family,
    check_keys,
    check_layer_kinds,
    check_value,
    flag,
    number,
    sizes,
)
from jaxmem.models.hf.weights import Place, Weight, dense, norm
from jaxmem.models.mamba.mamba2 import LanguageModel, ends_table, loaded, mixer_table
from jaxmem.rope import Rope

MODEL_TYPES = ("nemotron_h",)
RENAMES = (("model.", "backbone."),)
"""Names of the modules of transformers 5, to those of the release."""
IGNORE = ("mtp.*",)
KINDS = {
    "linear_attention": "M", "full_attention": "*", "mlp": "-", "mamba": "M", "attention": "*",
}  # fmt: skip
"""Words of `layers_block_type`, new and old, and what a pattern calls the same."""
ENDS = {
    "width": "hidden_size", "vocab": "vocab_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
}  # fmt: skip
MAMBA = {
    "heads": "mamba_num_heads", "head_dim": "mamba_head_dim", "size": "ssm_state_size",
    "groups": "n_groups", "kernel": "conv_kernel",
}  # fmt: skip
"""Sizes of the decoder, those of its layers with a state, and what transformers calls them."""
DEFAULTS = {
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 21504, "mamba_num_heads": 128, "mamba_head_dim": 64,
    "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4, "time_step_min": 0.001,
    "layer_norm_epsilon": 1e-5,
}  # fmt: skip
"""What transformers takes where a config.json does not say."""
IMPLEMENTED = {
    "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "attention_bias": False,
    "mamba_proj_bias": False, "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip
"""Keys with the one value that is implemented, which is also what transformers takes."""


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Return the decoder that a config.json describes.

    Raises:
      ValueError: if a key is missing, or the file asks for something that is not implemented.
    """
    check_family(config, MODEL_TYPES)
    found = {**DEFAULTS, **config}
    own = sizes(found, ENDS)
    for key, known in IMPLEMENTED.items():
        check_value(key, config.get(key, known), known)
    kinds, eps = layer_kinds(config), number(found, "layer_norm_epsilon")
    mixer = Mamba2(
        **sizes(found, MAMBA),
        # transformers reads no time_step_limit here
        limit=(number(found, "time_step_min"), math.inf),
        eps=eps,
        bias=flag(config, "use_bias", False),
        conv_bias=flag(config, "use_conv_bias", True),
    )
    inner = sizes(found, {"inner": "intermediate_size"})["inner"]
    mlp = FeedForward(inner, flag(config, "mlp_bias", False))
    made = {"M": mixer, "*": None, "-": mlp}
    pairs = own["head_dim"] // 2
    return DecoderConfig(
        layers=len(kinds),
        **own,
        mlp_width=0,
        rope=Rope((0.0,) * pairs, (0,) * pairs),  # no pair is turned: attention sees no positions
        norm_eps=eps,
        mixers=tuple(made[kind] for kind in kinds),
    )


def layer_kinds(config: Mapping[str, Any]) -> str:
    """Return the kind of every layer as a pattern, by either key of a config.json.

    Raises:
      ValueError: if both keys are missing, the one that counts names no layers, a kind is not
        known, or layers and kinds are not equally many.
    """
    key, words = "layers_block_type", config.get("layers_block_type")
    if words is None:  # as in transformers, the pattern counts where there is no list
        key, words = "hybrid_override_pattern", config.get("hybrid_override_pattern")
        check_keys(config, (key,))
    if not words or not isinstance(words, str | list):
        raise ValueError(
            f"{key} is {words!r} in config.json, expected the kind of every layer, such as 'M-*-' "
            "in hybrid_override_pattern: use the config.json of the checkpoint."
        )
    known = KINDS if key == "layers_block_type" else tuple(dict.fromkeys(KINDS.values()))
    layers = sizes({"num_hidden_layers": len(words), **config}, {"layers": "num_hidden_layers"})
    check_layer_kinds(words, tuple(known), layers["layers"], key)
    return "".join(KINDS.get(word, word) for word in words)


def weight_table(config: DecoderConfig) -> dict[str, Weight]:
    """Return the weight table of a decoder, for names after `RENAMES`."""
    at, width, table = "backbone.layers.{}.", config.width, ends_table(config)
    if n := config.numbers(None):
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        table |= norm("layers.attn_norm", f"{at}norm", width, layers=n)
        sizes = {"q": (width, q), "k": (width, kv), "v": (width, kv), "o": (q, width)}
        for name, (into, out) in sizes.items():
            more = {"bias": False, "layers": n}
            table |= dense(f"layers.{name}", f"{at}mixer.{name}_proj", into, out, **more)
    for i, mixer in enumerate(config.stacks):
        n, own = config.numbers(mixer), f"mixers.{i}.mixer"
        table |= norm(f"mixers.{i}.norm", f"{at}norm", width, layers=n)
        if isinstance(mixer, Mamba2):
            table |= mixer_table(mixer, own, f"{at}mixer.", width, n)
            continue
        assert isinstance(mixer, FeedForward)
        for name, into, out in (("up", width, mixer.inner), ("down", mixer.inner, width)):
            more = {"bias": mixer.bias, "layers": n}
            table |= dense(f"{own}.{name}", f"{at}mixer.{name}_proj", into, out, **more)
    return table


def load(
    directory: str | Path,
    *,
    abstract: bool = False,
    dtype: Any = None,
    sharding: Place | Sharding | None = None,
) -> LanguageModel:
    """Return the language model of a directory with config.json and safetensors.

    Arguments and errors are those of `mamba2.load`.

    Raises:
      ValueError: if something is missing, does not fit or is not implemented.
    """

    def names(decoder: DecoderConfig) -> Names:
        return Names(weight_table(decoder), RENAMES, IGNORE)

    more = {"abstract": abstract, "dtype": dtype, "sharding": sharding}
    return loaded(directory, read_config, names, **more)
