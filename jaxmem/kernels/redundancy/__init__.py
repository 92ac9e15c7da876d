"""How much a token resembles its neighbours in the stream."""

from __future__ import annotations

from jaxmem.kernels import dispatch
from jaxmem.kernels.redundancy import ref
from jaxmem.typing import Array, Float, Int

_UNIT = {"xla": ref.unit}
_NEIGHBOUR = {"xla": ref.neighbour_cosine}


def unit(x: Float[Array, "N E"], *, implementation: str | None = None) -> Float[Array, "N E"]:
    """Return rows scaled to length 1 in float32; a row of zeros stays zero."""
    return dispatch.call(_UNIT, implementation, x)


def neighbour_cosine(
    unit: Float[Array, "N U"],
    n: Int[Array, ""],
    *,
    lengths: bool = False,
    implementation: str | None = None,
) -> Float[Array, "N"]:
    """Return the mean cosine of every pool row with the row before and the row behind it.

    A neighbour that is missing, at either end of the n valid rows, counts as 1, as if it
    were identical (OmniMem, arXiv 2606.07577, redundancy of the score). Rounding may lift a value
    a little above 1: clamp 1 - s before taking its root.

    Args:
      unit: pool rows of length 1 (see `unit`), of which the first n are valid.
      n: number of valid rows, int32, may be traced.
      lengths: divide by the lengths of the rows, which rounding to a smaller dtype has moved away
        from 1; one pass over the rows, where `unit` before it takes three. For rows whose squares
        float32 can hold.
      implementation: "xla" or None (the first back end that can do it).

    Returns:
      float32; 1 for rows from n on.

    Raises:
      ValueError: if `unit` is not a matrix with at least one row.
    """
    if unit.ndim != 2 or unit.shape[0] == 0:
        raise ValueError(f"unit must be [N, U] with N > 0, got {unit.shape}; vmap over more axes.")
    return dispatch.call(_NEIGHBOUR, implementation, unit, n, lengths=lengths)
