"""LoRA adapters that were trained here, as a directory of PEFT: the counterpart of `adapter`.

Which matrix of the tree is which tensor of the checkpoint says the family's weight table, and
`Family.stored` undoes what `Family.finalise` did to it. Tensors have the names of transformers 5's
modules, as PEFT itself writes them, or those of the base's files where transformers has no such
model; `target_modules` is a pattern of these and of the older names of the same matrices.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmem.data.world.atomic import complete
from jaxmem.decoder.checks import arrays_of
from jaxmem.models.base import Model
from jaxmem.models.hf.adapter import CONFIG, INSIDE, WEIGHTS
from jaxmem.models.hf.checkpoint import Renames, listed, rename, stored_tensors
from jaxmem.models.hf.family import Family
from jaxmem.models.hf.tensors import write_tensors
from jaxmem.models.hf.weights import Weight
from jaxmem.models.load import find
from jaxmem.typing import Float, Params

SETTINGS = {
    "peft_type": "LORA", "task_type": None, "bias": "none", "lora_dropout": 0.0,
    "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "use_rslora": False, "modules_to_save": None,
}  # fmt: skip


def write(
    directory: str | Path, adapters: Params, model: Model, *, base: str | Path, alpha: float
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors, and return their directory.

    PEFT loads it onto `base`, and so does `jm.load(base, adapter=directory)`.

    Args:
      directory: is made if need be; an adapter that is there is replaced.
      adapters: of `model.params`, from `jaxmem.training.lora`.
      model: of `base`; an abstract one will do.
      base: what `jm.load` took.
      alpha: see `jaxmem.training.lora.merge`.

    Raises:
      ValueError: if the model has no such checkpoint, or what was adapted is no matrix of it.
    """
    family = getattr(model.encode, "of", None)
    if not isinstance(family, Family):
        raise ValueError(
            f"{model.name} has no checkpoint that PEFT could load: write its adapters with "
            "jaxmem.training.lora.save."
        )
    table, renames, _, modules = family.names
    keys = {rename(item.key, renames): item.key for item in stored_tensors(find(base))}
    called = lambda name: keys[name] if modules is None else rename(name, modules)
    ranks = {x.shape[-1] for name, x in arrays_of(adapters).items() if name.endswith(".a")}
    if len(ranks) != 1:
        raise ValueError(f"adapters have one rank, these have {sorted(ranks)}: make them anew.")
    (rank,) = ranks
    tensors, targets, own, problems = {}, [], {}, []
    for path, a, b in _pairs(family.stored(adapters)):
        weight = table.get(f"{path}.kernel")
        if weight is None or weight.turn not in ("linear", "patch") or weight.rows is not None:
            problems.append(f"  {path}: is no matrix of the checkpoint by itself")
            continue
        if lost := [name for name in weight.names if name not in keys]:
            problems.append(f"  {path}: {base} has no {lost[0]}")
            continue
        targets.append(pattern := _pattern(weight, renames))
        if a.shape[-1] != rank:
            own[pattern] = a.shape[-1]
        for name, one in zip(weight.names, _by_layer(weight, a, b), strict=True):
            module = INSIDE + called(name).removesuffix(".weight")
            tensors |= {
                f"{module}.lora_{side}.weight": x for side, x in zip("AB", one, strict=True)
            }
    if problems:
        raise ValueError(f"PEFT cannot hold these adapters: {listed(problems, 'of them')}")
    config = SETTINGS | {
        "base_model_name_or_path": str(base), "r": rank, "lora_alpha": alpha,
        "target_modules": "|".join(targets), "rank_pattern": own,
        "alpha_pattern": {pattern: alpha * mine / rank for pattern, mine in own.items()},
    }  # fmt: skip
    folder = Path(directory)
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    with complete(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _pairs(adapters: Params) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the path of every map with its two matrices."""
    found = arrays_of(adapters)
    for name, x in found.items():
        if name.endswith(".a"):
            path = name.removesuffix(".a")
            yield path, np.asarray(x, np.float32), np.asarray(found[f"{path}.b"], np.float32)


def _by_layer(weight: Weight, a: Any, b: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return A [r, in, ...] and B [out, r, ...] of every stored tensor."""
    pairs = zip(a, b, strict=True) if weight.layers is not None else [(a, b)]
    out, *rest = weight.shape
    ones = (1,) * (len(rest) - 1)
    return [(_whole(a.T.reshape(-1, *rest)), _whole(b.T.reshape(out, -1, *ones))) for a, b in pairs]


def _whole(x: np.ndarray) -> Float[np.ndarray, "..."]:
    return np.ascontiguousarray(x)  # safetensors writes memory as it lies


def _pattern(weight: Weight, renames: Renames) -> str:
    """Return a regular expression of a weight's modules, under any name that `renames` know."""
    names = [weight.name]
    for name in names:  # which grow as they are read
        for old, new in renames:
            other = old + name.removeprefix(new)
            known = name.startswith(new) and rename(other, renames) == weight.name
            if known and other not in names:
                names.append(other)
    escaped = (re.escape(name.removesuffix(".weight")) for name in names)
    return "|".join(name.replace(r"\{\}", r"\d+") for name in escaped)
