"""The shapes that the kernels are measured at, and inputs of these shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.segment import Segment
from jaxmem.kv import AUDIO, KV, VISION
from jaxmem.rope import Rope, rope_1d
from jaxmem.typing import Array, Bool, Float, Int

Which = Literal["ci", "embedded", "cpu", "7b", "all"]


@dataclass(frozen=True)
class Shape:
    """One layer of one model with one memory."""

    model: str  # whose sizes these are
    rows: int  # T, tokens of a chunk
    slots: int  # S, slots of the memory
    heads: int  # H
    kv_heads: int  # G
    dim: int  # D
    unit: int = 128  # U, width of a redundancy vector
    dtype: str = "float32"  # of keys, values and queries

    @property
    def pool(self) -> int:
        """N, memory and chunk together."""
        return self.slots + self.rows

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def name(self) -> str:
        """A name for tables."""
        return f"{self.model} T={self.rows} S={self.slots}"


CI = (Shape("ci", 8, 24, 4, 2, 16, 32),)
EMBEDDED = tuple(Shape("embedded", 20, s, 4, 2, 32) for s in (64, 256, 1024))
HALF_B = (
    *(Shape("0.5B", 196, s, 14, 2, 64) for s in (1024, 4096)),
    Shape("0.5B", 1024, 4096, 14, 2, 64),
)
SEVEN_B = tuple(
    Shape("7B", t, s, 28, 4, 128, dtype="bfloat16")
    for t in (1024, 4096, 16384)
    for s in (4096, 8192)
)


def shapes(which: Which) -> tuple[Shape, ...]:
    """Return the shapes of a name: "ci" (tiny), "embedded", "cpu" (and 0.5B), "7b", or "all"."""
    known = {"ci": CI, "embedded": EMBEDDED, "cpu": EMBEDDED + HALF_B, "7b": SEVEN_B}
    return EMBEDDED + HALF_B + SEVEN_B if which == "all" else known[which]


class Inputs(NamedTuple):
    """What the operations of one layer take. The memory is full."""

    q: Float[Array, "T H D"]
    q_pos: Int[Array, "T 1"]
    memory: Segment  # without positions of queries: `segments` gives both the same ones
    chunk: Segment
    counted: Bool[Array, "T"]
    scores: Float[Array, "2 N"]  # of audio and vision
    caps: Int[Array, "2"]
    slots: KV  # [N], the pool to move
    unit: Float[Array, "N U"]
    out: Float[Array, "T H D"] | None = None  # what attention returned
    lse: Float[Array, "T H"] | None = None


def segments(x: Inputs) -> list[Segment]:
    """Return memory and chunk as the decoder passes them: with one array of query positions."""
    return [x.memory._replace(q_pos=x.q_pos), x.chunk._replace(q_pos=x.q_pos)]


def rope_of(shape: Shape) -> Rope:
    """Return the rotary embedding that a shape is measured with."""
    return rope_1d(shape.dim)


def inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Return random inputs; a fifth of the tokens is audio, and audio gets a fifth of the slots."""
    rng = np.random.default_rng(seed)
    n, groups, dim = shape.pool, shape.kv_heads, shape.dim

    def normal(*size: int) -> Array:
        return jnp.asarray(rng.standard_normal(size, np.float32), shape.dtype)

    k, v = normal(n, groups, dim), normal(n, groups, dim)
    audio = np.arange(n) % 5 == 4
    pos = jnp.arange(n, dtype=jnp.int32)[:, None, None]
    tokens = KV(
        k=k,
        v=v,
        pos=pos,
        index=pos[:, :, 0],
        modality=jnp.asarray(np.where(audio, AUDIO, VISION).astype(np.int8))[:, None],
    )
    at = jnp.arange(shape.rows, dtype=jnp.int32)

    def segment(part: slice, last: Array | None) -> Segment:
        real = jnp.ones((k[part].shape[0], 1), bool)
        return Segment(k[part], v[part], real, pos[part], None, last)

    score = rng.standard_normal(n, np.float32)
    share = shape.slots // 5
    unit: Any = rng.standard_normal((n, shape.unit), np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return Inputs(
        q=normal(shape.rows, shape.heads, dim),
        q_pos=shape.slots + at[:, None],
        memory=segment(slice(None, shape.slots), None),
        chunk=segment(slice(shape.slots, None), at),
        counted=jnp.ones((shape.rows,), bool),
        scores=jnp.asarray(np.stack([np.where(x, score, -np.inf) for x in (audio, ~audio)])),
        caps=jnp.asarray([share, shape.slots - share], jnp.int32),
        slots=tokens,
        unit=jnp.asarray(unit, shape.dtype),
    )
