"""A Q-Former over windows: learned queries read each window of an encoder's rows by themselves.

The blocks are BERT's with cross-attention in every one (BLIP-2, arXiv 2301.12597, 3.1): attention
among the queries of a window, attention to its rows, MLP; each is followed by its residual and a
layer norm. Windows do not overlap and never see each other (SALMONN, arXiv 2310.13289, 3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders.vision_parts import attend_all, gelu_mlp, layer_norm, through_blocks
from jaxmem.models.hf.keys import ENCODER, check_value, number, sizes
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params


class Names(NamedTuple):
    """What checkpoints call the parts; `layer.0...` and these follow a prefix."""

    layers: str = "encoder.layer.{}."
    attention: str = "self"  # the maps of queries, keys and values, in `attention.<this>.query`
    inner: str = "intermediate_query"
    outer: str = "output_query"
    norm: str = "embeddings.LayerNorm"  # of the learned queries


BERT = Names()
"""BERT's module with the MLP of the queries apart, as in BLIP-2's release."""
BLIP2 = Names(attention="attention", norm="layernorm")
"""`Blip2QFormerModel` of transformers."""


@dataclass(frozen=True)
class QFormerConfig:
    """Static description of a windowed Q-Former."""

    depth: int  # blocks
    width: int  # of the queries
    heads: int  # attention heads
    mlp_width: int  # inner width of the MLP
    inputs: int  # width of the encoder's rows
    window: int  # rows of a window
    queries: int = 1  # for each window
    norm_eps: float = 1e-12  # of every layer norm

    def __post_init__(self):
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"a Q-Former of width {self.width} cannot be cut into {self.heads} heads of an "
                "even width."
            )


def read_config(config: Mapping[str, Any], *, window: int, queries: int = 1) -> QFormerConfig:
    """Return the Q-Former that a BERT or BLIP-2 config describes.

    Args:
      config: its keys are transformers' (`Blip2QFormerConfig`).
      window: rows of a window.
      queries: for each window.

    Raises:
      ValueError: if a key is missing or asks for something that is not implemented.
    """
    where = "the config of the Q-Former"
    found = sizes(config, ENCODER | {"inputs": "encoder_hidden_size"}, where)
    for key, known in (("hidden_act", "gelu"), ("cross_attention_frequency", 1)):
        check_value(f"{key} of the Q-Former", config.get(key, known), known)
    norm_eps = number({"layer_norm_eps": 1e-12, **config}, "layer_norm_eps", where)
    return QFormerConfig(**found, window=window, queries=queries, norm_eps=norm_eps)


def _read(
    weights: Params, config: QFormerConfig, h: Float[Array, "w n W"], rows: Float[Array, "w r I"]
) -> Float[Array, "w n W"]:
    """Return queries that have attended to rows, with residual and norm."""
    split = lambda x: x.reshape(*x.shape[:-1], config.heads, -1)
    q = split(linear(h, weights["q"]))
    k, v = (split(linear(rows, weights[name])) for name in "kv")
    out = linear(jax.vmap(attend_all)(q, k, v).reshape(h.shape), weights["proj"])
    return layer_norm(h + out, weights["norm"], config.norm_eps)


def block(
    weights: Params, config: QFormerConfig, h: Float[Array, "w n W"], rows: Float[Array, "w r I"]
) -> Float[Array, "w n W"]:
    """Return one block's output for the queries of w windows of r rows."""
    h = _read(weights["self"], config, h, h)
    h = _read(weights["cross"], config, h, rows)
    return layer_norm(h + gelu_mlp(weights, h), weights["norm"], config.norm_eps)


def encode(
    params: Params, config: QFormerConfig, rows: Float[Array, "c t I"]
) -> Float[Array, "c m W"]:
    """Return what the queries read, window by window: m = t / window * queries.

    Args:
      params: {"queries", "norm", "blocks" (stacked: "self", "cross", "fc1", "fc2", "norm")}.
      rows: of an encoder, for c clips.

    Raises:
      ValueError: if the rows have another width or do not fill whole windows.
    """
    clips, count, width = rows.shape
    if width != config.inputs or count % config.window:
        raise ValueError(
            f"rows must be [clips, a multiple of {config.window}, {config.inputs}], got "
            f"{rows.shape}: pad the sound to whole windows."
        )
    rows = rows.reshape(-1, config.window, width)
    queries = params["queries"].reshape(1, config.queries, config.width)
    first = layer_norm(queries, params["norm"], config.norm_eps)
    first = jnp.broadcast_to(first, (rows.shape[0], *first.shape[1:]))
    step = lambda mine, h, _: block(mine, config, h, rows)
    out, _ = through_blocks(params["blocks"], first, step, (None,) * config.depth)
    return out.reshape(clips, -1, config.width)


def weight_table(
    config: QFormerConfig, queries: str, prefix: str = "", names: Names = BERT
) -> dict[str, Weight]:
    """Return the weight table.

    Args:
      queries: stored name of the learned queries, [1, n, W].
      prefix: of all other names, with its dot.
      names: what the checkpoint calls the parts.
    """
    n, width, at = config.depth, config.width, prefix + names.layers
    table = {"queries": Weight(queries, (1, config.queries, width), "flat")}
    table |= norm("norm", prefix + names.norm, width, bias=True)
    for path, part, source in (
        ("blocks.self", "attention", width),
        ("blocks.cross", "crossattention", config.inputs),
    ):
        for name, inputs in (("query", width), ("key", source), ("value", source)):
            where = f"{at}{part}.{names.attention}.{name}"
            table |= dense(f"{path}.{name[0]}", where, inputs, width, layers=n)
        table |= dense(f"{path}.proj", f"{at}{part}.output.dense", width, width, layers=n)
        table |= norm(f"{path}.norm", f"{at}{part}.output.LayerNorm", width, bias=True, layers=n)
    inner = config.mlp_width
    table |= dense("blocks.fc1", f"{at}{names.inner}.dense", width, inner, layers=n)
    table |= dense("blocks.fc2", f"{at}{names.outer}.dense", inner, width, layers=n)
    return table | norm("blocks.norm", f"{at}{names.outer}.LayerNorm", width, bias=True, layers=n)
