"""Save a live stream, restore it in another process, and go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxmem.models.program import Carry, Program, init_carry
from jaxmem.typing import Array, PyTree


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(tree: PyTree) -> PyTree:
    """Return the tree with random keys as the integers they are made of."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _checkpointer():
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ValueError(
            "saving a stream needs orbax: install it with `pip install orbax-checkpoint`, or "
            "`pip install jaxmem[train]`."
        ) from error
    return ocp.StandardCheckpointer()


def save(path: str | Path, carry: Carry) -> None:
    """Write a live stream to the folder `path`, which must not exist yet.

    Raises:
      ValueError: if the folder exists or orbax is not installed.
    """
    target = Path(path).absolute()
    if target.exists():
        raise ValueError(f"{target} exists already: name a new folder, or remove it first.")
    with _checkpointer() as checkpointer:
        checkpointer.save(target, _plain(carry))


def restore(path: str | Path, program: Program) -> Carry:
    """Return the live stream that was saved at `path` by a program of the same shapes.

    Raises:
      ValueError: if there is nothing at `path`, or it was saved by another program.
    """
    source = Path(path).absolute()
    if not source.exists():
        raise ValueError(f"there is no saved stream at {source}: check the path.")
    like = jax.eval_shape(lambda: init_carry(program))
    plain = jax.tree.map(
        lambda x: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x, like
    )
    with _checkpointer() as checkpointer:
        try:
            loaded = checkpointer.restore(source, plain)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the stream at {source} does not fit this program: restore it with the model, "
                f"memory and budget it was saved with ({error})."
            ) from error
    differ = [
        (a.shape, b.shape)
        for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(plain), strict=True)
        if a.shape != b.shape or a.dtype != b.dtype
    ]
    if differ:
        raise ValueError(
            f"the stream at {source} has arrays of shape {differ[0][0]} where this program has "
            f"{differ[0][1]}: restore it with the model, memory and budget it was saved with."
        )
    return jax.tree.map(
        lambda x, y: (
            jax.random.wrap_key_data(x, impl=jax.random.key_impl(y))
            if _is_key(y)
            else jnp.asarray(x)
        ),
        loaded,
        like,
    )
