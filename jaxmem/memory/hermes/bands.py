"""Bands of layers by depth (shallow, middle, deep), and scores that speak across layers."""

from __future__ import annotations

from typing import NamedTuple

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

    Args:
      scores: finite everywhere (padding included).
      factors: f [L], the weight of the layer above.
      recursive: from the top down, with the layer above already smoothed (HERMES as released);
        otherwise with its raw scores (as published).
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
