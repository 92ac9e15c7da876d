"""One decoder for every transformer family: structure, initialisation and its two half-blocks.

A layer is `qkv` (norm, projections, q/k norm), attention, and `finish` (output projection, MLP).
What a chunk attends to is the memory's business, so attention sits between the halves and the
streaming step (`jaxmem.decoder.step`), a training forward and a question share the same code.

A layer with a state (`jaxmem.mixers`) has a mixer where others attend.

Weights are a plain nested dict; the layers of one kind are one stacked tree with a leading axis L,
indexed inside the layer loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmem.kernels.dense import linear, product
from jaxmem.memory.base import at_layer
from jaxmem.mixers.base import Mixer
from jaxmem.rope import Rope, scaled
from jaxmem.typing import Array, Float, Int, Params, PyTree


@dataclass(frozen=True)
class DecoderConfig:
    """Static description of a decoder.

    Attributes:
      layers: of all kinds; L of them attend.
      width: E.
      heads: H query heads.
      kv_heads: G; must divide `heads`.
      head_dim: D.
      mlp_width: inner width of the MLP; 0: no layer has one.
      vocab: number of tokens.
      rope: rotary table of D/2 pairs.
      activation: "swiglu" (gate, up, down) or "relu2" (squared ReLU; up, down).
      qkv_bias: biases on the q, k and v projections (Qwen2).
      qk_norm: RMS norm over each head of q and k (Qwen3).
      qk_norm_init: initial gain of that norm.
      attn_gate: attention's output times the sigmoid of a projection of its input (Qwen3.5).
      tied: output matrix is the embedding.
      norm_eps: of every RMS norm.
      mixers: of every layer what mixes its tokens, None where it attends; empty: all attend.

    Raises:
      ValueError: if there is no head, `heads`, `head_dim` or `mixers` do not go with the rest, or
        `mixers` holds something else than mixers.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab: int
    rope: Rope
    activation: Literal["swiglu", "relu2"] = "swiglu"
    qkv_bias: bool = False
    qk_norm: bool = False
    qk_norm_init: float = 1.0
    attn_gate: bool = False
    tied: bool = False
    norm_eps: float = 1e-6
    mixers: tuple[Mixer | None, ...] = ()

    def __post_init__(self):
        self._check_mixers()
        if self.mixers and len(self.mixers) != self.layers:
            raise ValueError(
                f"mixers names {len(self.mixers)} layers but the decoder has {self.layers}; give "
                "one for every layer, None where it attends."
            )
        if min(self.heads, self.kv_heads) < 1:
            raise ValueError(
                f"heads and kv_heads must be at least 1, got {self.heads} and {self.kv_heads}: "
                "give 1 of each where no layer attends."
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads}): every KV "
                "head serves the same number of query heads."
            )
        if self.rope.head_dim != self.head_dim:
            raise ValueError(
                f"the rotary table covers {self.rope.head_dim} channels but head_dim is "
                f"{self.head_dim}; build it with head_dim={self.head_dim}."
            )

    def _check_mixers(self) -> None:
        """Refuse what is no tuple of mixers: a config is hashable, and mixers are objects."""
        if not isinstance(self.mixers, tuple):
            raise ValueError(
                f"mixers is a {type(self.mixers).__name__}, expected a tuple: give "
                "mixers=tuple(...), a mixer or None for every layer."
            )
        for i, mixer in enumerate(self.mixers):
            if mixer is not None and not isinstance(mixer, Mixer):
                raise ValueError(
                    f"mixers has {mixer!r} for layer {i + 1}, expected an object of a jaxmem.Mixer "
                    "class, or None where the layer attends: make one, such as Mamba2(heads=4)."
                )

    @property
    def kinds(self) -> tuple[Mixer | None, ...]:
        """What mixes the tokens of every layer; None: attention with a memory."""
        return self.mixers or (None,) * self.layers

    @property
    def attends(self) -> int:
        """L, the number of layers that attend: those that a memory knows of."""
        return self.kinds.count(None)

    def numbers(self, kind: Mixer | None) -> tuple[int, ...]:
        """Return the numbers of the layers with a mixer; None: of those that attend."""
        return tuple(i for i, found in enumerate(self.kinds) if found == kind)

    @property
    def stacks(self) -> tuple[Mixer, ...]:
        """The mixers that differ, in the order of `params["mixers"]` and of a carry's states."""
        return tuple(dict.fromkeys(kind for kind in self.kinds if kind is not None))


