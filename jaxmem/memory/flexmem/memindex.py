"""How relevant a clip is to a question (FlexMem, arXiv 2603.29252, section 3.3): two readers.

The encoding-based reader lets the question follow every clip and measures what it attends to.
MemIndex needs no question while the stream is watched: a clip is represented, in some layers, by
the few keys that its own rows attended to most. `fit_layers` and `best_layers` find the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.memory.base import Chunk, Question
from jaxmem.rope import Rope, angles, rotate
from jaxmem.typing import Array, Float, Int, Num

EXACT = jax.lax.Precision.HIGHEST


def of_probe(seen: Chunk, shallow: int) -> Float[Array, ""]:
    """Return g: the mass that the question's rows give to the clip, over deep layers (equation 9).

    Summed over rows and layers, mean over heads. A question behind the clip cannot change it.
    """
    if seen.probe is None or seen.probe.chunk.shape[1] != 1:
        raise ValueError(
            "flexmem's encoding-based reader needs the question while watching: pass it alone as "
            'probes= (see jaxmem.loop), or use reader="memindex".'
        )
    return jnp.sum(seen.probe.chunk[shallow:])


class MemIndex(NamedTuple):
    """What a clip's index holds and how a question reads it; the defaults are the released code's.

    Attributes:
      rotary: the model's rotary embedding.
      layers: that are read. The released (14, 22, 26) of 28 are at depths 0.52, 0.81 and 0.96.
      weights: of these layers' scores; None adds them up.
      keys: k, of a clip and layer.
      against: what a clip's keys share their softmax with: the system prompt, clip by clip
        ("prefix", released), or the keys of all clips ("clips", the published equation 13, which
        knows no system prompt; over one clip's keys alone every score would be 1).
      query: the question's last row stands at position 0, before the keys ("zero", released,
        probably by accident), or behind them ("behind").
    """

    rotary: Rope
    layers: tuple[int, ...] = (14, 22, 26)
    weights: tuple[float, ...] | None = None
    keys: int = 5
    against: Literal["prefix", "clips"] = "prefix"
    query: Literal["zero", "behind"] = "zero"


def published(rotary: Rope, layers: Sequence[int]) -> MemIndex:
    """Return the index as published: `layers` from `best_layers`, added up without weights."""
    return MemIndex(rotary, tuple(layers), against="clips", query="behind")


def check(index: MemIndex, layers: int | None = None) -> None:
    """Raise ValueError where an index's options are out of range, or a model has too few layers."""
    weights = index.weights
    if not index.layers or min(index.layers) < 0 or index.keys < 1:
        raise ValueError(
            f"a MemIndex needs layers >= 0 and at least 1 key, got layers={index.layers} and "
            f"keys={index.keys}."
        )
    if layers is not None and max(index.layers) >= layers:
        raise ValueError(
            f"the MemIndex reads layers {index.layers} but the model has {layers}: fit your own "
            "(fit_layers, best_layers), or take depths 0.52, 0.81 and 0.96."
        )
    if weights is not None and len(weights) != len(index.layers):
        raise ValueError(
            f"a MemIndex needs one weight per layer, got {len(weights)} weights for "
            f"{len(index.layers)} layers."
        )
    if index.against not in ("prefix", "clips") or index.query not in ("zero", "behind"):
        raise ValueError(
            'a MemIndex measures against "prefix" or "clips" with the query at "zero" or "behind", '
            f"got against={index.against!r} and query={index.query!r}."
        )


