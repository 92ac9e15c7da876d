"""Rotary embeddings: one table of frequencies and one table of axes serve every family.

A rotary embedding rotates channel pairs (i, i + D/2) of a head by `position[axis[i]] * freq[i]`.
1-axis RoPE, sectioned M-RoPE (Qwen2-VL) and interleaved M-RoPE (Qwen3-VL) differ only in which
position axis a channel pair reads, so a `Rope` is two static tuples and one gather does them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmem.typing import Array, Float, Num

_LEAP = 1024  # positions that are turned at once
_MANY = 512  # angles from which on polynomials are worth their compilation


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of D/2 channel pairs.

    Attributes:
      inv_freq: radians per unit of position for each pair; 0 leaves a pair unrotated.
      axis: position axis that each pair reads.
      attention_factor: what queries and keys are multiplied by when they are rotated (YaRN).
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).
      scale: of the logits q k; None: 1 / sqrt(D).

    The last three travel with the embedding because attention and everything that measures it must
    agree on them. Attention takes q k / sqrt(D): decoders pass their queries through `scaled`.
    """

    inv_freq: tuple[float, ...]
    axis: tuple[int, ...]
    attention_factor: float = 1.0
    softcap: float | None = None
    scale: float | None = None

    def __post_init__(self):
        if len(self.inv_freq) != len(self.axis):
            raise ValueError(
                f"Rope needs one axis per frequency, got {len(self.inv_freq)} frequencies and "
                f"{len(self.axis)} axes."
            )

    @property
    def head_dim(self) -> int:
        """D, the head width that this embedding rotates."""
        return 2 * len(self.inv_freq)

    @property
    def axes(self) -> int:
        """A, the number of position axes that are read."""
        return max(self.axis, default=0) + 1


def _inv_freq(head_dim: int, theta: float) -> tuple[float, ...]:
    """Return theta^(-2i/D) for i < D/2 (RoFormer, eq. 15), rounded to float32 as models do."""
    if head_dim % 2:
        raise ValueError(f"head_dim must be even to form rotary pairs, got {head_dim}.")
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return tuple(float(f) for f in (1.0 / np.float32(theta) ** exponent).astype(np.float32))


def _check_sections(head_dim: int, sections: Sequence[int]) -> None:
    if sum(sections) * 2 != head_dim:
        raise ValueError(
            f"M-RoPE sections {tuple(sections)} cover {sum(sections)} pairs but head_dim "
            f"{head_dim} has {head_dim // 2}; the sections must sum to head_dim / 2."
        )


