"""How relevant a clip is to a question (FlexMem, arXiv 2603.29252, section 3.3): two readers.

The encoding-based reader lets the question follow every clip and measures what it attends to.
MemIndex needs no question while the stream is watched: a clip is represented, in some layers, by
the few keys that its own rows attended to most. `fit_layers` and `best_layers` find the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.base import Spec, tupled
from jaxmem.memory.exchange import Chunk, Question
from jaxmem.memory.flexmem import clips
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.rope import Rope, angles, rotate
from jaxmem.typing import Array, Float, Int, Num

EXACT = jax.lax.Precision.HIGHEST


def of_probe(chunk: Chunk, shallow: int) -> Float[Array, ""]:
    """Return g: the mass that the question's rows give to the clip, over deep layers (equation 9).

    Summed over rows and layers, mean over heads. A question after the clip cannot change it.
    """
    if chunk.probed is None or chunk.probed.rows.shape[1] != 1:
        raise ValueError(
            "flexmem's encoding-based reader needs the question while watching: stream through a "
            "Session, or bind it as the only probe (see jaxmem.bound.probe_rows)."
        )
    return jnp.sum(chunk.probed.received.chunk[shallow:])


DEPTHS = (0.52, 0.81, 0.96)
"""Of the released layers (14, 22, 26) of 28."""


@dataclass(frozen=True)
class Encoding:
    """FlexMem's encoding-based reader: a clip's relevance is the mass that a question gives it.

    Attributes:
      question: it must be known while the stream is watched.
    """

    question: str


@dataclass(frozen=True)
class MemIndex:
    """What a clip's index holds and how a question reads it; the defaults are the released code's.

    Attributes:
      layers: that are read; None: those at depths 0.52, 0.81 and 0.96, as released (14, 22 and 26
        of 28).
      weights: of these layers' scores; None adds them up.
      keys: k, of a clip and layer.
      against: what a clip's keys share their softmax with: the system prompt, clip by clip
        ("prefix", released), or the keys of all clips ("clips", the published equation 13, which
        knows no system prompt; over one clip's keys alone every score would be 1). None: "prefix"
        where there is a prefix.
      query: the question's last row is at position 0, before the keys ("zero", released, probably
        by accident), or after them ("after").

    Raises:
      ValueError: if an option is out of range.
    """

    layers: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    keys: int = 5
    against: Literal["prefix", "clips"] | None = None
    query: Literal["zero", "after"] = "zero"

    def __post_init__(self):
        tupled(self, "layers", "weights")
        layers, weights = self.layers, self.weights
        at_least("a MemIndex", 1, keys=self.keys)
        if layers is not None and (not layers or min(layers) < 0):
            raise ValueError(f"a MemIndex needs layers, all >= 0, got {layers}.")
        if weights is not None and (layers is None or len(weights) != len(layers)):
            raise ValueError(
                f"a MemIndex needs one weight per layer, got {len(weights)} weights for layers "
                f"{layers}."
            )
        one_of("a MemIndex", (None, "prefix", "clips"), against=self.against)
        one_of("a MemIndex", ("zero", "after"), query=self.query)

    def read_layers(self, layers: int) -> tuple[int, ...]:
        """Return the layers that are read in a model of so many.

        Raises:
          ValueError: if the model has too few.
        """
        if self.layers is None:
            return tuple(sorted({int(depth * layers) for depth in DEPTHS}))
        if max(self.layers) >= layers:
            raise ValueError(
                f"the MemIndex reads layers {self.layers} but the model has {layers}: fit your own "
                "(fit_layers, best_layers), or leave layers out for depths 0.52, 0.81 and 0.96."
            )
        return self.layers

    def measured_against(self, spec: Spec) -> Literal["prefix", "clips"]:
        """Return what clips are measured against.

        Raises:
          ValueError: if it is a prefix and there is none.
        """
        if self.against == "prefix" and not spec.prefix:
            raise ValueError(
                "this MemIndex measures clips against the system prompt, but Spec.prefix is 0: use "
                'against="clips", or a model with a prompt in front of its streams.'
            )
        return self.against or ("prefix" if spec.prefix else "clips")


def published(layers: Sequence[int]) -> MemIndex:
    """Return the index as published: `layers` from `best_layers`, added up without weights."""
    return MemIndex(tuple(layers), against="clips", query="after")


def best_keys(
    old: tuple[Float[Array, "K k G D"], Float[Array, "K k"], Int[Array, ""]],
    new: tuple[Float[Array, "K T G D"], Float[Array, "K T"], Int[Array, "T"]],
    even: np.ndarray,
) -> tuple[Float[Array, "K k G D"], Float[Array, "K k"]]:
    """Return the k keys of a clip that its rows attended to most, in time, and what they received.

    `old` are the keys that the clip has so far, what each received, and how many there are; `new`
    those of the chunk that is added, what each received, and the modality of its rows. `even` says
    which of the K layers take evenly spaced keys.
    """
    size = old[0].shape[1]
    there = jnp.where(jnp.arange(size, dtype=jnp.int32) < old[2], kvs.SUMMARY, kvs.EMPTY)
    keys, worth = (
        jnp.concatenate([a, b.astype(a.dtype)], 1) for a, b in zip(old[:2], new[:2], strict=True)
    )
    modality = jnp.concatenate([there.astype(new[2].dtype), new[2]])
    quota = jnp.minimum(jnp.sum(modality != kvs.EMPTY, dtype=jnp.int32), size)[None]
    best = clips.picks(worth, even, modality, quota, size)
    return jax.vmap(kvs.take)((keys, worth), *best)


def layer_scores(
    reader: MemIndex,
    spec: Spec,
    keys: Float[Array, "N K k G D"],
    many: Int[Array, "N"],
    question: Question,
) -> Float[Array, "K N"]:
    """Return r of every layer and clip: the mass that a question's last row gives to the clip.

    r = mean over heads of sum_j softmax(q . k_j / sqrt(D)), with the softmax of `reader.against`.
    Every clip's keys come directly after the prefix, whatever came between. Each of the N clips has
    `many` keys in K layers, before rotation; one without any scores 0. The question has queries [L,
    Q, H, D] of a pass over [prefix | question], of which the reader's layers are read, and the
    prefix [L, P].
    """
    against, rotary = reader.measured_against(spec), spec.needed("rope", reader)
    layers, prefix = np.asarray(reader.read_layers(spec.layers)), question.prefix
    size, groups, width = keys.shape[2:]
    pinned = 0 if prefix is None else prefix.modality.shape[1]
    last = jnp.maximum(jnp.sum(question.valid, dtype=jnp.int32) - 1, 0)
    place = pinned + size + last if reader.query == "after" else jnp.zeros((), jnp.int32)
    q = rotate(question.q[layers, last].astype(jnp.float32), _turn(rotary, place[None])[None])
    q = q.reshape(len(layers), groups, -1, width) / np.sqrt(width)

    after = pinned + jnp.arange(size, dtype=jnp.int32)
    k = rotate(keys.astype(jnp.float32), _turn(rotary, after)[None, None, :, None])
    logits = jnp.einsum("lgrd,nljgd->lgrnj", q, k, precision=EXACT)
    there = jnp.arange(size)[None] < many[:, None]
    clip = jax.nn.logsumexp(jnp.where(there[None, None, None], logits, -jnp.inf), axis=-1)
    if against == "clips":
        return jnp.mean(jax.nn.softmax(clip, axis=-1), axis=(1, 2))
    sink_mass = _prefix_mass(rotary, jax.tree.map(lambda x: x[layers], prefix), q)
    # exp(a) / (exp(a) + exp(b)): the share of the clip's keys beside the prefix.
    return jnp.mean(jax.nn.sigmoid(clip - sink_mass[..., None]), axis=(1, 2))


def _prefix_mass(rotary: Rope, prefix: KV, q: Float[Array, "K G r D"]) -> Float[Array, "K G r"]:
    """Return the log-sum-exp of the queries' logits over the prefix."""
    k = rotate(prefix.k.astype(jnp.float32), angles(rotary, prefix.pos))
    logits = jnp.einsum("lgrd,lpgd->lgrp", q, k, precision=EXACT)
    there = kvs.valid(prefix)[:, :, 0]
    return jax.nn.logsumexp(jnp.where(there[:, None, None], logits, -jnp.inf), axis=-1)


