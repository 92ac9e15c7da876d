"""The operations that are measured: ours, the naive one, and what both must at least move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax

from jaxmem.experiments.benchmark import kernels_naive as naive
from jaxmem.experiments.benchmark.kernels_shapes import Inputs, Shape, rope_of, segments
from jaxmem.kernels.attend import attend
from jaxmem.kernels.attend_mass import attend_mass
from jaxmem.kernels.attend_mass.ref import in_two
from jaxmem.kernels.received import mass, row_mass
from jaxmem.kernels.select import select
from jaxmem.kernels.similarity import neighbour_cosine
from jaxmem.kv import KV, take
from jaxmem.typing import Array, PyTree


@dataclass(frozen=True)
class Operation:
    """One operation and its naive formulation; both take (inputs, shape)."""

    name: str
    ours: Callable[..., PyTree]  # through `jaxmem.kernels`, `implementation` as a keyword
    plain: Callable[..., Any]  # what ours is timed against
    flops: Callable[[Shape], int]  # multiplications and additions of the matrix products
    nbytes: Callable[[Shape], int]  # of operands and results, each counted once
    goal: float | None = None  # time over that of the naive formulation, on a CPU
    against: Literal["naive", "two kernels"] = "naive"  # the second takes `implementation` too


def pairs(shape: Shape) -> int:
    """Return how many keys all rows together see."""
    return shape.rows * shape.slots + shape.rows * (shape.rows + 1) // 2


def logit_flops(shape: Shape) -> int:
    """Return the FLOPs of q k for every head."""
    return 2 * pairs(shape) * shape.heads * shape.dim


def query_bytes(shape: Shape) -> int:
    """Return the bytes of the queries, or of the output."""
    return shape.rows * shape.heads * shape.dim * shape.itemsize


def key_bytes(shape: Shape) -> int:
    """Return the bytes of the keys of memory and chunk, or of the values."""
    return shape.pool * shape.kv_heads * shape.dim * shape.itemsize


def mass_bytes(shape: Shape) -> int:
    """Return the bytes of queries, keys, log-sum-exp and sums."""
    lse = 4 * shape.rows * shape.heads
    return query_bytes(shape) + key_bytes(shape) + lse + 4 * shape.pool


def select_bytes(shape: Shape) -> int:
    """Return the bytes of the scores, and of the kept tokens read and written."""
    per_token = 2 * shape.kv_heads * shape.dim * shape.itemsize + 4 + 4 + 1
    return 2 * 4 * shape.pool + 2 * shape.slots * per_token


def _attend(x: Inputs, shape: Shape, **how: Any) -> tuple[Array, Array]:
    return attend(x.q, segments(x), rope=rope_of(shape), **how)


def _mass(x: Inputs, shape: Shape, **how: Any) -> tuple[Array, ...]:
    return mass(x.q, segments(x), x.lse, rope=rope_of(shape), rows=x.counted, out=x.out, **how)


def _last(shape: Shape) -> int:
    """Return how many rows an observing memory reads: SnapKV's 32, or fewer in a short chunk."""
    return min(32, shape.rows // 4)


def _attend_mass(x: Inputs, shape: Shape, *, few: bool = False, **how: Any) -> PyTree:
    given = {"rope": rope_of(shape), "rows": x.counted, "last": _last(shape) if few else None}
    return attend_mass(x.q, segments(x), **given, **how)


def _two_kernels(x: Inputs, shape: Shape, *, few: bool = False, **how: Any) -> PyTree:
    """Return the same by an attention and a mass of their own, as before they were one."""
    both = partial(attend, **how), partial(mass, **how)
    given = {"rope": rope_of(shape), "rows": x.counted, "last": _last(shape) if few else None}
    more = {"form": "softmax", "reduce": "head_mean", "window": None}
    return in_two(*both, x.q, segments(x), **given, **more)


def _row_mass(x: Inputs, shape: Shape, **how: Any) -> Array:
    assert x.lse is not None
    return row_mass(x.q, segments(x), x.lse, rope=rope_of(shape), segment=0, **how)


def _select(x: Inputs, shape: Shape, **how: Any) -> KV:
    index, keep = select(x.scores, x.caps, slots=shape.slots, **how)
    return take(x.slots, index, keep)


def _redundancy(x: Inputs, shape: Shape, **how: Any) -> Array:
    # There is one formulation, whatever back end the others are measured on.
    return neighbour_cosine(x.unit, jax.numpy.int32(shape.pool), lengths=True)


def operations() -> tuple[Operation, ...]:
    """Return what is measured, in the order of a chunk step."""
    seen = lambda s: 2 * query_bytes(s) + 2 * key_bytes(s) + 4 * s.rows * s.heads
    weighed = lambda s: mass_bytes(s) + key_bytes(s)
    twice = lambda s: 2 * logit_flops(s)
    mean = lambda s: 2 * pairs(s) * s.kv_heads * s.dim
    mean_bytes = lambda s: query_bytes(s) + key_bytes(s) + 4 * s.pool
    cosines = lambda s: 2 * s.pool * s.unit
    cosine_bytes = lambda s: s.pool * (s.unit * s.itemsize + 4)
    thrice = lambda s: 3 * logit_flops(s)
    some = lambda s: _last(s) * (s.pool - (_last(s) - 1) / 2)  # pairs of the last rows
    observed = lambda s: twice(s) + int(2 * some(s) * s.heads * s.dim)
    both_bytes = lambda s: seen(s) + 4 * s.pool
    few, two = partial(_attend_mass, few=True), partial(_two_kernels, few=True)
    apart: Any = {"against": "two kernels"}
    mean_mass = partial(_mass, form="mean_logit")
    squared, caote = partial(_mass, weights="A2v2"), partial(_mass, weights="caote")
    return (
        Operation("attend", _attend, naive.attend, twice, seen),
        Operation("attend_mass", _attend_mass, _two_kernels, thrice, both_bytes, **apart),
        Operation("attend_mass last rows", few, two, observed, both_bytes, **apart),
        Operation("mass", _mass, naive.mass, logit_flops, mass_bytes, 0.8),
        Operation("mass mean_logit", mean_mass, naive.mean_logit_mass, mean, mean_bytes, 0.5),
        Operation("mass A2v2", squared, naive.squared_mass, logit_flops, weighed),
        Operation("mass caote", caote, naive.caote_mass, twice, weighed),
        Operation("row_mass", _row_mass, naive.row_mass, logit_flops, mass_bytes),
        Operation("select", _select, naive.select, lambda s: 0, select_bytes, 0.5),
        Operation("redundancy", _redundancy, naive.redundancy, cosines, cosine_bytes),
    )


def with_attention(x: Inputs, shape: Shape) -> Inputs:
    """Return the inputs with the output and log-sum-exp of their attention."""
    out, lse = jax.jit(partial(_attend, shape=shape))(x)
    return x._replace(out=out, lse=lse)
