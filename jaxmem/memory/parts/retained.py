"""A score that is read off a token's values, and who still sees a token of lower score.

A KV head g gives every token s = exp(a_g softplus(v W)_g), v the values of all heads side by side
(DMA, arXiv 2508.02124). The number never changes, so a token that has left the best w never returns
to them: w slots per head are all that the attention over the best w needs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.exchange import View
from jaxmem.memory.parts.scored import lend, members
from jaxmem.typing import Array, Bool, Float, Int, Params


class Held(NamedTuple):
    """What is said of tokens that a memory holds, beside keys and values."""

    bias: Float[Array, "S Gm"]  # added to their logits
    kinds: Int[Array, "S Gm"]  # modalities
    quotas: Int[Array, "C"] | None  # `View.quotas`


def held_of(view: View) -> Held | None:
    """Return what a view says of its tokens; None if it adds nothing to their logits."""
    return None if view.bias is None else Held(view.bias, view.kv.modality, view.quotas)


def retention(weights: Params, v: Float[Array, "T G D"]) -> Float[Array, "T G"]:
    """Return the score of each token in each KV head, float32.

    Args:
      weights: {"kernel": [G D, G], "a": [G]} of the layer.
      v: values of all heads.
    """
    return jnp.exp(log_retention(weights, v))


def log_retention(weights: Params, v: Float[Array, "T G D"]) -> Float[Array, "T G"]:
    """Return the logarithms of `retention`, whose order is that of the scores."""
    kernel, a = (weights[name].astype(jnp.float32) for name in ("kernel", "a"))
    x = v.astype(jnp.float32).reshape(v.shape[0], -1) @ kernel
    return a[None] * jax.nn.softplus(x)


def until(
    held: Held, fresh: Float[Array, "T G"], modality: Int[Array, "T"]
) -> tuple[Int[Array, "S G"], Int[Array, "T G"]]:
    """Return the first row that no longer sees each held and each fresh token; T: all rows do.

    A row sees the best of what comes up to itself: `quotas` of them in each part of the budget.
    Equal scores go to the newer token.

    Args:
      held: with scores as `bias`.
      fresh: scores of the rows' own tokens.
      modality: of the rows.
    """
    quotas = held.quotas
    assert quotas is not None
    own = members(modality[:, None], len(quotas))[:, 0]  # [C, T]

    def head(old: Array, new: Array, kind: Array) -> tuple[Array, Array]:
        there = members(kind[:, None], len(quotas))[:, 0]  # [C, S]
        return _until(old, new, there, own, _after_rows(quotas, there, own))

    kinds = jnp.broadcast_to(held.kinds, held.bias.shape)
    return jax.vmap(head, in_axes=1, out_axes=1)(held.bias, fresh, kinds)


def _after_rows(
    quotas: Int[Array, "C"], there: Bool[Array, "C S"], own: Bool[Array, "C T"]
) -> Int[Array, "T C"]:
    """Return the quotas after every row: a part that nothing competes for lends its own.

    They only fall. Where a part has no token yet, its number is any that is not below later ones.
    """
    seen = jnp.any(there, axis=1, keepdims=True) | (jnp.cumsum(own, axis=1) > 0)
    lent = jax.vmap(lambda x: lend(quotas, x[:, None]))(seen.T)
    return jnp.where(seen.T, lent, jnp.sum(quotas))


def _until(
    held: Float[Array, "S"],
    fresh: Float[Array, "T"],
    there: Bool[Array, "C S"],
    own: Bool[Array, "C T"],
    quotas: Int[Array, "T C"],
) -> tuple[Int[Array, "S"], Int[Array, "T"]]:
    """Return `until` of one head."""
    slots, rows = there.shape[1], own.shape[1]
    part = jnp.argmax(jnp.concatenate([there, own], axis=1), axis=0)  # 0 for what is in none
    beaten = jnp.concatenate(_beaten_by_held(held, fresh, there), axis=1)  # [C, N]
    before = jnp.take_along_axis(beaten, part[None], axis=0)[0]
    rival = jnp.where(jnp.any(own, axis=0), part[slots:], -1)  # the part of each row
    score = jnp.concatenate([held, fresh])
    row = jnp.arange(rows, dtype=jnp.int32)
    number = jnp.concatenate([jnp.full(slots, -1, jnp.int32), row])

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) // 2
        # The newer of two equal ones wins; rows are newer than what is held.
        newer = (fresh[None] == score[:, None]) & (row[None] > number[:, None])
        wins = ((fresh[None] > score[:, None]) | newer) & (rival[None] == part[:, None])
        many = jnp.sum(wins & (row[None] <= middle[:, None]), axis=1, dtype=jnp.int32)
        out = before + many >= quotas[jnp.minimum(middle, rows - 1), part]
        low = jnp.where(out, low, jnp.minimum(middle + 1, high))
        return low, jnp.where(out, middle, high)

    # More tokens only come before one, and quotas only fall: the first row is found by bisection.
    ends = jnp.zeros_like(before), jnp.full_like(before, rows)
    first = jax.lax.fori_loop(0, rows.bit_length(), halve, ends)[0]
    return first[:slots], first[slots:]


def _beaten_by_held(
    held: Float[Array, "S"], fresh: Float[Array, "T"], there: Bool[Array, "C S"]
) -> tuple[Int[Array, "C S"], Int[Array, "C T"]]:
    """Return how many held tokens of a part come before each held and each fresh token of it."""
    slots = there.shape[1]

    def of_part(member: Bool[Array, "S"]) -> tuple[Array, Array]:
        score = jnp.where(member, held, -jnp.inf)
        order = jnp.argsort(score, stable=True)  # ascending, the newer of equal ones last
        place = jnp.zeros(slots, jnp.int32).at[order].set(jnp.arange(slots, dtype=jnp.int32))
        above = jnp.searchsorted(score[order], fresh, side="right")
        return slots - 1 - place, slots - above.astype(jnp.int32)

    return jax.vmap(of_part)(there)