def _turn(rotary: Rope, place: Num[Array, "*n"]) -> Float[Array, "*n D/2"]:
    """Return the angles at `place` on every axis."""
    return angles(rotary, jnp.broadcast_to(place[..., None], (*place.shape, rotary.axes)))


def scores(
    reader: MemIndex,
    spec: Spec,
    keys: Float[Array, "N K k G D"],
    many: Int[Array, "N"],
    question: Question,
) -> Float[Array, "N"]:
    """Return the (weighted) sum of `layer_scores` over the reader's layers."""
    per_layer = layer_scores(reader, spec, keys, many, question)
    if reader.weights is None:
        return jnp.sum(per_layer, axis=0)
    return jnp.asarray(reader.weights, jnp.float32) @ per_layer


def fit_layers(
    scores: Float[Array, "M K"], targets: Float[Array, "M"], ridge: float = 0.0
) -> Float[Array, "K"]:
    """Return the layer weights alpha with the least sum_i (alpha . r_i - g_i)^2 (equation 10).

    The linear model has no intercept. Sample count, data and fitted weights are not published, and
    no code for it was released; `ridge` is ours. `scores` are r of M samples (clip and question) in
    K layers, from `layer_scores` transposed, `targets` g of these samples, from the encoding-based
    reader. `ridge` weighs |alpha|^2 beside the squared errors; at 0 the shortest of all solutions
    is returned.

    Raises:
      ValueError: if the shapes do not fit, or `ridge` is negative.
    """
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or 0 in scores.shape:
        raise ValueError(
            f"scores must be [M, K] and targets [M], neither empty, got {scores.shape} and "
            f"{targets.shape}."
        )
    at_least("fit_layers", 0, ridge=ridge)
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

    `weights` are from `fit_layers`, concrete, one for each of `layers`.

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
