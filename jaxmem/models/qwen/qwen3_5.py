"""Qwen3.5, dense: a hybrid decoder under the prompt, positions and vision tower of Qwen3-VL.

Of every four layers three are `GatedDelta`; the fourth attends, rotates a part of every head only,
and gates its output. What differs otherwise: norms multiply by 1 + w, and there is no DeepStack.
The heads of a multi-token prediction (`mtp.*`) are not read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import check_family, check_value, sections, sizes, token_ids
from jaxmem.models.hf.weights import Weight, decoder_table, dense, norm, under
from jaxmem.models.qwen.config import QWEN3_5, TOKENS, read_decoder
from jaxmem.models.qwen.qwen3_vision import read_config as read_vision
from jaxmem.models.qwen.qwen3_vision import vision_table
from jaxmem.models.qwen.qwen3_vl import Qwen3VL, Qwen3VLConfig
from jaxmem.rope import Rope
from jaxmem.typing import Int, Params

MODEL_TYPES = ("qwen3_5",)
RENAMES = ()
IGNORE = ("lm_head.weight", "mtp.*")
"""A copy of the embedding that tied checkpoints may hold, and a head that guesses more tokens."""
TOKEN_IDS = {
    "image_token_id": 248056, "video_token_id": 248057, "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}  # fmt: skip
"""Of a config.json that does not say."""
KINDS = ("linear_attention", "full_attention")
"""Of layers: with a state, and with attention."""
SIZES = {
    "heads": "linear_num_value_heads", "key_heads": "linear_num_key_heads",
    "key_dim": "linear_key_head_dim", "value_dim": "linear_value_head_dim",
    "kernel": "linear_conv_kernel_dim",
}  # fmt: skip
"""Fields of the layers with a state, and their keys."""
DEFAULTS = {
    "linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
}  # fmt: skip
"""What transformers takes where a config.json does not say."""


def read_config(config: Mapping[str, Any]) -> Qwen3VLConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    text, vision = sections(config, ("text_config", "vision_config"))
    for key, known in (("attention_bias", False), ("attn_output_gate", True)):
        check_value(key, text.get(key, known), known)
    encoder = read_vision({"deepstack_visual_indexes": [], **vision})
    check_value("deepstack_visual_indexes", list(encoder.deep), [])
    decoder = read_decoder(config, QWEN3_5, qkv_bias=False, qk_norm=True, kinds=KINDS)
    mixer = GatedDelta(**sizes({**DEFAULTS, **text}, SIZES), eps=decoder.norm_eps)
    mixers = tuple(
        mixer if kind == KINDS[0] else None for kind in layer_kinds(text, decoder.layers)
    )
    tokens = token_ids(config, TOKENS, TOKEN_IDS, decoder.vocab)
    return Qwen3VLConfig(
        decoder=replace(decoder, attn_gate=True, mixers=mixers), vision=encoder, **tokens
    )


def layer_kinds(text: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """Return the kind of every layer, by `layer_types` or `full_attention_interval` of text_config.

    Raises:
      ValueError: if the interval is no whole number; `read_decoder` has checked `layer_types`.
    """
    every = sizes({**DEFAULTS, **text}, {"every": "full_attention_interval"})["every"]
    usual = [KINDS[(i + 1) % every == 0] for i in range(layers)]
    return tuple(text.get("layer_types", usual))


def weight_table(config: Qwen3VLConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision"}, whose weights `finalise` changes."""
    decoder, prefix = config.decoder, "model.language_model."
    at, width = f"{prefix}layers.{{}}.", decoder.width
    table = decoder_table(decoder, prefix)
    if attends := decoder.numbers(None):
        inner = 2 * decoder.heads * decoder.head_dim  # of every head the query, then the gate
        name = f"{at}self_attn.q_proj"
        table |= dense("layers.q", name, width, inner, bias=False, layers=attends)
    for i, mixer in enumerate(decoder.stacks):
        assert isinstance(mixer, GatedDelta)
        own, theirs, n = f"mixers.{i}.mixer", f"{at}linear_attn.", decoder.numbers(mixer)
        inner = mixer.heads * mixer.width
        outputs = {"qkv": mixer.channels, "z": inner, "a": mixer.heads, "b": mixer.heads}
        for name, size in outputs.items():
            more = {"bias": False, "layers": n}
            table |= dense(f"{own}.{name}", f"{theirs}in_proj_{name}", width, size, **more)
        shape = (mixer.channels, 1, mixer.kernel)
        table[f"{own}.conv.kernel"] = Weight(f"{theirs}conv1d.weight", shape, "patch", n)
        for path, name in (("dt_bias", "dt_bias"), ("a_log", "A_log")):
            table[f"{own}.{path}"] = Weight(f"{theirs}{name}", (mixer.heads,), layers=n)
        table |= norm(f"{own}.norm", f"{theirs}norm", mixer.width, layers=n)
        table |= dense(f"{own}.out", f"{theirs}out_proj", inner, width, bias=False, layers=n)
    return under("decoder", table) | under("vision", vision_table(config.vision))