class Layer(nnx.Module):
    """Names and initial values of one layer's weights."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width = config.width
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        bias = config.qkv_bias
        self.attn_norm = nnx.RMSNorm(width, rngs=rngs)
        self.q = nnx.Linear(width, q, use_bias=bias, rngs=rngs)
        self.k = nnx.Linear(width, kv, use_bias=bias, rngs=rngs)
        self.v = nnx.Linear(width, kv, use_bias=bias, rngs=rngs)
        self.o = nnx.Linear(q, width, use_bias=False, rngs=rngs)
        if config.attn_gate:
            self.attn_gate = nnx.Linear(width, q, use_bias=False, rngs=rngs)
        if config.qk_norm:
            gain = nnx.initializers.constant(config.qk_norm_init)
            self.q_norm = nnx.RMSNorm(config.head_dim, scale_init=gain, rngs=rngs)
            self.k_norm = nnx.RMSNorm(config.head_dim, scale_init=gain, rngs=rngs)
        _add_feed_forward(self, config, rngs)


class StateLayer(nnx.Module):
    """Names and initial values of the weights around a mixer."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        _add_feed_forward(self, config, rngs)


def _add_feed_forward(layer: Any, config: DecoderConfig, rngs: nnx.Rngs) -> None:
    """Give a layer the weights of its norm and MLP, where the decoder has MLPs."""
    if not config.mlp_width:
        return
    width, inner = config.width, config.mlp_width
    layer.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
    if config.activation == "swiglu":
        layer.gate = nnx.Linear(width, inner, use_bias=False, rngs=rngs)
    layer.up = nnx.Linear(width, inner, use_bias=False, rngs=rngs)
    layer.down = nnx.Linear(inner, width, use_bias=False, rngs=rngs)


class Ends(nnx.Module):
    """Embedding, final norm and output matrix."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(config.vocab, config.width, rngs=rngs)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        if not config.tied:
            self.head = nnx.Linear(config.width, config.vocab, use_bias=False, rngs=rngs)


def init_decoder(config: DecoderConfig, key: Array) -> Params:
    """Return initial weights: `{"layers": stacked [L, ...], "embedding", "norm", "head"}`.

    A decoder that has layers with a state has "mixers", too: a stack for each that differs. Where
    no layer attends there are no "layers".
    """
    layer_key, end_key = jax.random.split(key)
    params = {}
    if config.attends:
        params["layers"] = _stack(Layer, config, layer_key, config.attends)
    if config.stacks:
        params["mixers"] = init_mixers(config, layer_key)
    ends = nnx.to_pure_dict(nnx.state(Ends(config, rngs=nnx.Rngs(end_key)), nnx.Param))
    return params | ends


def init_mixers(config: DecoderConfig, key: Array) -> tuple[Params, ...]:
    """Return initial weights of the layers with a state [l, ...], a stack for each mixer."""
    return tuple(
        _state_layers(config, mixer, jax.random.fold_in(key, i))
        for i, mixer in enumerate(config.stacks)
    )


def _stack(module: Any, config: DecoderConfig, key: Array, count: int) -> Params:
    def one(k: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(module(config, rngs=nnx.Rngs(k)), nnx.Param))

    return jax.vmap(one)(jax.random.split(key, count))


def _state_layers(config: DecoderConfig, mixer: Mixer, key: Array) -> Params:
    around, own = jax.random.split(key)
    count = config.kinds.count(mixer)
    weights = jax.vmap(lambda k: mixer.weights(config.width, k))(jax.random.split(own, count))
    return _stack(StateLayer, config, around, count) | {"mixer": weights}


def layer_at(params: Params, index: Any) -> Params:
    """Return the weights of one layer that attends; `index` may be traced."""
    return at_layer(params["layers"], index)


def layer_in_stack(params: Params, index: Any) -> Params:
    """Return a layer as `layer_at` does, whose matrices know their stack (`with_stack`)."""
    return with_stack(params["layers"], index)


def with_stack(layers: PyTree, index: Any) -> PyTree:
    """Return one layer of stacked weights [L, ...], for use in a loop where `index` is traced.

    Matrices carry their stack, of which `linear` may take blocks; what is not used is not read.
    """
    if not isinstance(layers, dict):
        return at_layer(layers, index)
    inner = {name: with_stack(value, index) for name, value in layers.items()}
    return inner | {"stack": (layers["kernel"], index)} if "kernel" in layers else inner


def rms_norm(x: Float[Array, "*T E"], weight: Params, eps: float) -> Float[Array, "*T E"]:
    """Return x / rms(x) * scale, computed in float32 or what is wider, in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    scale = weight["scale"].astype(wide.dtype)
    return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def qkv(
    layer: Params, config: DecoderConfig, h: Float[Array, "*T E"]
) -> tuple[Float[Array, "*T H D"], Float[Array, "*T G D"], Float[Array, "*T G D"]]:
    """Return queries, keys and values of a layer, none of them rotated.

    Queries carry the scale of the logits, see `jaxmem.rope.scaled`.
    """
    x = rms_norm(h, layer["attn_norm"], config.norm_eps)
    q, k, v = (linear(x, layer[name]) for name in ("q", "k", "v"))
    q = q.reshape(*q.shape[:-1], config.heads, config.head_dim)
    k = k.reshape(*k.shape[:-1], config.kv_heads, config.head_dim)
    v = v.reshape(*v.shape[:-1], config.kv_heads, config.head_dim)
    if config.qk_norm:
        q = rms_norm(q, layer["q_norm"], config.norm_eps)
        k = rms_norm(k, layer["k_norm"], config.norm_eps)
    return scaled(q, config.rope), k, v


