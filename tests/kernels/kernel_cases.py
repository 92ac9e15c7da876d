"""One list of attention inputs for the tests of the kernels, and a dense float64 formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxmem.kernels.segment import Segment
from jaxmem.rope import Rope, mrope_interleaved, rope_1d


@dataclass(frozen=True)
class Case:
    """Sizes of one input; the last segment is the chunk (causal), the others memories.

    `fill` says which keys of the memories are valid: "full", "none", "one" or "ragged"; with
    "nothing" the chunk is padding too, so that no row sees anything.
    """

    name: str
    rows: int = 21
    sizes: tuple[int, ...] = (30, 21)
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    groups: int = 1
    fill: str = "ragged"
    window: int | None = None
    axes: int = 1
    turned: bool = False  # keys and queries come rotated
    scored: bool = False  # keys have a bias and a row that no longer sees them
    scale: float = 1.0
    dtype: Any = np.float32
    tile: tuple[int, int] | None = None  # None: the default, one tile at these sizes


CASES = [
    Case("grouped"),
    Case("grouped_blocks", tile=(8, 16)),
    Case("blocks_of_rows", tile=(16, 64)),  # all keys in a tile, rows in two
    Case("per_head", heads=2, kv_heads=2, rows=1, sizes=(33, 1)),
    Case("one_kv_head", heads=3, kv_heads=1, dim=64),
    Case("dim80", dim=80, heads=6, sizes=(5, 40, 21)),
    Case("dim128_bf16", dim=128, dtype=ml_dtypes.bfloat16, sizes=(65, 21), tile=(16, 32)),
    Case("bf16", dtype=ml_dtypes.bfloat16),
    Case("own_sets", groups=2, tile=(8, 8)),
    Case("window", window=9, tile=(8, 16)),
    Case("mrope", axes=3, dim=12),
    Case("turned", turned=True),
    Case("empty_memory", fill="none"),
    Case("one_valid", fill="one"),
    Case("full", fill="full", sizes=(16, 16, 21)),
    Case("nothing", fill="nothing"),
    Case("no_slots", sizes=(0, 21)),
    Case("extreme", scale=60.0),
    Case("scored", groups=2, scored=True, tile=(8, 16)),
]


def rope_of(case: Case) -> Rope:
    if case.axes == 3:
        return mrope_interleaved(case.dim, 1e4, (2, 2, 2))
    return rope_1d(case.dim)


def build(case: Case) -> tuple[np.ndarray, list[Segment], np.ndarray]:
    """Return queries, segments and the rows that count, as numpy arrays of the case's dtype."""
    rng = np.random.default_rng(sum(map(ord, case.name)))

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(case.dtype)

    q = (normal(case.rows, case.heads, case.dim).astype(np.float32) * case.scale).astype(case.dtype)
    counted = rng.random(case.rows) < 0.7
    counted[-1] = True
    segments, begin = [], 0
    behind = sum(case.sizes[:-1])
    q_pos = np.repeat(behind + np.arange(case.rows, dtype=np.int32)[:, None], case.axes, 1)
    for i, n in enumerate(case.sizes):
        chunk = i == len(case.sizes) - 1
        valid = _valid(case, rng, n, chunk)
        pos = begin + np.arange(n, dtype=np.int32)[:, None, None]
        pos = pos + rng.integers(0, 3, (n, case.groups, case.axes)).astype(np.int32)
        last = np.arange(case.rows, dtype=np.int32) + n - case.rows
        scored = _scored(case, n) if case.scored else {}
        segments.append(
            Segment(
                k=normal(n, case.kv_heads, case.dim),
                v=normal(n, case.kv_heads, case.dim),
                valid=valid,
                pos=None if case.turned else pos,
                q_pos=None if case.turned else q_pos,
                last=last if chunk else (last + case.rows if case.window else None),
                **scored,
            )
        )
        begin += n
    return q, segments, counted


def _scored(case: Case, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        "bias": rng.normal(size=(n, case.kv_heads)).astype(np.float32),
        "until": rng.integers(0, 2 * case.rows, (n, case.kv_heads), dtype=np.int32),
        "row": np.arange(case.rows, dtype=np.int32),
    }


def _valid(case: Case, rng: np.random.Generator, n: int, chunk: bool) -> np.ndarray:
    shape = (n, case.groups)
    if case.fill == "nothing":
        return np.zeros(shape, bool)
    if chunk or case.fill == "full":
        return np.ones(shape, bool)
    if case.fill == "one":
        return np.broadcast_to((np.arange(n) == n // 2)[:, None], shape).copy()
    if case.fill == "none":
        return np.zeros(shape, bool)
    return rng.random(shape) < 0.7


def on_device(tree):
    q, segments, counted = tree
    segments = [Segment(*(None if x is None else jnp.asarray(x) for x in s)) for s in segments]
    return jnp.asarray(q), segments, jnp.asarray(counted)


def turn(x: np.ndarray, pos: np.ndarray | None, rope: Rope) -> np.ndarray:
    """Rotate x [N, G, D] to pos [N, Gm, A] in float64, then round as the library stores it."""
    if pos is None:
        return x.astype(np.float64)
    angle = pos[..., list(rope.axis)] * np.asarray(rope.inv_freq)
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return out.astype(x.dtype).astype(np.float64) if x.dtype != np.float32 else out


def dense_logits(case: Case, q: np.ndarray, segments: list[Segment]) -> np.ndarray:
    """Return logits [H, Q, N] over all segments in float64, -inf where a row does not see."""
    rope, shared = rope_of(case), case.heads // case.kv_heads
    parts = []
    for s in segments:
        queries = turn(q, None if s.q_pos is None else s.q_pos[:, None], rope)
        keys = np.repeat(turn(s.k, s.pos, rope), shared, axis=1)
        z = np.einsum("qhd,nhd->hqn", queries, keys) / np.sqrt(case.dim)
        n = s.valid.shape[0]
        per_head = np.broadcast_to(s.valid, (n, case.kv_heads)).repeat(shared, axis=1)
        seen = np.broadcast_to(per_head.T[:, None], z.shape).copy()
        if s.last is not None:
            distance = s.last[:, None] - np.arange(n)[None]
            seen &= (distance >= 0)[None]
            if case.window is not None:
                seen &= (distance < case.window)[None]
        if s.until is not None:
            z = z + s.bias.T.repeat(shared, axis=0)[:, None]
            seen &= s.row[None, :, None] < s.until.T.repeat(shared, axis=0)[:, None]
        parts.append(np.where(seen, z, -np.inf))
    return np.concatenate(parts, axis=-1)


def dense_weights(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return softmax weights over the last axis (0 in rows that see nothing), and log-sum-exp."""
    top = np.max(z, axis=-1, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0.0)
    e = np.exp(z - shift)
    total = e.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + shift)[..., 0]
    return e / np.where(total > 0, total, 1.0), lse


def split(x: np.ndarray, segments: list[Segment]) -> list[np.ndarray]:
    """Cut the last axis into the segments' parts."""
    ends = np.cumsum([s.valid.shape[0] for s in segments])[:-1]
    return np.split(x, ends, axis=-1)