def channels(rope: Rope) -> Int[np.ndarray, "D"]:
    """Return which stored channel of a head comes where.

    Stored pairs are (i, i + R/2) inside the first R channels, which are rotated; those of the
    decoder are (i, i + D/2).
    """
    half, rotated = rope.head_dim // 2, sum(freq != 0 for freq in rope.inv_freq)
    rest = np.arange(2 * rotated, rope.head_dim)
    first, second = np.arange(rotated), np.arange(rotated, 2 * rotated)
    return np.concatenate([first, rest[: half - rotated], second, rest[half - rotated :]])


def finalise(params: Params, config: Qwen3VLConfig) -> Params:
    """Return the weights of a table as the decoder takes them.

    Norms become 1 + w (float32, in which they are computed), queries and gates are parted, channels
    of queries and keys are put where the decoder rotates them, and stacks of mixers are in a tuple.
    """
    decoder = params["decoder"] | {"norm": _one_more(params["decoder"]["norm"])}
    if "layers" in decoder:
        decoder["layers"] = _attention(decoder["layers"], config.decoder)
    if "mixers" in decoder:
        decoder["mixers"] = tuple(_norms(stack) for stack in decoder["mixers"].values())
    return params | {"decoder": decoder}


def _attention(layers: Params, config: DecoderConfig) -> Params:
    """Return the layers that attend."""
    order, found = channels(config.rope), _norms(layers)
    both, keys = layers["q"]["kernel"], layers["k"]["kernel"]
    lead = both.shape[:-1]
    both = both.reshape(*lead, config.heads, 2, config.head_dim)
    keys_of = keys.reshape(*lead, config.kv_heads, config.head_dim)
    found["q"] = {"kernel": both[..., 0, order].reshape(*lead, -1)}
    found["attn_gate"] = {"kernel": both[..., 1, :].reshape(*lead, -1)}
    found["k"] = {"kernel": keys_of[..., order].reshape(keys.shape)}
    for name in ("q_norm", "k_norm"):
        found[name] = {"scale": found[name]["scale"][..., order]}
    return found


def stored(adapters: Params, config: DecoderConfig) -> Params:
    """Return adapters of a decoder as those of its table: queries and gates share a matrix.

    Their ranks add up, and channels are put back where the checkpoint has them.
    """
    layers, order = dict(adapters.get("layers", {})), channels(config.rope)
    parts = {"q": (0, order), "attn_gate": (1, np.arange(config.head_dim))}
    mine = {name: layers.pop(name) for name in parts if name in layers}
    if mine:
        b = [_spread(pair["b"], config.heads, 2, *parts[name]) for name, pair in mine.items()]
        a = [np.asarray(pair["a"]) for pair in mine.values()]
        layers["q"] = {"a": np.concatenate(a, -1), "b": np.concatenate(b, -2)}
    if "k" in layers:
        b = _spread(layers["k"]["b"], config.kv_heads, 1, 0, order)
        layers["k"] = {"a": layers["k"]["a"], "b": b}
    return adapters | {"layers": layers}


def _spread(b: Any, heads: int, parts: int, part: int, order: np.ndarray) -> np.ndarray:
    """Return b [L, r, heads D] as [L, r, heads parts D]: one part of each head, in an order."""
    wide = np.zeros((*b.shape[:2], heads, parts, len(order)), np.float32)
    wide[..., part, order] = np.asarray(b).reshape(*b.shape[:2], heads, -1)
    return wide.reshape(*b.shape[:2], -1)


def _norms(layers: Params) -> Params:
    """Return layers whose own norms multiply by 1 + w; that of a mixer is not among them."""
    return {name: _one_more(x) if name.endswith("norm") else x for name, x in layers.items()}


def _one_more(weight: Params) -> Params:
    return {"scale": 1 + jnp.asarray(weight["scale"], jnp.float32)}


@dataclass(frozen=True)
class Qwen35(Qwen3VL):
    """Qwen3.5 as a `Family`."""

    read_config = staticmethod(read_config)

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, IGNORE)

    def finalise(self, params: Params) -> Params:
        return finalise(params, self.config)

    def stored(self, adapters: Params) -> Params:
        if "decoder" not in adapters:
            return adapters
        return adapters | {"decoder": stored(adapters["decoder"], self.decoder)}
