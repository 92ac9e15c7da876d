"""Attention received: column sums of the attention weights, given the log-sum-exp of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jax import lax

from jaxmem.kernels import dispatch
from jaxmem.kernels.attend import fills_a_gpu
from jaxmem.kernels.received import ref
from jaxmem.kernels.segment import Segment, check
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float, Num

_MASS = {"xla": ref.mass, **dispatch.pallas("jaxmem.kernels.received.pallas", "mass")}
_ROW_MASS = {"xla": ref.row_mass, **dispatch.pallas("jaxmem.kernels.received.pallas", "row_mass")}

Form = Literal["softmax", "mean_logit"]
Reduce = Literal["head_mean", "kv_head", "head"]
Weights = Literal["A", "A2v2", "caote"]


def mass(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    lse: Float[Array, "Q H"] | None,
    *,
    rope: Rope,
    rows: Bool[Array, "Q"],
    form: Form = "softmax",
    reduce: Reduce = "head_mean",
    weights: Weights = "A",
    out: Float[Array, "Q H D"] | None = None,
    window: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "C N"], ...]:
    """Return, for every segment, how much attention each of its keys receives from the rows.

    Nothing flows back: the result carries no gradient. Like `attend`, it never holds [Q, N].
    `q`, `segments`, `rope` and `window` are those that `attend` was given; all segments share the
    softmax.

    Args:
      lse: float32 log-sum-exp that `attend` returned; ignored for form "mean_logit".
      rows: which query rows count (padding must not).
      form: "softmax" sums the weights of each head's softmax. "mean_logit" takes one softmax of
        the logits averaged over all H heads, Z = mean_h q_h k_h / sqrt(D), as OmniMem's released
        code does (arXiv 2606.07577); it needs keys whose validity the KV heads share (Gm = 1).
      reduce: "head_mean" [1, N] over all heads; "kv_head" [G, N] mean over the query heads of a
        KV head; "head" [H, N].
      weights: what is summed: "A", the weight; "A2v2", weight squared times |v|^2; "caote", how far
        a row's output moves if that key alone is removed (arXiv 2504.14051), which needs `out`.
      out: what `attend` returned, for weights "caote".

    Returns:
      Sums over the counted rows, float32, in the order of `segments`. Keys that no counted row
      sees get 0.

    Raises:
      ValueError: if shapes or options do not fit, or there is no such implementation.
    """
    check(q, segments, rope)
    check_mass(q, segments, rows, form, reduce, weights)
    _check_given(q, lse, form, weights, out)
    q, segments, lse, out = lax.stop_gradient((q, list(segments), lse, out))
    how = {"form": form, "reduce": reduce, "weights": weights, "out": out, "window": window}
    # Head means are wide, and on an H200 the kernel took longer with them (experiments/gpu).
    how |= {"rope": rope, "rows": rows, "on_gpu": () if form == "mean_logit" else ("pallas",)}
    return dispatch.call(_MASS, implementation, q, segments, lse, **how)


def row_mass(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    lse: Float[Array, "Q H"],
    *,
    rope: Rope,
    segment: int,
    columns: Num[Array, "N"] | None = None,
    window: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "Q"]:
    """Return how much of each row's attention (mean over heads) falls on one segment.

    `q`, `segments`, `rope` and `window` are those that `attend` was given, `lse` what it returned.
    `segment` is the index of a segment, of whose keys `columns` count (None: all).

    Returns:
      A float32 number in [0, 1] per row, without gradient; 0 for a row that sees nothing.

    Raises:
      ValueError: if shapes do not fit, or there is no such segment or implementation.
    """
    check(q, segments, rope)
    if not 0 <= segment < len(segments):
        raise ValueError(f"segment must be in [0, {len(segments)}), got {segment}.")
    if lse.shape != q.shape[:2]:
        raise ValueError(f"lse must be [Q, H] = {q.shape[:2]} as attend returns, got {lse.shape}.")
    q, segments, lse = lax.stop_gradient((q, list(segments), lse))
    how = {"rope": rope, "segment": segment, "columns": columns, "window": window}
    how["on_gpu"] = fills_a_gpu(q)
    return dispatch.call(_ROW_MASS, implementation, q, segments, lse, **how)


def check_mass(
    q: Any, segments: Any, rows: Any, form: Any, reduce: Any, weights: Any = "A"
) -> None:
    """Raise ValueError for options of `mass` that are unknown or do not go together."""
    if rows.shape != q.shape[:1]:
        raise ValueError(f"rows must be [{q.shape[0]}] (one flag per query), got {rows.shape}.")
    for name, value, known in (
        ("form", form, ("softmax", "mean_logit")),
        ("reduce", reduce, ("head_mean", "kv_head", "head")),
        ("weights", weights, ("A", "A2v2", "caote")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    if form == "mean_logit":
        if reduce != "head_mean" or weights != "A":
            raise ValueError(
                f'form "mean_logit" has one head and sums weights only; got reduce={reduce!r}, '
                f'weights={weights!r}. Use form="softmax" for these.'
            )
        if any(x is not None and x.shape[1] != 1 for s in segments for x in (s.valid, s.until)):
            raise ValueError(
                'form "mean_logit" averages the logits of all heads, so every head must hold the '
                'same tokens (Gm = 1); use form="softmax" with reduce="kv_head".'
            )


def _check_given(q: Any, lse: Any, form: Any, weights: Any, out: Any) -> None:
    if form != "mean_logit" and (lse is None or lse.shape != q.shape[:2]):
        got = None if lse is None else lse.shape
        raise ValueError(f"lse must be [Q, H] = {q.shape[:2]} as attend returns, got {got}.")
    if weights == "caote" and (out is None or out.shape != q.shape):
        got = None if out is None else out.shape
        raise ValueError(f'weights "caote" need out {q.shape} as attend returns it, got {got}.')
