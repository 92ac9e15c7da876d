"""Which entries of a pool are kept: the best of each group, in the order of the stream."""

from __future__ import annotations

from jaxmem.kernels import dispatch
from jaxmem.kernels.select import ref
from jaxmem.typing import Array, Bool, Float, Int

_MODULE = "jaxmem.kernels.select.pallas"
_SELECT = {"xla": ref.select, **dispatch.pallas(_MODULE, "select")}
_TOP_MASK = {"xla": ref.top_mask, **dispatch.pallas(_MODULE, "top_mask")}


def select(
    scores: Float[Array, "C N"],
    caps: Int[Array, "C"],
    *,
    slots: int,
    implementation: str | None = None,
) -> tuple[Int[Array, "slots"], Bool[Array, "slots"]]:
    """Return the pool indices of the `caps[c]` best scores of every group c, oldest first.

    A score of -inf or NaN is never chosen. Equal scores (0.0 and -0.0 are equal) go to the newer
    entry, the one with the larger index. An entry chosen by several groups counts once. If the
    groups choose more than `slots` entries together, the oldest of them are left out.

    Args:
      scores: of N pool entries in the order of the stream, for C groups that choose separately.
      caps: how many each group may choose; int32 data, may be traced; below 0 counts as 0.
      slots: static size of the result.
      implementation: see `jaxmem.kernels`.

    Returns:
      `index`, the chosen entries in ascending order, then anything in [0, N); and `keep`, which
      of them were chosen. Feed both to `jaxmem.tokens.take`.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
    """
    _check(scores, caps)
    if slots < 0:
        raise ValueError(f"slots must not be negative, got {slots}.")
    return dispatch.call(_SELECT, implementation, scores, caps, slots=slots)


def top_mask(
    scores: Float[Array, "C N"], caps: Int[Array, "C"], *, implementation: str | None = None
) -> Bool[Array, "C N"]:
    """Return which entries are among the `caps[c]` best of their group, by the rules of `select`.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
    """
    _check(scores, caps)
    return dispatch.call(_TOP_MASK, implementation, scores, caps)


def _check(scores: Array, caps: Array) -> None:
    if scores.ndim != 2 or scores.shape[1] == 0 or caps.shape != scores.shape[:1]:
        raise ValueError(
            f"scores must be [C, N] with N > 0 and caps [C], got {scores.shape} and {caps.shape}; "
            "vmap over more axes."
        )
