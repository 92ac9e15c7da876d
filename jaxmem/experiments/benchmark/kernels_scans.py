"""The scans of layers with a state: sizes of models, inputs, and what they must at least do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.experiments.benchmark.kernels_shapes import Which
from jaxmem.kernels.delta import delta
from jaxmem.kernels.ssd import ssd
from jaxmem.typing import Array, Float, PyTree

BLOCK = 64
"""Rows of a block whose products are counted; the kernels' default."""


@dataclass(frozen=True)
class Scan:
    """The recurrence of one layer of one model."""

    model: str  # whose sizes these are
    rows: int  # T, tokens of a chunk
    heads: int  # H
    groups: int  # G, heads of b and c, or key heads
    size: int  # N, or K: numbers of the state for each channel
    dim: int  # P, or V: channels of a head
    gated: bool  # `delta`, not `ssd`
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """A name for tables."""
        return f"{self.model} T={self.rows}"

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return jnp.dtype(self.dtype).itemsize


CI = (Scan("ci", 24, 4, 2, 16, 16, False), Scan("ci", 24, 4, 2, 16, 16, True))
SMALL = (
    Scan("Mamba-2 130M", 4096, 24, 1, 128, 64, False),
    Scan("Qwen3.5 0.8B", 1024, 16, 16, 128, 128, True),
)
LARGE = tuple(
    scan
    for rows in (1024, 4096, 16384)
    for scan in (
        Scan("Mamba-2 2.7B", rows, 80, 1, 128, 64, False, "bfloat16"),
        Scan("Qwen3.5 9B", rows, 32, 16, 128, 128, True, "bfloat16"),
    )
)


def scans(which: Which) -> tuple[Scan, ...]:
    """Return the sizes of a name, see `kernels_shapes.shapes`; "embedded" has none."""
    known = {"ci": CI, "embedded": (), "cpu": SMALL, "7b": LARGE}
    return SMALL + LARGE if which == "all" else known[which]


class Gated(NamedTuple):
    """What `delta` takes."""

    q: Float[Array, "T G K"]
    k: Float[Array, "T G K"]
    v: Float[Array, "T H V"]
    g: Float[Array, "T H"]
    beta: Float[Array, "T H"]
    state: Float[Array, "H K V"]


class Selective(NamedTuple):
    """What `ssd` takes."""

    x: Float[Array, "T H P"]
    dt: Float[Array, "T H"]
    a: Float[Array, "H"]
    b: Float[Array, "T G N"]
    c: Float[Array, "T G N"]
    state: Float[Array, "H P N"]


def scan_inputs(scan: Scan, seed: int = 0) -> Gated | Selective:
    """Return random inputs; the state is float32."""
    rng = np.random.default_rng(seed)
    normal = lambda *size: rng.standard_normal(size, np.float32)
    rows, heads, groups, size, dim = scan.rows, scan.heads, scan.groups, scan.size, scan.dim
    typed = lambda x: jnp.asarray(x, scan.dtype)
    if scan.gated:
        q, k = (normal(rows, groups, size) for _ in range(2))
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
        g, beta = -np.logaddexp(0, normal(rows, heads)), rng.random((rows, heads), np.float32)
        state = jnp.asarray(normal(heads, size, dim))
        given = (typed(q), typed(k), typed(normal(rows, heads, dim)))
        return Gated(*given, jnp.asarray(g), jnp.asarray(beta), state)
    dt = jnp.asarray(np.logaddexp(0, normal(rows, heads) - 2))
    a, state = jnp.asarray(-np.exp(normal(heads))), jnp.asarray(normal(heads, dim, size))
    x, b, c = (typed(normal(rows, *more)) for more in ((heads, dim), *[(groups, size)] * 2))
    return Selective(x, dt, a, b, c, state)


def scan_flops(scan: Scan) -> int:
    """Return the FLOPs of one pass: the state read and written, and the products of the blocks.

    Half of a block's products are counted, the other half is masked. `delta` also solves for what
    is written: twice the products of keys with the state, and with one another.
    """
    state = 4 * scan.heads * scan.size * scan.dim
    inside = BLOCK * (scan.groups * scan.size + scan.heads * scan.dim)
    more = 2 * scan.heads * scan.size * scan.dim + inside if scan.gated else 0
    return scan.rows * (state + inside + more)


def scan_bytes(scan: Scan) -> int:
    """Return the bytes of one pass: inputs and outputs, and the state in and out, each once."""
    values = 2 * scan.rows * scan.heads * scan.dim * scan.itemsize
    keys = 2 * scan.rows * scan.groups * scan.size * scan.itemsize
    rates = 4 * scan.rows * scan.heads * (2 if scan.gated else 1)
    return values + keys + rates + 2 * 4 * scan.heads * scan.size * scan.dim


def run(x: Gated | Selective, scan: Scan, **how: Any) -> PyTree:
    """Return the outputs and the last state."""
    return (delta if scan.gated else ssd)(*x, **how)


def gradient(x: Gated | Selective, scan: Scan, **how: Any) -> PyTree:
    """Return the gradient of the sum of the outputs by everything."""

    def total(x: Gated | Selective) -> Array:
        return jnp.sum(run(x, scan, **how)[0].astype(jnp.float32))

    return jax.grad(total)(x)


@dataclass(frozen=True)
class ScanOperation:
    """One thing that is measured of a scan."""

    name: str
    call: Callable[..., PyTree]  # takes inputs, the scan and `implementation`
    passes: int  # over the inputs; backward counts as two
    against: str = "xla_blocks"  # the implementation that it is timed against
    goal: None = None

    def flops(self, scan: Scan) -> int:
        """Return the FLOPs of all passes."""
        return self.passes * scan_flops(scan)

    def nbytes(self, scan: Scan) -> int:
        """Return the bytes of all passes."""
        return self.passes * scan_bytes(scan)


SCANS = ("ssd", "ssd gradient", "delta", "delta gradient")
"""Names of what is measured."""


def scan_operations(scan: Scan) -> tuple[ScanOperation, ...]:
    """Return what is measured of a scan: outputs, and the gradient by everything."""
    name = "delta" if scan.gated else "ssd"
    return ScanOperation(name, run, 1), ScanOperation(f"{name} gradient", gradient, 3)
