"""The plain formulations that the kernels are compared with: dense softmax, argsort and gather.

They are what one would write first. Keys are still shared by the heads of a group, not repeated.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.experiments.benchmark.kernels_shapes import Inputs, Shape, rope_of, segments
from jaxmem.kv import KV
from jaxmem.rope import rope
from jaxmem.typing import Array, Bool, Float


class Dense(NamedTuple):
    """All logits of a layer at once."""

    logits: Float[Array, "G R T N"]
    seen: Bool[Array, "T N"]
    v: Float[Array, "N G D"]


def dense(x: Inputs, shape: Shape) -> Dense:
    """Return the logits of the chunk's rows against memory and chunk, concatenated."""
    table, parts = rope_of(shape), segments(x)
    assert x.chunk.last is not None
    q = rope(x.q, x.q_pos[:, None], table)
    k = jnp.concatenate([rope(s.k, s.pos, table) for s in parts if s.pos is not None])
    q = q.reshape(shape.rows, shape.kv_heads, -1, shape.dim)
    z = jnp.einsum("tgrd,ngd->grtn", q, k, preferred_element_type=jnp.float32) * shape.dim**-0.5
    index = jnp.arange(shape.pool, dtype=jnp.int32)[None, :]
    seen = index <= (shape.slots + x.chunk.last)[:, None]
    seen = seen & jnp.concatenate([s.valid[:, 0] for s in parts])[None, :]
    return Dense(z, seen, jnp.concatenate([s.v for s in parts]))


def weights(d: Dense) -> Float[Array, "G R T N"]:
    """Return the softmax of all logits."""
    return jax.nn.softmax(jnp.where(d.seen[None, None], d.logits, -jnp.inf), axis=-1)


def output(a: Float[Array, "G R T N"], v: Float[Array, "N G D"]) -> Float[Array, "G R T D"]:
    """Return the weighted values."""
    return jnp.einsum("grtn,ngd->grtd", a.astype(v.dtype), v, preferred_element_type=jnp.float32)


def columns(a: Float[Array, "G R T N"], x: Inputs, scale: Array | float = 1.0) -> Float[Array, "N"]:
    """Return the mean over heads of the column sums over the rows that count, times `scale`."""
    rows = x.counted.astype(jnp.float32)[None, None, :, None]
    return jnp.mean(jnp.sum(a * rows, axis=2) * scale, axis=(0, 1))


def attend(x: Inputs, shape: Shape) -> Float[Array, "T H D"]:
    """Return attention through one array of weights."""
    d = dense(x, shape)
    out = output(weights(d), d.v).transpose(2, 0, 1, 3)
    return out.reshape(shape.rows, shape.heads, shape.dim).astype(x.q.dtype)


def mass(x: Inputs, shape: Shape) -> Float[Array, "N"]:
    """Return the mean over heads of the column sums of the weights."""
    return columns(weights(dense(x, shape)), x)


def mean_logit_mass(x: Inputs, shape: Shape) -> Float[Array, "N"]:
    """Return the column sums of one softmax of the logits averaged over heads."""
    d = dense(x, shape)
    mean = d._replace(logits=jnp.mean(d.logits, axis=(0, 1), keepdims=True))
    return columns(weights(mean), x)


def squared_mass(x: Inputs, shape: Shape) -> Float[Array, "N"]:
    """Return the mean over heads of the column sums of (weight |v|)^2."""
    d = dense(x, shape)
    return columns(jnp.square(weights(d)), x, norms(d))


def caote_mass(x: Inputs, shape: Shape) -> Float[Array, "N"]:
    """Return the mean over heads of the column sums of a / (1 - a) |o - v|."""
    d = dense(x, shape)
    a = weights(d)
    o = output(a, d.v)
    cross = jnp.einsum("grtd,ngd->grtn", o, d.v.astype(jnp.float32))
    square = jnp.sum(jnp.square(o), axis=-1)[..., None] - 2.0 * cross + norms(d)[:, None]
    moved = a / jnp.maximum(1.0 - a, 1e-7) * jnp.sqrt(jnp.maximum(square, 0.0))
    return columns(moved, x)


def norms(d: Dense) -> Float[Array, "G 1 N"]:
    """Return |v|^2 of every token."""
    return jnp.sum(jnp.square(d.v.astype(jnp.float32)), axis=-1).T[:, None]


def row_mass(x: Inputs, shape: Shape) -> Float[Array, "T"]:
    """Return each row's weight on the memory."""
    a = weights(dense(x, shape))
    return jnp.mean(jnp.sum(a[..., : shape.slots], axis=-1), axis=(0, 1))


def chosen(x: Inputs, shape: Shape) -> Array:
    """Return the indices of the best of both groups in time order, by sorting."""
    share = shape.slots // 5
    order = jnp.argsort(x.scores, axis=-1)
    best = jnp.concatenate([order[0, shape.pool - share :], order[1, share - shape.slots :]])
    return jnp.sort(best)


def select(x: Inputs, shape: Shape) -> KV:
    """Return the kept tokens: argsort of each group, sorted indices, one gather per array."""
    index = chosen(x, shape)
    return jax.tree.map(lambda leaf: leaf[index], x.slots)


def redundancy(x: Inputs, shape: Shape) -> Float[Array, "N"]:
    """Return the mean cosine with both neighbours, each from vectors rolled by one."""
    u = x.unit.astype(jnp.float32)
    u = u / jnp.linalg.norm(u, axis=-1, keepdims=True)
    index = jnp.arange(shape.pool, dtype=jnp.int32)
    left = jnp.sum(u * jnp.roll(u, 1, axis=0), axis=-1)
    right = jnp.sum(u * jnp.roll(u, -1, axis=0), axis=-1)
    left, right = jnp.where(index > 0, left, 1.0), jnp.where(index < shape.pool - 1, right, 1.0)
    return 0.5 * (left + right)
