"""Optimizers whose moments are of low rank: GaLore and APOLLO, for stacks of layers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmem.typing import Array, Float, Int, PyTree


class Apollo(NamedTuple):
    """What APOLLO knows of one matrix [m, n]; r, the rank, replaces the smaller of its sides."""

    count: Int[Array, ""]
    projection: Float[Array, "r m"]
    first: Float[Array, "r n"]  # Adam's moments of the projected gradient
    second: Float[Array, "r n"]
    last: Float[Array, ""]  # norm of the last update before the correction; 0 before the first


def scale_by_apollo(
    rank: int = 256,
    *,
    per: Literal["channel", "tensor"] = "channel",
    scale: float = 1.0,
    limit: Literal["before", "after"] = "before",
    growth: float = 1.01,
    gap: int = 200,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Scale gradients of matrices as Adam would, by what it does to a random projection of them.

    APOLLO (arXiv 2412.05270): R = P G with P of N(0, 1 / r), Adam makes R~ of R, and column j of G
    is scaled by |R~_j| / |R_j| (or all of G by |R~| / |R|: APOLLO-Mini, rank 1). An update longer
    than `growth` times the last one is shortened to that. As released, the moments' correction for
    the first steps comes after that limit.

    Args:
      rank: r, at most the smaller side of a matrix.
      per: "channel" scales along the larger side, "tensor" everything by one number.
      scale: factor on the update (published: 1 for "channel", sqrt(128) for "tensor").
      limit: whether the growth is limited before or after that factor.
      growth: of the update's norm in a step at most.
      gap: steps with one projection.
      b1: Adam's.
      b2: Adam's.
      eps: Adam's, beside a second moment that is not corrected yet, as released.
      seed: of the projections.

    Returns:
      A transformation of one matrix or of a tree of matrices.
    """

    def fresh(matrix: Array, count: Array) -> Array:
        sides = min(rank, *matrix.shape), min(matrix.shape)
        key = jax.random.fold_in(jax.random.key(seed), count // gap)
        return jax.random.normal(key, sides, matrix.dtype) * sides[0] ** -0.5

    def init(params: PyTree) -> PyTree:
        def one(matrix: Array) -> Apollo:
            if matrix.ndim != 2:
                raise ValueError(
                    f"APOLLO is of matrices, got shape {matrix.shape}: see `by_layer`."
                )
            count = jnp.zeros((), jnp.int32)
            projection = fresh(matrix, count)
            zeros = jnp.zeros((len(projection), max(matrix.shape)), matrix.dtype)
            return Apollo(count, projection, zeros, zeros, jnp.zeros((), matrix.dtype))

        return jax.tree.map(one, params)

    def step(gradient: Array, state: Apollo) -> tuple[Array, Apollo]:
        turned = gradient.shape[0] > gradient.shape[1]
        g = gradient.T if turned else gradient  # [m, n], m the smaller side
        new = (state.count > 0) & (state.count % gap == 0)
        projection = jax.lax.cond(new, fresh, lambda *_: state.projection, gradient, state.count)
        r, count = projection @ g, state.count + 1
        first = b1 * state.first + (1 - b1) * r
        second = b2 * state.second + (1 - b2) * r * r
        t = count.astype(g.dtype)
        adam = first / (jnp.sqrt(second) + eps)
        axis = 0 if per == "channel" else None
        norm = lambda x: jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True))
        update = g * (norm(adam) / (norm(r) + 1e-8))
        update = update * scale if limit == "after" else update
        size = jnp.sqrt(jnp.sum(update * update))
        most = jnp.where(state.last > 0, growth * state.last, size)
        size = jnp.minimum(size, most)
        update = update * (size / jnp.maximum(jnp.sqrt(jnp.sum(update * update)), eps))
        update = update * scale if limit == "before" else update
        update = update * (jnp.sqrt(1 - b2**t) / (1 - b1**t))
        out = update.T if turned else update
        return out, Apollo(count, projection, first, second, size)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        leaves, tree = jax.tree.flatten(updates)
        done = [step(g, s) for g, s in zip(leaves, tree.flatten_up_to(state), strict=True)]
        return tree.unflatten([u for u, _ in done]), tree.unflatten([s for _, s in done])

    return optax.GradientTransformation(init, update)


def apollo(rate: optax.ScalarOrSchedule, rank: int, **options: Any) -> optax.GradientTransformation:
    """Return APOLLO of matrices with a learning rate; options as `scale_by_apollo`."""
    return optax.chain(scale_by_apollo(rank, **options), optax.scale_by_learning_rate(rate))


def galore(rate: optax.ScalarOrSchedule, rank: int, **options: Any) -> optax.GradientTransformation:
    """Return GaLore (arXiv 2403.03507) of matrices: Adam in the gradient's own singular vectors."""
    return optax.contrib.galore(rate, rank=rank, **options)


def by_layer(one: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation of stacks [..., i, j] of one that is of matrices: each on its own.

    They are passed one after the other, so that what is done now and then (a new projection, a
    decomposition) is done then only, and for one matrix at a time.
    """

    def stack(x: Array) -> Array:
        return x.reshape(-1, *x.shape[-2:])

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jax.lax.map(one.init, stack(x)), params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        leaves, tree = jax.tree.flatten(updates)
        given = tree.flatten_up_to(updates if params is None else params)
        done = [
            jax.lax.map(lambda x: one.update(*x), (stack(g), s, stack(p)))
            for g, s, p in zip(leaves, tree.flatten_up_to(state), given, strict=True)
        ]
        turned = [u.reshape(g.shape) for g, (u, _) in zip(leaves, done, strict=True)]
        return tree.unflatten(turned), tree.unflatten([s for _, s in done])

    return optax.GradientTransformation(init, update)
