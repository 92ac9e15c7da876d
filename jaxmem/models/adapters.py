"""Adapters of a model's own weights (LoRA) in one file: reading, merging, and those by name.

They are made and written by `jaxmem.training.lora`; adapters as PEFT writes them, for a checkpoint
of Hugging Face, are `jaxmem.models.hf.adapter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError, safe_open

from jaxmem.decoder.checks import arrays_of
from jaxmem.decoder.fingerprint import fingerprint
from jaxmem.models.base import Model
from jaxmem.models.hf.weights import nest
from jaxmem.typing import Array, Params

ADAPTERS = Path(__file__).parents[1] / "assets" / "adapters"
FORMAT = "jaxmem.lora 1"
SHOWN = 10  # parts that an error names


def shipped() -> tuple[str, ...]:
    """Return the names of the adapters that come with the package."""
    return tuple(sorted(path.stem for path in ADAPTERS.glob("*.safetensors")))


def adapted(model: Model, adapter: str | Path | None) -> Model:
    """Return the model with adapters in its weights; the model that is given stays as it is.

    Args:
      model: whose weights the adapters were trained on.
      adapter: a name of `shipped`, or a file of `training.lora.save`, such as `jaxmem finetune`
        writes; None: the model as it is.

    Raises:
      ValueError: if there is no such file, or it was trained on other weights.
    """
    if adapter is None:
        return model
    path = ADAPTERS / f"{adapter}.safetensors" if str(adapter) in shipped() else Path(adapter)
    if not path.is_file():
        raise ValueError(
            f"{adapter} is no file of adapters for {model.name}: give a file that `jaxmem "
            f"finetune` wrote, or the name {' or '.join(shipped())}."
        )
    adapters, alpha = load(path, model.params)
    return model._replace(params=merge(model.params, adapters, alpha=alpha))


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
    try:
        base, name, alpha = head["base"], head["name"], float(head["alpha"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} does not say what it was trained on, or its alpha ({error}): write it anew."
        ) from None
    if base != (mine := digest(params)):
        raise ValueError(
            f"{path} was trained on {name} (weights {base}), not on these weights ({mine}): load "
            f"{name} in the dtype that it was trained in."
        )
    return nest({name: jnp.asarray(x) for name, x in arrays.items()}), alpha


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def maps_of(params: Params) -> dict[str, Any]:
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
    maps, problems = maps_of(params), []
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
