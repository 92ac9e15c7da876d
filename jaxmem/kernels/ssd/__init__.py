"""The recurrence of Mamba-2 over a chunk (state space duality, SSD)."""

from __future__ import annotations

from functools import partial

from jaxmem.kernels import dispatch
from jaxmem.kernels.ssd import ref
from jaxmem.typing import Array, Float

_BACKENDS = {
    "xla": partial(ref.ssd, at_once=False),
    "xla_blocks": partial(ref.ssd, at_once=True),
    **dispatch.pallas("jaxmem.kernels.ssd.pallas", "ssd"),
}


def ssd(
    x: Float[Array, "T H P"],
    dt: Float[Array, "T H"],
    a: Float[Array, "H"],
    b: Float[Array, "T G N"],
    c: Float[Array, "T G N"],
    state: Float[Array, "H P N"],
    *,
    block: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, "T H P"], Float[Array, "H P N"]]:
    """Return y_t = h_t c_t of h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T, and the last h.

    In blocks of tokens, as matrix products (Mamba-2, arXiv 2405.21060, section 6). H heads of width
    P with N numbers for each channel; heads i H/G to (i + 1) H/G - 1 share group i of `b` and `c`.
    All arithmetic is float32, or float64 where `x` or `state` is. A row with dt 0 is padding: it
    changes no bit of the state. Everything is differentiable.

    Args:
      x: inputs.
      dt: steps, not negative: after bias, softplus and limits.
      a: rates, not positive.
      b: what the inputs are written along.
      c: what the state is read along.
      state: h before the first row.
      block: rows of a block, which changes rounding and speed only.
      implementation: "xla" passes the blocks one by one, "xla_blocks" all at once (3 to 5 times the
        memory), "pallas" is a kernel for GPUs; None: "xla".

    Returns:
      y, in x's dtype, without the skip D x; and the state after the last row, in its dtype.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
      NotImplementedError: of "pallas", for float64 and states larger than 128 by 128 a head.
    """
    rows, heads, dim = x.shape
    groups, size = b.shape[1:]
    given = tuple(v.shape for v in (dt, a, b, c, state))
    fitting = ((rows, heads), (heads,), *[(rows, groups, size)] * 2, (heads, dim, size))
    if given != fitting or heads % groups:
        raise ValueError(
            f"x has shape {x.shape}, so dt, a, b, c and state must have the shapes {fitting} with "
            f"groups that divide the heads; got {given}. Streams side by side: vmap."
        )
    more = {"block": block, "on_gpu": ("xla_blocks",)}  # experiments/gpu
    return dispatch.call(_BACKENDS, implementation, x, dt, a, b, c, state, **more)
