"""Where a mixture of memories sends its tokens, and the loss that keeps its memories in use."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kernels.dense import linear
from jaxmem.kv import EMPTY, Modality
from jaxmem.mixers.mom import MoM
from jaxmem.typing import Array, Float, Int, Params


class Routing(NamedTuple):
    """What the router of one layer does with some tokens."""

    loss: Float[Array, ""]  # 1 where all memories get alike, M where one gets all
    share: Float[Array, "M"]  # of the choices, adds up to 1
    by_kind: Float[Array, "K M"]  # likewise of each `Modality`; zeros for kinds that are not there


def routing(
    mixer: MoM, weights: Params, x: Float[Array, "T E"], modality: Int[Array, "T"]
) -> Routing:
    """Return the load-balancing loss of a layer's router, and the share of tokens per memory.

    The loss is M sum_m f_m p_m: f_m the share of the choices that memory m gets, which has no
    gradient, p_m the router's mean probability of it (Switch Transformers, arXiv 2101.03961). Add
    it to a training loss, with a small weight, for every layer: without it memories collapse. A
    shared memory does not count.

    Args:
      mixer: the mixture.
      weights: of the layer.
      x: its input, normalised.
      modality: of the tokens; EMPTY is padding and does not count.
    """
    count = mixer.memories
    wide = jnp.result_type(jnp.float32, x)
    p = jax.nn.softmax(linear(x, weights["router"]).astype(wide), axis=-1)
    sent = (mixer.shares(weights, x)[:, :count] > 0).astype(wide) / mixer.chosen
    kinds = jax.nn.one_hot(modality, len(Modality), dtype=wide)  # [T, K]
    kinds = kinds * (modality != EMPTY)[:, None].astype(wide)
    of_kind, many = kinds.T @ sent, jnp.sum(kinds, axis=0)
    total = jnp.maximum(jnp.sum(many), 1)
    share = jnp.sum(of_kind, axis=0) / total
    mean = jnp.sum(p * jnp.sum(kinds, axis=1)[:, None], axis=0) / total
    loss = count * jnp.sum(jax.lax.stop_gradient(share) * mean)
    return Routing(loss, share, of_kind / jnp.maximum(many, 1)[:, None])