def rope_1d(head_dim: int, theta: float = 10_000.0, *, fraction: float = 1.0) -> Rope:
    """Return plain RoPE over one position axis.

    `theta` is the base of the frequencies, `fraction` the part of the channel pairs that is
    rotated, the first ones (partial rotary). Pairs are (i, i + D/2) over the whole head; a model
    that pairs channels inside the rotated part permutes the channels of its queries and keys.

    Raises:
      ValueError: if the head is odd, or the fraction leaves no whole number of pairs.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even to form rotary pairs, got {head_dim}.")
    if not 0.0 < fraction <= 1.0 or (head_dim * fraction) % 2:
        raise ValueError(
            f"fraction must leave a whole number of pairs of {head_dim} channels, got {fraction}."
        )
    rotated = int(head_dim * fraction)
    freq = _inv_freq(rotated, theta) + (0.0,) * ((head_dim - rotated) // 2)
    return Rope(freq, (0,) * len(freq))


def mrope_sectioned(head_dim: int, theta: float, sections: Sequence[int]) -> Rope:
    """Return sectioned M-RoPE: the first `sections[0]` pairs read axis 0, and so on (Qwen2-VL).

    Raises:
      ValueError: if the sections do not sum to head_dim / 2.
    """
    _check_sections(head_dim, sections)
    axis = tuple(a for a, n in enumerate(sections) for _ in range(n))
    return Rope(_inv_freq(head_dim, theta), axis)


def mrope_interleaved(head_dim: int, theta: float, sections: Sequence[int]) -> Rope:
    """Return interleaved M-RoPE: pairs cycle t, h, w until a section is used up (Qwen3-VL).

    Pair i reads axis 1 if i % 3 == 1 and i < 3 * sections[1], axis 2 likewise, else axis 0.

    Raises:
      ValueError: if there are not three sections or they do not sum to head_dim / 2.
    """
    if len(sections) != 3:
        raise ValueError(f"Interleaved M-RoPE needs 3 sections (t, h, w), got {tuple(sections)}.")
    _check_sections(head_dim, sections)
    axis = [0] * (head_dim // 2)
    for a in (1, 2):
        axis[a : 3 * sections[a] : 3] = [a] * len(axis[a : 3 * sections[a] : 3])
    return Rope(_inv_freq(head_dim, theta), tuple(axis))


def yarn(
    rope: Rope,
    factor: float,
    *,
    theta: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> Rope:
    """Return a rotary embedding stretched to longer contexts by YaRN (arXiv 2309.00071).

    Pairs that turn more than `beta_fast` times in the original context keep their frequency, those
    that turn less than `beta_slow` times are slowed down by `factor`, and in between the change is
    linear in the pair's index (section 3.2, as transformers computes it). Queries and keys are
    multiplied by 0.1 ln(factor) + 1 (section 3.4). The rope has frequencies theta^(-2i/D), on any
    axes; `original` is L, the positions that the model was trained on. `truncate` rounds the two
    pairs between which the change lies outwards; `attention_factor` replaces 0.1 ln(factor) + 1.

    Raises:
      ValueError: if the factor is below 1 or the original context is empty.
    """
    if factor < 1 or original < 1:
        raise ValueError(
            f"YaRN stretches a context: factor must be at least 1 and original positive, got "
            f"factor={factor}, original={original}."
        )
    pairs = len(rope.inv_freq)

    def pair_of(turns: float) -> float:
        """Return the index of the pair that turns so often in the original context."""
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(beta_fast), pair_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    width = high - low or 0.001
    slow = np.clip((np.arange(pairs) - low) / width, 0.0, 1.0)
    freq = np.asarray(rope.inv_freq, np.float64) * (1.0 - slow + slow / factor)
    scale = 0.1 * math.log(factor) + 1.0 if attention_factor is None else attention_factor
    return replace(
        rope,
        inv_freq=tuple(float(f) for f in freq.astype(np.float32)),
        attention_factor=rope.attention_factor * scale,
    )


def angles(rope: Rope, pos: Num[Array, "*N A"]) -> Float[Array, "*N D/2"]:
    """Return rotation angles in radians up to whole turns, float32.

    A float32 product loses the digits of large angles that matter (after 10 hours 0.03 rad), so a
    position is split into a multiple of 1024, whose whole turns are left out, and a rest: the
    error stays below 1e-3 rad up to position 1e6. Positions relative to a nearby base are exact.
    """
    if pos.shape[-1] < rope.axes:
        raise ValueError(f"positions have {pos.shape[-1]} axes, the embedding reads {rope.axes}.")
    along = lambda x: x.reshape((1,) * (pos.ndim - 1) + (-1,))
    axis, position = along(np.asarray(rope.axis)), pos.astype(jnp.float32)
    per_pair = position[..., :1]
    for other in range(1, rope.axes):  # a choice for each axis: a gather takes ten times as long
        per_pair = jnp.where(axis == other, position[..., other : other + 1], per_pair)
    freq = np.asarray(rope.inv_freq, np.float32)
    leap = np.remainder(freq.astype(np.float64) * _LEAP + np.pi, 2 * np.pi) - np.pi
    leaps = jnp.round(per_pair / _LEAP)
    turned = leaps * along(leap.astype(np.float32))
    return (per_pair - leaps * _LEAP) * along(freq) + turned


# pi/2 in three parts, the first two short enough for exact products (Cody and Waite).
_HALF_PI = (1.5703125, 4.837512969970703125e-4, 7.549789948768648e-8)
# Cephes' polynomials of sine and cosine in the square of an angle up to pi/4.
_SIN = (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
_COS = (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)


def cos_sin(angle: Float[Array, "*N"]) -> tuple[Float[Array, "*N"], Float[Array, "*N"]]:
    """Return cosine and sine, within 1e-7 for angles up to 1e4 radians, float32.

    Many are a few products each, which a compiler turns into vector instructions: XLA's own
    functions for a CPU take ten times as long, which was most of the time of a rotation. Few are
    XLA's, which compile faster.
    """
    angle = angle.astype(jnp.float32)
    if angle.size < _MANY:
        return jnp.cos(angle), jnp.sin(angle)
    quarters = jnp.round(angle * np.float32(2 / math.pi))
    for part in _HALF_PI:
        angle = angle - quarters * np.float32(part)
    square = angle * angle
    sin = angle + angle * square * _polynomial(_SIN, square)
    cos = 1.0 - 0.5 * square + square * square * _polynomial(_COS, square)
    quadrant = quarters.astype(jnp.int32)
    odd = (quadrant & 1) == 1
    cos, sin = jnp.where(odd, sin, cos), jnp.where(odd, cos, sin)
    cos = jnp.where(((quadrant + 1) & 2) != 0, -cos, cos)
    return cos, jnp.where((quadrant & 2) != 0, -sin, sin)


def _polynomial(parts: Sequence[float], x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Return parts[0] + parts[1] x + parts[2] x^2 + ..., float32."""
    total = jnp.full_like(x, parts[-1])
    for part in reversed(parts[:-1]):
        total = total * x + np.float32(part)
    return total


