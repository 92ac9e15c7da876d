"""TimeChat-Online's token drop (arXiv 2504.17343): rows that repeat the last frame become empty.

A filter on rows before the decoder, whatever memory follows. It belongs between an
encoder and `stream`, which then takes rows that are already embedded:

    rows = jax.vmap(lambda inputs: model.encode(params, inputs))(segment)   # K chunks
    rows, last = drop_chunks(rows, last, method="feature", threshold=0.9)
    carry = stream(bound, carry, rows, program=program)
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kernels.select import top_mask
from jaxmem.kv import EMPTY, VISION, take
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Array, Bool, Float, Int

Method = Literal["feature", "pixel"]


class Last(NamedTuple):
    """The newest F vision rows before a chunk, oldest first: F is the rows of a frame."""

    x: Float[Array, "F E"]  # what is compared: features, or pixels
    count: Int[Array, ""]  # how many have been seen, at most F


def start(frame: int, width: int) -> Last:
    """Return what a stream compares its first frame with: nothing, so that all of it is kept.

    A frame has F vision rows, and what is compared E columns (`width`).

    Raises:
      ValueError: if the frame has no rows.
    """
    if frame < 1:
        raise ValueError(f"a frame has at least 1 vision row, got frame={frame}.")
    return Last(jnp.zeros((frame, width), jnp.float32), jnp.zeros((), jnp.int32))


def drop(
    rows: Embeds,
    last: Last,
    *,
    method: Method,
    threshold: float,
    relative: bool = False,
    pixels: Float[Array, "T E"] | None = None,
) -> tuple[Embeds, Last]:
    """Empty the vision rows that look like the same patch of the previous frame.

    "feature": the cosine with it is larger than `threshold`. "pixel": the mean absolute difference
    from it is smaller. The previous frame is compared as it came, before anything was dropped, also
    across chunks, which may cut frames. Text and sound pass. Positions and span stay as they are,
    so time passes as if nothing had been dropped. No gradient flows through the choice.

    Args:
      rows: the chunk [T].
      last: the previous frame, from `start` or the call before.
      method: what is compared.
      threshold: see above; with `relative` the part of the chunk's comparable rows, those that
        changed least, that is dropped.
      relative: drop by rank in the chunk instead of by value.
      pixels: what method "pixel" compares, one row for each of `rows`; None: `rows.x`.

    Returns:
      The rows, those that are left first and in order, zeros after them; and what the next chunk
      is compared with.

    Raises:
      ValueError: if an option is unknown or out of range, or shapes do not fit.
    """
    x = rows.x if pixels is None else pixels
    _check(x, rows, last, method, threshold, relative)
    x, vision = jax.lax.stop_gradient(x).astype(jnp.float32), rows.modality == VISION

    # Vision rows without gaps, behind the F before them: entry F + j is row j, entry j its past.
    size, many = last.x.shape[0], jnp.sum(vision, dtype=jnp.int32)
    dense = jnp.argsort(~vision, stable=True)
    seen = jnp.concatenate([last.x, x[dense]])
    alike = _alike(seen[size:], seen[: x.shape[0]], method)
    number = jnp.arange(x.shape[0], dtype=jnp.int32)
    known = (number < many) & (last.count + number >= size)
    if relative:
        share = jnp.floor(threshold * jnp.sum(known)).astype(jnp.int32)
        alike = jnp.where(known, alike, -jnp.inf)
        repeated = top_mask(alike[None], share[None])[0]
    else:
        repeated = known & (alike > (threshold if method == "feature" else -threshold))
    repeated = jnp.zeros_like(vision).at[dense].set(repeated)

    new = jax.lax.dynamic_slice_in_dim(seen, many, size)
    last = Last(new, jnp.minimum(last.count + many, size))
    return compact(rows, (rows.modality != EMPTY) & ~repeated), last


def drop_chunks(rows: Embeds, last: Last, **options: Any) -> tuple[Embeds, Last]:
    """Return `drop` of K chunks, one after the other: rows and `pixels` are [K, T, ...]."""
    pixels = options.pop("pixels", None)

    def step(last: Last, chunk: tuple[Embeds, Array | None]) -> tuple[Last, Embeds]:
        kept, last = drop(chunk[0], last, pixels=chunk[1], **options)
        return last, kept

    last, kept = jax.lax.scan(step, last, (rows, pixels))
    return kept, last


def compact(rows: Embeds, keep: Bool[Array, "T"]) -> Embeds:
    """Return the kept rows in order, and empty rows behind them; positions and span as they are."""
    index = jnp.argsort(~keep, stable=True)
    x, rel, kind = take((rows.x, rows.pos, rows.modality), index, keep[index])
    deep = rows.deepstack
    if deep is not None:
        deep = take(deep.swapaxes(0, 1), index, keep[index]).swapaxes(0, 1)
    return Embeds(x, rel, kind, rows.advance, deep)


def _alike(a: Float[Array, "T E"], b: Float[Array, "T E"], method: Method) -> Float[Array, "T"]:
    """Return how alike rows are: their cosine, or minus their mean absolute difference."""
    if method == "pixel":
        return -jnp.mean(jnp.abs(a - b), axis=-1)
    length = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(length, 1e-8)


def _check(
    x: Array, rows: Embeds, last: Last, method: str, threshold: float, relative: bool
) -> None:
    if method not in ("feature", "pixel"):
        raise ValueError(f'method must be "feature" or "pixel", got {method!r}.')
    if relative and not 0.0 <= threshold <= 1.0:
        raise ValueError(f"with relative=True threshold is a part, 0 to 1, got {threshold}.")
    if x.shape != (rows.modality.shape[0], last.x.shape[1]):
        raise ValueError(
            f"compared are {x.shape}, expected [T, E] = "
            f"{(rows.modality.shape[0], last.x.shape[1])}: "
            "one row for each row of the chunk, as wide as start(frame, width) was given."
        )
