"""The gated delta rule over a chunk (gated DeltaNet)."""

from __future__ import annotations

from functools import partial

from jaxmem.kernels import dispatch
from jaxmem.kernels.delta import ref
from jaxmem.typing import Array, Float

_BACKENDS = {
    "xla": partial(ref.delta, at_once=False),
    "xla_blocks": partial(ref.delta, at_once=True),
    **dispatch.pallas("jaxmem.kernels.delta.pallas", "delta"),
}


def delta(
    q: Float[Array, "T G K"],
    k: Float[Array, "T G K"],
    v: Float[Array, "T H V"],
    g: Float[Array, "T H"],
    beta: Float[Array, "T H"],
    state: Float[Array, "H K V"],
    *,
    block: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, "T H V"], Float[Array, "H K V"]]:
    """Return o_t = S_t^T q_t / sqrt(K) of the gated delta rule, and the last S.

    S <- exp(g_t) S, then S <- S + k_t (beta_t (v_t - S^T k_t))^T, in blocks of tokens: a triangular
    system in each gives what is written (gated DeltaNet, arXiv 2412.06464). H value heads of width
    V, keys of width K; value heads i H/G to (i + 1) H/G - 1 share key head i. All arithmetic is
    float32, or float64 where `v` or `state` is. A row with g 0 and beta 0 is padding: it changes no
    bit of the state. Everything is differentiable.

    Args:
      q: what the state is read along, of length 1.
      k: what it is written along, of length 1.
      v: values.
      g: log decays, not positive.
      beta: shares of the difference that are written, 0 to 1.
      state: S before the first row.
      block: rows of a block, which changes rounding and speed only.
      implementation: "xla" passes the blocks one by one, "xla_blocks" solves all systems at once,
        "pallas" is kernels for GPUs; None: "xla".

    Returns:
      o, in v's dtype, and the state after the last row, in its dtype.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
      NotImplementedError: of "pallas", for float64 and states larger than 128 by 128 a head.
    """
    rows, heads, dim = v.shape
    groups, size = k.shape[1:]
    given = tuple(x.shape for x in (q, k, g, beta, state))
    fitting = (*[(rows, groups, size)] * 2, *[(rows, heads)] * 2, (heads, size, dim))
    if given != fitting or heads % groups:
        raise ValueError(
            f"v has shape {v.shape}, so q, k, g, beta and state must have the shapes {fitting} "
            f"with key heads that divide the value heads; got {given}. Streams side by side: vmap."
        )
    more = {"block": block, "on_gpu": ("pallas", "xla_blocks")}  # experiments/gpu
    return dispatch.call(_BACKENDS, implementation, q, k, v, g, beta, state, **more)