def rotate(x: Float[Array, "*N D"], angle: Float[Array, "*M D/2"]) -> Float[Array, "*N D"]:
    """Rotate channel pairs (i, i + D/2) of `x` by `angle`, in float32, and return x's dtype.

    `angle` must have as many axes as `x`, of size 1 where it broadcasts (heads).
    """
    return turn(x, *cos_sin(angle))


def turn(
    x: Float[Array, "*N D"], cos: Float[Array, "*M D/2"], sin: Float[Array, "*M D/2"]
) -> Float[Array, "*N D"]:
    """Rotate as `rotate` does, by angles whose cosines and sines are known."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x.dtype)


def scaled(q: Float[Array, "*N D"], table: Rope) -> Float[Array, "*N D"]:
    """Return queries that carry the embedding's scale and its attention factor for both sides."""
    factor = table.attention_factor**2
    if table.scale is not None:
        factor *= table.scale * table.head_dim**0.5
    return q if factor == 1.0 else (q.astype(jnp.float32) * factor).astype(q.dtype)


def tables(
    table: Rope, pos: Num[Array, "N Gm A"]
) -> tuple[Float[Array, "N Gm D/2"], Float[Array, "N Gm D/2"]]:
    """Return cosines and sines of the angles at positions.

    Many are made in a loop of two: as one expression, XLA's CPU would evaluate the polynomials
    again for every head and channel that they turn.
    """
    rows = pos.shape[0]
    many = pos[..., 0].size * len(table.axis) >= 2 * _MANY and rows % 2 == 0
    if not many or jax.default_backend() != "cpu":
        return cos_sin(angles(table, pos))
    halves = pos.reshape(2, rows // 2, *pos.shape[1:])
    both = lax.map(lambda half: cos_sin(angles(table, half)), halves)
    return tuple(x.reshape(rows, *x.shape[2:]) for x in both)


def rope(x: Float[Array, "N G D"], pos: Num[Array, "N Gm A"], table: Rope) -> Float[Array, "N G D"]:
    """Rotate keys or queries `x` to positions `pos`; Gm (1 or G) broadcasts over the heads."""
    return turn(x, *tables(table, pos))
