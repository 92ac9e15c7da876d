"""Expected Attention (arXiv 2510.00636): the attention that queries still to come will give."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.exchange import Requires
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import at_least
from jaxmem.memory.parts.scored import Candidates, Scored
from jaxmem.rope import Rope, angles, cos_sin, rope
from jaxmem.typing import Array, Bool, Float

HIGHEST = jax.lax.Precision.HIGHEST


class Moments(NamedTuple):
    """Of queries before rotation, per query head, float32."""

    mean: Float[Array, "H D"]
    cov: Float[Array, "H D D"]


@dataclass(frozen=True)
class ExpectedAttention(Scored):
    """Expected Attention: what the next queries are expected to attend to is kept.

    Queries are taken for normally distributed, with the moments of those of the chunk's rows; the
    published moments are those of a prompt, or of a buffer of recent rows while decoding. Every KV
    head keeps its own tokens.

    Attributes:
      sinks: the oldest tokens, always kept (all but one slot of them at most); their queries and
        their keys do not count.
      future: rows to come, over whose positions the rotation is averaged. They advance as text.
      covariance: use the second moment; False: the mean alone.
      value_norm: weigh by |v|, which scales what a token adds to the output.
      eps: added to the attention before it is weighed.
    """

    _: KW_ONLY
    sinks: int = 4
    future: int = 512
    covariance: bool = True
    value_norm: bool = True
    eps: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        at_least(self.name, 1, future=self.future)
        at_least(self.name, 0, sinks=self.sinks)

    @property
    def requires(self) -> Requires:
        return Requires(queries=True)

    def score(self, candidates: Candidates) -> Float[Array, "G N"]:
        """Return (mean_h softmax_n(z) + eps) |v|, the sinks first."""
        sinks = min(self.sinks, self.budget - 1)
        oldest = candidates.oldest(sinks)
        real = candidates.valid & ~oldest
        rotary = candidates.spec.needed("rope", self)
        keys = averaged_keys(candidates, rotary, self.future)
        known = moments(candidates, sinks)
        expected = expected_share(keys, known, real, self.covariance) + self.eps
        if self.value_norm:
            norm = jnp.linalg.norm(candidates.kv.v.astype(jnp.float32), axis=-1).T
            expected = expected * norm
        return scores.protect(expected, oldest)


def moments(candidates: Candidates, sinks: int) -> Moments:
    """Return mean and population covariance of the queries of a chunk's rows after the sinks."""
    if candidates.queries is None:
        raise ValueError(
            "Expected Attention needs Chunk.queries; the decoder must report what "
            "`requires.queries` asks for."
        )
    q = jax.lax.stop_gradient(candidates.queries).astype(jnp.float32)
    row = jnp.arange(q.shape[0], dtype=jnp.int32)
    held = jnp.sum(candidates.valid[0], dtype=jnp.int32) - candidates.rows
    counted = ((row < candidates.rows) & (held + row >= sinks)).astype(jnp.float32)
    share = (counted / jnp.maximum(jnp.sum(counted), 1.0))[:, None, None]
    mean = jnp.sum(share * q, axis=0)
    centred = jnp.where(share > 0, q - mean[None], 0.0)
    cov = jnp.einsum("thd,the->hde", share * centred, centred, precision=HIGHEST)
    return Moments(mean, cov)


def averaged_keys(candidates: Candidates, rotary: Rope, future: int) -> Float[Array, "N G D"]:
    """Return rotated keys, turned back by the rotation of the rows to come.

    That rotation, averaged over the positions of these rows, is taken back from the keys instead of
    done to the moments of the queries.
    """
    kv = candidates.kv
    # Attention depends on differences of positions; those to the end of the stream are small.
    away = kv.pos - candidates.next_pos.astype(kv.pos.dtype)[None, None]
    first, second = jnp.split(rope(kv.k.astype(jnp.float32), away, rotary), 2, axis=-1)
    stride = jnp.asarray(candidates.spec.step, jnp.float32)[None]
    turn = angles(rotary, jnp.arange(future, dtype=jnp.float32)[:, None] * stride)
    cos, sin = (jnp.mean(x, axis=0)[None, None] for x in cos_sin(turn))
    return jnp.concatenate([cos * first + sin * second, cos * second - sin * first], axis=-1)


def expected_share(
    keys: Float[Array, "N G D"], known: Moments, real: Bool[Array, "Gm N"], covariance: bool
) -> Float[Array, "G N"]:
    """Return mean_h softmax_n(z), z = log E[exp(q k / sqrt D)] for normal q.

    z = mu k / sqrt D + k Sigma k / 2D.
    """
    groups, dim = keys.shape[1:]
    mean = known.mean.reshape(groups, -1, dim)
    cov = known.cov.reshape(groups, -1, dim, dim)

    def attention(k: Array, mu: Array, sigma: Array, there: Array) -> Float[Array, "N"]:
        """Return it for one KV head."""
        z = jnp.einsum("rd,nd->rn", mu, k, precision=HIGHEST) / dim**0.5
        if covariance:
            spread = jnp.einsum("nd,rde->rne", k, sigma, precision=HIGHEST)
            z = z + jnp.einsum("rne,ne->rn", spread, k, precision=HIGHEST) / (2 * dim)
        a = jax.nn.softmax(jnp.where(there[None], z, jnp.finfo(jnp.float32).min), axis=-1)
        return jnp.mean(a, axis=0)

    held = jnp.broadcast_to(real, (groups, real.shape[1]))
    if not jax.sharding.get_abstract_mesh().empty:  # devices hold heads of their own
        return jax.vmap(attention, in_axes=(1, 0, 0, 0))(keys, mean, cov, held)

    def of_head(item: tuple[Array, ...]) -> Float[Array, "N"]:
        return attention(jax.lax.dynamic_index_in_dim(keys, item[0], 1, keepdims=False), *item[1:])

    # Keys with their heads in front would have XLA hold the slots of all layers so on a GPU, and
    # transpose them before and after every call.
    return jax.lax.map(of_head, (jnp.arange(groups, dtype=jnp.int32), mean, cov, held))
