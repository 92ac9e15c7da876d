"""LoRA (arXiv 2106.09685): W + alpha / r a b for matrices of frozen weights.

Adapters are a tree of the weights' own paths, with a pair in place of a matrix:

    adapters = init(params, key, rank=16)  # {"decoder": {"layers": {"q": {"a", "b"}, ...}}}
    params = merge(params, adapters, alpha=32)  # once a step, outside every scan
    save(path, adapters, base=digest(params), alpha=32)
    adapters, alpha = load(path, params)

What is merged are plain weights, so every family, memory and loop runs on them as it is, and the
gradient by a and b is the chain rule through one product for each matrix. Stacks [L, i, j] have
pairs [L, i, r] and [L, r, j]. Keys of a path are strings, also those of tuples: "mixers.0.mixer".
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.checks import arrays_of
from jaxmem.models.adapters import FORMAT, attach, digest, load, maps_of, merge
from jaxmem.models.hf.tensors import write_tensors
from jaxmem.models.hf.weights import nest
from jaxmem.typing import Array, Params

__all__ = ["LINEAR", "QUERIES", "attach", "digest", "init", "load", "merge", "save"]

_MIXER = ("in", "qkv", "q", "k", "v", "z", "a", "b", "router", "step", "momentum", "forget", "out")
LINEAR = (
    *(f"*layers.{name}" for name in ("q", "k", "v", "attn_gate", "o")),
    *(f"*.mixer.{name}" for name in _MIXER),
    *(f"*{stack}.{name}" for stack in ("layers", "mixers.*") for name in ("gate", "up", "down")),
)
"""Patterns of all linear maps of a decoder's layers, those of mixers included."""
QUERIES = ("*layers.q", "*layers.k", "*layers.v")
"""Patterns of queries, keys and values."""


def init(params: Params, key: Array, *, rank: int, at: Sequence[str] = LINEAR) -> Params:
    """Return adapters that change nothing yet: a is uniform within i^-0.5, b is 0, as in PEFT.

    Args:
      params: weights, or their shapes.
      key: JAX key.
      rank: r.
      at: patterns (`fnmatch`) of paths of maps, that of "decoder.layers.q.kernel" being
        "decoder.layers.q". A pattern that `LINEAR` has may match nothing, any other must.

    Raises:
      ValueError: if the rank is not positive, or a pattern matches no matrix.
    """
    if rank < 1:
        raise ValueError(f"the rank of adapters must be positive, got {rank}.")
    maps = maps_of(params)
    found = [name for name in maps if any(fnmatchcase(name, pattern) for pattern in at)]
    idle = [p for p in at if p not in LINEAR and not any(fnmatchcase(n, p) for n in maps)]
    if idle or not found:
        raise ValueError(
            f"no matrix of these weights is called {', '.join(idle or at)}; give patterns of "
            f"{', '.join(maps)}."
        )
    adapters = {}
    for name, part in zip(found, jax.random.split(key, len(found)), strict=True):
        *lead, rows, columns = maps[name].shape
        draw = jax.random.uniform(part, (*lead, rows, rank), jnp.float32, -1, 1)
        adapters |= {f"{name}.a": draw * rows**-0.5}
        adapters |= {f"{name}.b": jnp.zeros((*lead, rank, columns), jnp.float32)}
    return nest(adapters)


def save(
    path: str | Path, adapters: Params, *, base: str, alpha: float, name: str = "another model"
) -> Path:
    """Write adapters as float32 safetensors, complete or not at all, and return the path.

    Args:
      path: of the file.
      adapters: from `init`.
      base: `digest` of the weights that they were trained on.
      alpha: see `merge`.
      name: of the base, for errors of `load`.
    """
    metadata = {"format": FORMAT, "base": base, "alpha": repr(float(alpha)), "name": name}
    arrays = {k: np.asarray(x, np.float32) for k, x in arrays_of(adapters).items()}
    return write_tensors(path, arrays, metadata)
