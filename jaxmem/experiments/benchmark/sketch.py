"""How far the sets that OmniMem keeps agree, with sketched against whole redundancy vectors."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxmem.kv import AUDIO, VISION
from jaxmem.memory.omnimem.sketch import agreement

KINDS = (VISION,) * 16 + (AUDIO,) * 4


def scenes(tokens: int, width: int, *, seed: int = 0, cut: float = 1 / 200) -> np.ndarray:
    """Return layer inputs [tokens, width] of a made-up stream.

    Within a scene every token is the last one moved by a step of log-normal size, so cosines of
    neighbours run from near-duplicates to strangers; scenes are cut at rate `cut` per token.
    """
    rng = np.random.default_rng(seed)
    h = np.empty((tokens, width), np.float32)
    x = rng.standard_normal(width)
    for i in range(tokens):
        if rng.random() < cut:
            x = rng.standard_normal(width)
        x = x + rng.lognormal(-2, 1.0) * rng.standard_normal(width)
        x *= np.sqrt(width) / np.linalg.norm(x)
        h[i] = x
    return h


def agreements(
    widths: tuple[int, ...], sketches: tuple[int, ...], *, tokens: int, chunk: int, budget: int
) -> Iterator[tuple[str, float]]:
    """Yield the Jaccard index of the kept sets (mean over evicting chunks) by width and sketch.

    Both dtypes of storage are measured: float32, and bfloat16 as real models would hold.
    """
    kind = jnp.asarray(np.resize(KINDS, tokens), jnp.int8)
    for width in widths:
        hidden = jnp.asarray(scenes(tokens, width))
        for numbers in sketches:
            for dtype in (jnp.float32, jnp.bfloat16):
                mean, _ = agreement(
                    hidden, kind, budget=budget, chunk=chunk, sketch=numbers, unit_dtype=dtype
                )
                yield f"E={width} sketch={numbers} {jnp.dtype(dtype).name}", mean
