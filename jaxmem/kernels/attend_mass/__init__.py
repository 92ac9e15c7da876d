"""Attention and the attention that its keys receive, for memories that ask for both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from jaxmem.kernels import dispatch
from jaxmem.kernels.attend import attend
from jaxmem.kernels.attend_mass import ref
from jaxmem.kernels.received import Form, check_mass, mass
from jaxmem.kernels.segment import Segment, check
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float

_BACKENDS = {
    "xla": ref.attend_mass,
    "apart": partial(ref.in_two, attend, mass),  # each as None chooses
    **dispatch.pallas("jaxmem.kernels.attend_mass.pallas", "attend_mass"),
}


def attend_mass(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    rows: Bool[Array, "Q"],
    last: int | None = None,
    form: Form = "softmax",
    reduce: Literal["head_mean", "kv_head"] = "head_mean",
    window: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"], tuple[Float[Array, "C N"], ...]]:
    """Return what `attend` returns, and of every segment what `mass` returns for the same rows.

    Args:
      q: as for `attend`.
      segments: as for `attend`.
      rope: as for `attend`.
      rows: which query rows count (padding must not).
      last: only so many of these rows count, the last ones; None: all do.
      form: as for `mass`.
      reduce: "head_mean" [1, N] over all heads; "kv_head" [G, N] over those of each KV head.
      window: as for `attend`.

    Returns:
      The output in q's dtype, the log-sum-exp and the sums in float32. The first two are
      differentiable; nothing flows back from the sums.

    Raises:
      ValueError: if shapes or options do not fit, or there is no such implementation.
    """
    check(q, segments, rope)
    check_mass(q, segments, rows, form, reduce)
    if reduce == "head":
        raise ValueError('attend_mass sums over heads; use mass for reduce="head".')
    how = {"rope": rope, "rows": rows, "last": last, "form": form, "reduce": reduce}
    # On an H200 two kernels took 0.8 to 1.03 of the time of the one (experiments/gpu).
    how |= {"window": window, "on_gpu": ("apart",)}
    return dispatch.call(_BACKENDS, implementation, q, segments, **how)
