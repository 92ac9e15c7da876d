"""Attention by `jax.nn.dot_product_attention` (cuDNN, or dense XLA), or by tokamax's function.

One call takes one array of keys, so every segment is a call of its own, and their outputs are
merged by their log-sum-exps. JAX's function rounds its log-sum-exp to the type of the queries (a
weight would be wrong by 1 % in bfloat16) and tokamax's returns none, so the reference computes it,
in float32: a pass over the keys without values, which XLA drops where there is one segment and
nobody asks for it.

Which keys count is data, so masks are arrays. cuDNN adds them as a bias [rows, keys] in the type of
the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.attend import ref
from jaxmem.kernels.segment import Segment, prerotated, rotated_queries, visible, windowed
from jaxmem.kernels.tiles import tile_of
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float

Library = Literal["cudnn", "xla", "tokamax"]


def _check(q: Float[Array, "Q H D"], segments: Sequence[Segment], implementation: Library) -> None:
    """Raise NotImplementedError for what a call cannot express, or not without large arrays."""
    rows, heads, dim = q.shape
    if any(s.bias is not None for s in segments):
        raise NotImplementedError(f"{implementation} adds no number per key to logits; use 'xla'.")
    if any(x.dtype != q.dtype for s in segments for x in (s.k, s.v)):
        raise NotImplementedError(f"{implementation} takes queries, keys and values of one type.")
    keys = max(s.k.shape[0] for s in segments)
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and dim % 8 == 0 and dim <= 128
    if implementation == "cudnn" and not fits:
        raise NotImplementedError(
            f"cuDNN takes 16-bit floats and heads of 8, 16, ... 128, got {q.dtype}, {dim}."
        )
    if implementation != "xla":
        alike = all(s.valid.shape[1] == 1 and s.until is None for s in segments)
        masks = rows * keys * (1 if alike else heads)
        if masks > q.size + sum(s.k.size + s.v.size for s in segments):
            raise NotImplementedError(
                f"the mask of {rows} rows by {keys} keys would be larger than all operands."
            )
    elif rows > tile_of(rows, heads).rows or keys > tile_of(rows, heads).keys:
        raise NotImplementedError(f"dense logits of {rows} rows by {keys} keys are too large.")


def _one(
    q: Float[Array, "Q H D"], segment: Segment, rope: Rope, implementation: Library
) -> Float[Array, "Q H D"]:
    """Return attention to rotated keys; rows that see nothing give some finite mean of values."""
    (rows, heads, _), mask = q.shape, visible(segment)
    if mask.shape[0] > 1:
        mask = jnp.repeat(mask, heads // mask.shape[0], axis=0)
    mask = jnp.broadcast_to(mask, (mask.shape[0], rows, mask.shape[2]))
    turned = rotated_queries(q, segment, rope)
    if implementation == "tokamax":
        return _tokamax()(turned, segment.k, segment.v, mask=mask)
    try:
        return jax.nn.dot_product_attention(
            turned, segment.k, segment.v, mask=mask[None], implementation=implementation
        )
    except RuntimeError as error:  # "cuDNN is not detected."
        raise NotImplementedError(str(error)) from error


def _tokamax() -> Callable[..., Array]:
    """Return tokamax's attention, which chooses among its kernels by itself."""
    try:
        attention = import_module("tokamax").dot_product_attention
        flags = import_module("absl.flags").FLAGS
    except ImportError as error:
        raise NotImplementedError(f"tokamax is not installed: {error}") from error
    if not flags.is_parsed():  # it would read the command line and end at options that are not its
        flags.mark_as_parsed()
    return attention


def _merge(
    outs: Sequence[Float[Array, "Q H D"]], lses: Sequence[Float[Array, "Q H"]]
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"]]:
    """Return output and log-sum-exp over all segments, of those over each."""
    top = lax.stop_gradient(jnp.max(jnp.stack(lses), axis=0))
    shift = jnp.where(jnp.isfinite(top), top, 0.0)
    shares = [jnp.exp(x - shift) for x in lses]
    total = sum(shares, start=jnp.zeros_like(top))
    safe = jnp.where(total > 0, total, 1.0)
    out = sum(
        (share / safe)[..., None] * x.astype(jnp.float32)
        for share, x in zip(shares, outs, strict=True)
    )
    return jnp.asarray(out), jnp.where(total > 0, shift + jnp.log(safe), -jnp.inf)


def attend(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    window: int | None = None,
    implementation: Library = "cudnn",
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"]]:
    """See `jaxmem.kernels.attend`; `implementation` is that of jax.nn ("cudnn", "xla"), or tokamax.

    Raises:
      NotImplementedError: for types, head widths and sizes that it does not take, for "cudnn"
        where JAX finds no cuDNN, and for "tokamax" where it is not installed.
    """
    segments = [windowed(s, window) for s in segments if s.k.shape[0]]
    if not segments:
        return jnp.zeros_like(q), jnp.full(q.shape[:2], -jnp.inf, jnp.float32)
    _check(q, segments, implementation)
    segments = prerotated(segments, rope)
    outs = [_one(q, s, rope, implementation) for s in segments]
    lses = [ref.lse(q, [s], rope=rope, tile=tile_of(*q.shape[:2])) for s in segments]
    if len(segments) == 1:
        seen = jnp.any(visible(segments[0]), axis=-1)  # [Gm, Q or 1]
        seen = jnp.repeat(seen.T, q.shape[1] // seen.shape[0], axis=1)
        return jnp.where(seen[..., None], outs[0], 0), lses[0]
    out, lse = _merge(outs, lses)
    return out.astype(q.dtype), lse
