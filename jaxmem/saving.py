"""Save a live stream, restore it in another process, and go on as if nothing had happened.

A folder holds the carry (orbax), what made it (`made.json`: memory, options, sizes, weights), and
what the host knows of the stream (`host.npz`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.program import Carry, Program, description, init_carry, settled
from jaxmem.typing import Array, Params, PyTree, UInt

FORMAT = 2
"""Format 1 had other names of arrays; it is refused."""


class SavedPiece(NamedTuple):
    """A piece that waited for its chunk to fill."""

    frames: np.ndarray
    samples: np.ndarray


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


def made_by(program: Program, params: Params | None = None) -> dict[str, str]:
    """Return what a stream depends on, in words: memory and options, sizes, decoder, weights."""
    made = description(program)
    return made if params is None else made | {"weights": fingerprint(params)}


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


def _arrays(tree: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of every array by its name, for states and for metadata."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {name(path): (tuple(x.shape), str(jnp.dtype(x.dtype))) for path, x in leaves}


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the first thing that differs, in words."""
    name = min(n for n in stored.keys() | wanted.keys() if stored.get(n) != wanted.get(n))

    def word(found: Mapping[str, Any]) -> str:
        value = found.get(name, "absent")
        return "{1} {0}".format(*value) if isinstance(value, tuple) else str(value)

    return f"{name} is {word(stored)} there and {word(wanted)} here"


def save(
    path: str | Path,
    carry: Carry,
    *,
    program: Program | None = None,
    params: Params | None = None,
    host: Mapping[str, np.ndarray] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> None:
    """Write a live stream to the folder `path`, which must not exist yet.

    Args:
      path: of the folder.
      carry: the stream.
      program: that made it; `restore` then refuses another memory or other options.
      params: weights that made it; `restore` then refuses others.
      host: arrays that the host knows of the stream.
      numbers: what else it knows, as JSON.

    Raises:
      ValueError: if the folder exists or orbax is not installed.
    """
    target = Path(path).absolute()
    if target.exists():
        raise ValueError(f"{target} exists already: name a new folder, or remove it first.")
    made = {} if program is None else made_by(program, params)
    document = {"format": FORMAT, "made": made, "numbers": dict(numbers or {})}
    with _checkpointer() as checkpointer:
        checkpointer.save(target / "carry", _plain(carry))
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in (host or {}).items()}
    np.savez(target / "host.npz", **arrays)
    (target / "made.json").write_text(json.dumps(document, indent=1) + "\n")


def _document(path: str | Path) -> tuple[Path, dict[str, Any]]:
    source = Path(path).absolute()
    if not (source / "made.json").exists():
        if source.exists():
            raise ValueError(
                f"{source} is no saved stream of format {FORMAT}: save the stream again with this "
                "release."
            )
        raise ValueError(f"there is no saved stream at {source}: check the path.")
    document = json.loads((source / "made.json").read_text())
    if document.get("format") != FORMAT:
        raise ValueError(
            f"the stream at {source} has format {document.get('format')}, this release reads "
            f"{FORMAT}: save the stream again with this release."
        )
    return source, document


def host_side(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what the host knew of a saved stream: numbers, and arrays.

    Raises:
      ValueError: if there is nothing at `path`, or a session did not write it.
    """
    source, document = _document(path)
    if "pieces" not in document["numbers"]:
        raise ValueError(
            f"the stream at {source} was saved without a session: use "
            "jaxmem.restore(path, program)."
        )
    with np.load(source / "host.npz") as arrays:
        return document["numbers"], dict(arrays)


def restore(path: str | Path, program: Program, *, params: Params | None = None) -> Carry:
    """Return the live stream that was saved at `path` by an equal program.

    Args:
      path: of the folder.
      program: that goes on with it.
      params: weights that go on with it; None: they are not compared.

    Raises:
      ValueError: if there is nothing at `path`, or it was saved by another program, with another
        memory, other options or other weights.
    """
    source, document = _document(path)
    wanted = made_by(program, params)
    stored = {k: v for k, v in document["made"].items() if k in wanted}
    wanted = {k: v for k, v in wanted.items() if k in stored}
    if stored != wanted:
        raise ValueError(
            f"the stream at {source} was made otherwise ({_difference(stored, wanted)}): restore "
            "it with the model, memory and options it was saved with."
        )
    like = jax.eval_shape(lambda: init_carry(program))
    plain = jax.tree.map(
        lambda x: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x, like
    )
    with _checkpointer() as checkpointer:
        # A restore that fails halfway leaves reads behind that end in a closed event loop: compare
        # first, on the checkpoint's own list of its arrays.
        folder = source / "carry"
        arrays, shapes = _arrays(checkpointer.metadata(folder).item_metadata.tree), _arrays(plain)
        if arrays != shapes:
            raise ValueError(
                f"the stream at {source} does not fit this program ({_difference(arrays, shapes)}):"
                " restore it with the model, memory and budget it was saved with."
            )
        loaded = checkpointer.restore(folder, plain)
    carry = jax.tree.map(
        lambda x, y: (
            jax.random.wrap_key_data(x, impl=jax.random.key_impl(y))
            if _is_key(y)
            else jnp.asarray(x)
        ),
        loaded,
        like,
    )
    if not np.array_equal(carry.made_by, init_carry(program).made_by):
        raise ValueError(
            f"the stream at {source} was made by another program than this one "
            f"({program.memory!r}): restore it with the model, memory and options it was saved "
            "with."
        )
    return settled(program, carry)
