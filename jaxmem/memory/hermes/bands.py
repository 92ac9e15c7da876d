"""Bands of layers by depth (shallow, middle, deep), how each weighs, and smoothing across them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.typing import Array, Float

SHALLOW, MIDDLE, DEEP = 0, 1, 2


class Bands(NamedTuple):
    """Where the bands of a stack of layers begin; shallow is [0, middle), deep [deep, layers)."""

    middle: int
    deep: int
    layers: int

    @property
    def of(self) -> np.ndarray:
        """SHALLOW, MIDDLE or DEEP for every layer, [L]."""
        layer = np.arange(self.layers)
        return (layer >= self.middle).astype(np.int32) + (layer >= self.deep)

    @property
    def progress(self) -> np.ndarray:
        """How far a layer lies into the middle band, 0 at its first layer and below 1, [L]."""
        width = max(self.deep - self.middle, 1)
        return np.clip((np.arange(self.layers) - self.middle) / width, 0.0, 1.0)

    def passes(self, attention: Literal["official", "exact"]) -> np.ndarray:
        """Return which layers the two probes must pass through, [L, 2]."""
        middle, deep = self.of == MIDDLE, self.of == DEEP
        if attention == "exact":  # a causal pass comes from below
            middle = np.cumsum(middle[::-1])[::-1] > 0
            deep = np.full_like(deep, deep.any())
        return np.stack([middle, deep], axis=1)


class Mix(NamedTuple):
    """How a layer weighs recency against attention; pairs run over the middle band."""

    weight: tuple[float, float]  # of recency at the band's first layer, and past its last
    decay: tuple[float, float]  # k of exp(-k age), likewise; shallow layers take the first
    age: Literal["relative", "tokens"] = "relative"  # 0 (newest) to 1 (oldest), or token counts


QWEN = Mix((0.75, 0.15), (20.0, 8.0))
"""As released for Qwen2.5-VL; its weights are the published ones."""
LLAVA = Mix((1.0, 0.1), (20.0, 0.5))
"""As released for LLaVA-OneVision."""
PAPER = Mix((0.75, 0.15), (20.0, 20.0), "tokens")
"""As published; k is not given there, 20 is from the released code."""
MIXES = {"qwen": QWEN, "llava": LLAVA, "paper": PAPER}
MixName = Literal["qwen", "llava", "paper"]


def split(layers: int, shallow: float = 0.1, deep: float = 0.3) -> Bands:
    """Return the bands that give these shares of the layers, truncated as HERMES released them.

    Raises:
      ValueError: if the shares are negative or together more than the whole stack.
    """
    if shallow < 0 or deep < 0 or shallow + deep > 1:
        raise ValueError(
            f"bands take shares of the layers, >= 0 and together at most 1, got shallow={shallow} "
            f"and deep={deep}."
        )
    first = int(shallow * layers)
    return Bands(first, max(first, int(layers * (1 - deep))), layers)


def smooth(
    scores: Float[Array, "L N"], factors: np.ndarray, *, recursive: bool
) -> Float[Array, "L N"]:
    """Return (1 - f_l) s_l + f_l s_(l+1): every layer's scores, mixed with those of the next one.

    Entries are aligned by pool index, whichever tokens stand there. The last layer is untouched.
    Scores are finite everywhere (padding included); `factors` are f [L], the weight of the layer
    above. `recursive`: from the top down, with the layer above already smoothed (HERMES as
    released); otherwise with its raw scores (as published).
    """
    f = jnp.asarray(factors, jnp.float32)[:, None]
    if not recursive:
        mixed = (1.0 - f[:-1]) * scores[:-1] + f[:-1] * scores[1:]
        return jnp.concatenate([mixed, scores[-1:]])

    def down(above: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        own, weight = item
        mixed = (1.0 - weight) * own + weight * above
        return mixed, mixed

    _, mixed = jax.lax.scan(down, scores[-1], (scores[:-1], f[:-1]), reverse=True)
    return jnp.concatenate([mixed, scores[-1:]])
