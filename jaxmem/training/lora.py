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

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxmem.data.world.atomic import complete
from jaxmem.decoder.checks import arrays_of
from jaxmem.models.hf.weights import nest
from jaxmem.saving import fingerprint
from jaxmem.typing import Array, Params

_MIXER = ("in", "qkv", "q", "k", "v", "z", "a", "b", "router", "step", "momentum", "forget", "out")
LINEAR = (
    *(f"*layers.{name}" for name in ("q", "k", "v", "attn_gate", "o")),
    *(f"*.mixer.{name}" for name in _MIXER),
    *(f"*{stack}.{name}" for stack in ("layers", "mixers.*") for name in ("gate", "up", "down")),
)
"""Patterns of all linear maps of a decoder's layers, those of mixers included."""
QUERIES = ("*layers.q", "*layers.k", "*layers.v")
"""Patterns of queries, keys and values."""
FORMAT = "jaxmem.lora 1"
SHOWN = 10  # parts that an error names


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
    maps = _maps(params)
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


def merge(params: Params, adapters: Params, *, alpha: float) -> Params:
    """Return the weights with W + alpha / r a b, added in float32 and rounded to W's dtype.

    Only a and b have a gradient. Of bfloat16 weights small changes are rounded away: train with
    float32 ones, or with `attach`.

    Args:
      params: weights; they stay as they are.
      adapters: from `init` or `load`.
      alpha: the scale is alpha / r.

    Raises:
      ValueError: if adapters do not fit the weights.
    """
    pairs = _pairs(params, adapters)

    def one(path: Any, leaf: Array) -> Array:
        leaf = jax.lax.stop_gradient(leaf)
        name, _, last = _name(path).rpartition(".")
        if last != "kernel" or name not in pairs:
            return leaf
        a, b = pairs[name]
        more = jnp.einsum("...ir,...rj->...ij", a, b) * (alpha / a.shape[-1])
        return (leaf.astype(more.dtype) + more).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def attach(params: Params, adapters: Params, *, alpha: float) -> Params:
    """Return the weights with a and alpha / r b beside each W, which `kernels.dense.linear` adds.

    For weights of which a second copy does not fit, or whose dtype would round the change away.
    Maps that are not computed by `linear` (MoM's stacks) do not see what is attached.

    Args:
      params: weights; they stay as they are.
      adapters: from `init` or `load`.
      alpha: the scale is alpha / r.

    Raises:
      ValueError: if adapters do not fit the weights.
    """
    pairs = _pairs(params, adapters)

    def one(tree: Any, path: str) -> Any:
        if isinstance(tree, tuple):
            return tuple(one(x, f"{path}.{i}") for i, x in enumerate(tree))
        if not isinstance(tree, Mapping):
            return tree
        found = {name: one(x, f"{path}.{name}" if path else name) for name, x in tree.items()}
        if path in pairs:
            a, b = (x.astype(tree["kernel"].dtype) for x in pairs[path])
            found |= {"a": a, "b": b * (alpha / a.shape[-1])}
        return found

    return one(jax.lax.stop_gradient(params), "")


def digest(params: Params) -> str:
    """Return a hash of the weights that adapters belong to: all but those of a learned score."""
    leaves = arrays_of(params)
    return fingerprint({name: x for name, x in leaves.items() if ".retention." not in f".{name}"})


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete(path) as temporary:
        save_file(arrays, temporary, metadata)
    return path


def load(path: str | Path, params: Params) -> tuple[Params, float]:
    """Return adapters and their alpha.

    Args:
      path: a file of `save`.
      params: the weights that they were trained on.

    Raises:
      ValueError: if there is no such file, or it was trained on other weights.
    """
    try:
        with safe_open(path, "numpy") as file:
            head = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no whole file of adapters: {error}") from error
    if head.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no file of adapters that jaxmem.training.lora wrote; of PEFT's directories "
            "give the directory to jm.load as adapter=."
        )
    if head["base"] != (mine := digest(params)):
        raise ValueError(
            f"{path} was trained on {head['name']} (weights {head['base']}), not on these weights "
            f"({mine}): load {head['name']} in the dtype that it was trained in."
        )
    return nest({name: jnp.asarray(x) for name, x in arrays.items()}), float(head["alpha"])


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _maps(params: Params) -> dict[str, Any]:
    """Return the kernels of a tree by the paths of their maps."""
    ending, leaves = ".kernel", jax.tree_util.tree_leaves_with_path(params)
    found = {_name(path): leaf for path, leaf in leaves}
    return {name[: -len(ending)]: x for name, x in found.items() if name.endswith(ending)}


def _pairs(params: Params, adapters: Params) -> dict[str, tuple[Array, Array]]:
    """Return a and b by the paths of their maps; ValueError if they do not fit the weights."""
    sides: dict[str, dict[str, Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        name, _, side = _name(path).rpartition(".")
        sides.setdefault(name, {})[side] = leaf
    maps, problems = _maps(params), []
    for name, pair in sides.items():
        shapes = {side: tuple(x.shape) for side, x in pair.items()}
        wanted = tuple(maps[name].shape) if name in maps else None
        if wanted is None or shapes.keys() != {"a", "b"} or _product(**shapes) != wanted:
            problems.append(f"  {name}: {shapes}, the weights have {wanted or 'no such matrix'}")
    if problems:
        raise ValueError(
            f"{len(problems)} adapter(s) do not fit these weights; make them with lora.init of the "
            "same model:\n" + "\n".join(problems[:SHOWN])
        )
    return {name: (pair["a"], pair["b"]) for name, pair in sides.items()}


def _product(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of a b, None if there is no such product."""
    fits = len(a) == len(b) > 1 and a[:-2] == b[:-2] and a[-1] == b[-2]
    return (*a[:-1], b[-1]) if fits else None