def layer_scores(
    index: MemIndex, keys: Float[Array, "N K k G D"], many: Int[Array, "N"], query: Question
) -> Float[Array, "K N"]:
    """Return r of every layer and clip: the mass that a question's last row gives to the clip.

    r = mean over heads of sum_j softmax(q . k_j / sqrt(D)), with the softmax of `index.against`.
    Every clip's keys stand directly behind the prefix, whatever came between.

    Args:
      index: how to read; only `layers` of `query` are read.
      keys: of N clips in K layers, k each, before rotation.
      many: how many of them each clip has; a clip without any scores 0.
      query: queries [L, Q, H, D] of a pass over [prefix | question], and the prefix [L, P].

    Raises:
      ValueError: if the index measures against a prefix and there is none.
    """
    layers, prefix = np.asarray(index.layers), query.prefix
    if index.against == "prefix" and prefix is None:
        raise ValueError(
            'this MemIndex measures clips against the system prompt: pass prefix=, or use "clips".'
        )
    size, groups, width = keys.shape[2:]
    pinned = 0 if prefix is None else prefix.modality.shape[1]
    last = jnp.maximum(jnp.sum(query.valid, dtype=jnp.int32) - 1, 0)
    place = pinned + size + last if index.query == "behind" else jnp.zeros((), jnp.int32)
    turn = _turn(index.rotary, place[None])
    q = rotate(query.q[layers, last].astype(jnp.float32), turn[None])
    q = q.reshape(len(layers), groups, -1, width) / np.sqrt(width)

    behind = pinned + jnp.arange(size, dtype=jnp.int32)
    k = rotate(keys.astype(jnp.float32), _turn(index.rotary, behind)[None, None, :, None])
    logits = jnp.einsum("lgrd,nljgd->lgrnj", q, k, precision=EXACT)
    there = jnp.arange(size)[None] < many[:, None]
    clip = jax.nn.logsumexp(jnp.where(there[None, None, None], logits, -jnp.inf), axis=-1)
    if index.against == "clips":
        return jnp.mean(jax.nn.softmax(clip, axis=-1), axis=(1, 2))

    assert prefix is not None
    sink = jax.tree.map(lambda x: x[layers], prefix)
    away = angles(index.rotary, sink.pos)
    k = rotate(sink.k.astype(jnp.float32), away)
    logits = jnp.einsum("lgrd,lpgd->lgrp", q, k, precision=EXACT)
    seen = tk.valid(sink)[:, :, 0]
    sink_mass = jax.nn.logsumexp(jnp.where(seen[:, None, None], logits, -jnp.inf), axis=-1)
    # exp(a) / (exp(a) + exp(b)): the share of the clip's keys beside the prefix.
    return jnp.mean(jax.nn.sigmoid(clip - sink_mass[..., None]), axis=(1, 2))


def _turn(rotary: Rope, place: Num[Array, "*n"]) -> Float[Array, "*n D/2"]:
    """Return the angles at `place` on every axis."""
    return angles(rotary, jnp.broadcast_to(place[..., None], (*place.shape, rotary.axes)))


def scores(
    index: MemIndex, keys: Float[Array, "N K k G D"], many: Int[Array, "N"], query: Question
) -> Float[Array, "N"]:
    """Return the (weighted) sum of `layer_scores` over the index's layers."""
    per_layer = layer_scores(index, keys, many, query)
    if index.weights is None:
        return jnp.sum(per_layer, axis=0)
    return jnp.asarray(index.weights, jnp.float32) @ per_layer


def fit_layers(
    scores: Float[Array, "M K"], targets: Float[Array, "M"], ridge: float = 0.0
) -> Float[Array, "K"]:
    """Return the layer weights alpha with the least sum_i (alpha . r_i - g_i)^2 (equation 10).

    The linear model has no intercept. Sample count, data and fitted weights are not published, and
    no code for it was released; `ridge` is ours.

    Args:
      scores: r of M samples (clip and question) in K layers, from `layer_scores` transposed.
      targets: g of these samples, from the encoding-based reader.
      ridge: weight of |alpha|^2 beside the squared errors; at 0 the shortest of all solutions.

    Raises:
      ValueError: if the shapes do not fit, or `ridge` is negative.
    """
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or 0 in scores.shape:
        raise ValueError(
            f"scores must be [M, K] and targets [M], neither empty, got {scores.shape} and "
            f"{targets.shape}."
        )
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge}.")
    many = scores.shape[1]
    x, y = scores.astype(jnp.float32), targets.astype(jnp.float32)
    if ridge:  # the same least squares with a row sqrt(ridge) alpha_l = 0 for every layer
        x = jnp.concatenate([x, np.sqrt(ridge) * jnp.eye(many, dtype=x.dtype)])
        y = jnp.concatenate([y, jnp.zeros((many,), y.dtype)])
    return jnp.linalg.lstsq(x, y)[0]


def best_layers(
    weights: Float[Array, "K"], layers: Sequence[int], count: int = 3
) -> tuple[int, ...]:
    """Return the `count` layers of largest weight, ascending (equation 12; 3 as published).

    Args:
      weights: from `fit_layers`, concrete.
      layers: that the weights belong to.
      count: how many.

    Raises:
      ValueError: if there is not one weight per layer, or `count` is out of range.
    """
    alpha = np.asarray(weights)
    if alpha.shape != (len(layers),) or not 1 <= count <= len(layers):
        raise ValueError(
            f"best_layers needs one weight for each of {len(layers)} layers and a count up to "
            f"that, got weights {alpha.shape} and count={count}."
        )
    largest = np.argsort(-alpha, kind="stable")[:count]
    return tuple(sorted(int(layers[i]) for i in largest))