def mlp(layer: Params, config: DecoderConfig, x: Float[Array, "*T E"]) -> Float[Array, "*T E"]:
    """Return the feed-forward part of a layer, without its norm and residual."""
    up = linear(x, layer["up"])
    if config.activation == "swiglu":
        return linear(jax.nn.silu(linear(x, layer["gate"])) * up, layer["down"])
    return linear(jnp.square(jax.nn.relu(up)), layer["down"])


def finish(
    layer: Params, config: DecoderConfig, h: Float[Array, "*T E"], attn: Float[Array, "*T H D"]
) -> Float[Array, "*T E"]:
    """Return the layer's output from its input and its attention output."""
    attn = attn.reshape(*attn.shape[:-2], -1)
    if config.attn_gate:
        gate = linear(rms_norm(h, layer["attn_norm"], config.norm_eps), layer["attn_gate"])
        attn = attn * jax.nn.sigmoid(gate)
    return feed_forward(layer, config, h + linear(attn, layer["o"]))


def feed_forward(
    layer: Params, config: DecoderConfig, h: Float[Array, "*T E"]
) -> Float[Array, "*T E"]:
    """Return the second half of a layer: norm, MLP and residual, where it has an MLP."""
    if "mlp_norm" not in layer:
        return h
    return h + mlp(layer, config, rms_norm(h, layer["mlp_norm"], config.norm_eps))


def embed(params: Params, ids: Int[Array, "*T"]) -> Float[Array, "*T E"]:
    """Return the embeddings of token ids."""
    return jnp.take(params["embedding"]["embedding"], ids, axis=0)


def logits(params: Params, config: DecoderConfig, h: Float[Array, "*T E"]) -> Float[Array, "*T V"]:
    """Return float32 logits of the last layer's output."""
    x = rms_norm(h, params["norm"], config.norm_eps)
    table = params["embedding"]["embedding"].T if config.tied else params["head"]["kernel"]
    converts = table.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    if converts and x.ndim == 1 and not config.tied:
        # Of one row XLA's CPU makes a loop, for which it converts the whole matrix to float32; a
        # tied one it reads row by row, and would transpose for two.
        return product(jnp.broadcast_to(x[None], (2, *x.shape)), table)[0]
    return jnp.einsum("...e,ev->...v", x, table, preferred_element_type=jnp.float32)
