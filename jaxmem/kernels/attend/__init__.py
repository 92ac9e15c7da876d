"""Attention of query rows over several segments under one softmax."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxmem.kernels import dispatch
from jaxmem.kernels.attend import library, ref
from jaxmem.kernels.segment import Segment, check
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float

_BACKENDS = {
    "xla": ref.attend,
    "jax_nn": partial(library.attend, implementation="xla"),
    "cudnn": partial(library.attend, implementation="cudnn"),
    "tokamax": partial(library.attend, implementation="tokamax"),
    **dispatch.pallas("jaxmem.kernels.attend.pallas", "attend"),
}

PROGRAMS = 64
"""Programs from which on the kernel of attention is preferred on a GPU."""


def attend(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    window: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"]]:
    """Return softmax(q k / sqrt(D)) v over all segments together, and its log-sum-exp.

    Query heads h * H/G to (h + 1) * H/G - 1 share KV head h; keys are rotated when read and never
    repeated. Accumulation and softmax are float32 whatever the dtype of the inputs, and no [Q, N]
    array exists when Q and N are large (FlashAttention, arXiv 2205.14135, algorithm 1). `q` is
    taken before rotary embedding (for segments with `q_pos`), and `rope` has width D. With
    `window`, row t sees at most so many entries of a segment with `last`, those that end at
    `last[t]`; segments without `last`, or with a `first` of their own, are not affected. The order
    of segments does not matter.

    Returns:
      The output in q's dtype, and the natural log-sum-exp of the logits in float32. A row that
      sees nothing gives output 0 and log-sum-exp -inf. Both are differentiable.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
    """
    check(q, segments, rope)
    more = {"rope": rope, "window": window, "on_gpu": fills_a_gpu(q)}
    return dispatch.call(_BACKENDS, implementation, q, segments, **more)


def fills_a_gpu(q: Float[Array, "Q H D"]) -> tuple[str, ...]:
    """Return what such queries prefer on a GPU: the kernel, where its programs fill one.

    A program has 64 rows of one KV head. On an H200, 224 of them took a fifth of XLA's time, and
    the 16 of a question or the 4 of an answer's token took longer than XLA; between lies no
    measurement (experiments/gpu).
    """
    return ("pallas",) if q.shape[0] * q.shape[1] >= 64 * PROGRAMS else ()
