"""Save a live stream, restore it in another process, and go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxmem.decoder.program import Carry, Program, init_carry, settled
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


def _arrays(tree: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of every array by its name, for states and for metadata."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {name(path): (tuple(x.shape), str(jnp.dtype(x.dtype))) for path, x in leaves}


def _difference(stored: dict[str, tuple], wanted: dict[str, tuple]) -> str:
    """Return the first array that differs, in words."""
    name = min(n for n in stored.keys() | wanted.keys() if stored.get(n) != wanted.get(n))
    told = lambda arrays: "absent" if name not in arrays else "{1} {0}".format(*arrays[name])
    return f"{name} is {told(stored)} there and {told(wanted)} here"


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
        # A restore that fails halfway leaves reads behind that end in a closed event loop: compare
        # first, on the checkpoint's own list of its arrays.
        stored, wanted = _arrays(checkpointer.metadata(source).item_metadata.tree), _arrays(plain)
        if stored != wanted:
            raise ValueError(
                f"the stream at {source} does not fit this program ({_difference(stored, wanted)}):"
                " restore it with the model, memory and budget it was saved with."
            )
        loaded = checkpointer.restore(source, plain)
    carry = jax.tree.map(
        lambda x, y: (
            jax.random.wrap_key_data(x, impl=jax.random.key_impl(y))
            if _is_key(y)
            else jnp.asarray(x)
        ),
        loaded,
        like,
    )
    return settled(program, carry)
