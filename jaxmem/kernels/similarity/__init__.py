"""How much a token resembles its neighbours in the stream, or what is at its place now."""

from __future__ import annotations

from jaxmem.kernels import dispatch
from jaxmem.kernels.similarity import ref
from jaxmem.typing import Array, Bool, Float, Int

_UNIT = {"xla": ref.unit}
_NEIGHBOUR = {"xla": ref.neighbour_cosine}
_RECENT = {"xla": ref.similarity_to_recent}


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


def similarity_to_recent(
    keys: Float[Array, "N G D"],
    recent: Bool[Array, "G N"],
    place: Int[Array, "N G"],
    *,
    places: int,
    implementation: str | None = None,
) -> Float[Array, "G N"]:
    """Return the mean cosine of every key with the recent keys at its place in their frames.

    Temporal-axis redundancy of InfiniPot-V (arXiv 2506.15745), whose TaR score is its negative. No
    array of pairs of keys exists: one pass sums the recent keys of every place, one compares.

    Args:
      keys: of a pool, rotated or not, in any float dtype.
      recent: which of them belong to the recent frames; such a key is compared with itself too.
      place: of each key in its frame, 0 to places - 1; those of keys that are not vision tokens
        are compared too, and the caller leaves the result out.
      places: tokens of a frame.
      implementation: "xla" or None (the first back end that can do it).

    Returns:
      float32; 0 where no recent key has that place, and for a key of zeros.

    Raises:
      ValueError: if shapes do not fit, or a frame has no place.
    """
    if keys.ndim != 3 or recent.shape != keys.shape[1::-1] or place.shape != keys.shape[:2]:
        raise ValueError(
            "keys, recent and place must be [N, G, D], [G, N] and [N, G], got "
            f"{keys.shape}, {recent.shape} and {place.shape}; vmap over more axes."
        )
    if places < 1:
        raise ValueError(f"a frame has at least one place, got {places}.")
    return dispatch.call(_RECENT, implementation, keys, recent, place, places=places)
