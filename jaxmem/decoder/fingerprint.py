"""A hash of weights: which they are, whatever file they came from."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.typing import Array, Params, UInt


def fingerprint(params: Params) -> str:
    """Return a hash of weights: names, shapes, and a checksum of the bits of every array."""
    found, leaves = hashlib.sha256(), jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    for (path, leaf), number in zip(leaves, sums, strict=True):
        words = f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {number.tolist()}"
        found.update(words.encode())
    return found.hexdigest()[:32]


@jax.jit
def _checksum(array: Array) -> UInt[Array, "2"]:
    """Return two sums of an array's bits, the same on every device: integers wrap, never round."""
    bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    bits = bits.astype(jnp.uint32)
    placed = bits
    for axis in range(bits.ndim):  # times odd numbers, so that no change is lost
        place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        placed = placed * (np.uint32(2) * place + np.uint32(2 * axis + 3))
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(placed, dtype=jnp.uint32)])
