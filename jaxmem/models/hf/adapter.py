"""LoRA adapters in PEFT's layout, merged into a checkpoint's tensors while these are read.

An adapter's directory holds adapter_config.json and adapter_model.safetensors: for a matrix W of
the base two small ones, `base_model.model.<module>.lora_A.weight` [r, in] and `.lora_B.weight`
[out, r], and whole copies of the modules in `modules_to_save`. `merged` replaces the stored tensors
of the base by W + s B A, s = alpha / r (`use_rslora`: alpha / sqrt(r)), which are computed one at a
time in float32 as they are read. Module names may have any prefix that the family's renames know.
What PEFT computes otherwise (DoRA, embeddings, biases, starts that change the base) is refused.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxmem.models.hf.checkpoint import (
    FLOATS,
    ROWS,
    Renames,
    headers,
    is_checkpoint,
    listed,
    rename,
)
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.keys import flag
from jaxmem.models.hf.quantized import Stored, read
from jaxmem.typing import Float

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "non_lora_trainables.bin")  # the first counts without WEIGHTS
INSIDE, HEAD = "base_model.model.", "lm_head.weight"
USUAL = 8  # PEFT's rank and alpha
ENDING = r"(.*\.)?({})$"  # of a module's name, as PEFT matches it
PART = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
OTHER_PARTS = {
    "lora_magnitude_vector": "DoRA", "lora_embedding_": "LoRA of embeddings",
    ".lora_B.bias": "lora_bias", ".lora_B.default.bias": "lora_bias",
}  # fmt: skip
"""Parts of names of tensors that are not read, and what they belong to."""
OTHER_SETTINGS = (
    "use_dora", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "monteclora_config",
    "kasa_config",
)  # fmt: skip
CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` under which PEFT changes the base when it makes the adapter."""
MERGE = "merge it with PEFT (merge_and_unload, save_pretrained) and give that directory"


@dataclass(frozen=True)
class Merged:
    """A tensor of the base with an adapter's product added."""

    base: Stored
    down: Stored  # A
    up: Stored  # B
    scale: float
    swapped: bool = False  # the base holds the matrix as [in, out]

    def read(self) -> Float[np.ndarray, "out *rest"]:
        """Return the tensor, float32."""
        found = read(self.base).astype(np.float32)
        down, up = (read(x).astype(np.float32) for x in (self.down, self.up))
        down, up = down.reshape(len(down), -1), self.scale * up.reshape(len(up), -1)
        if self.swapped:
            down, up = up.T, down.T
        flat = found.reshape(len(found), -1)
        for row in range(0, len(flat), ROWS):
            flat[row : row + ROWS] += up[row : row + ROWS] @ down
        return flat.reshape(found.shape)


@dataclass(frozen=True)
class Copy:
    """A tensor under the name of another."""

    of: Stored

    def read(self) -> np.ndarray:
        """Return the tensor as stored."""
        return read(self.of)


def is_adapter(directory: Path, *, abstract: bool = False) -> bool:
    """Return whether a directory is an adapter's: no whole checkpoint, or config if `abstract`."""
    whole = (directory / "config.json").is_file() and (abstract or is_checkpoint(directory))
    return (directory / CONFIG).is_file() and not whole


def base_of(directory: Path, where: str | Path, given: str | Path | None = None) -> Path:
    """Return the local folder of an adapter's base.

    Args:
      directory: the adapter's.
      where: what the user calls it.
      given: an adapter that was given beside it.

    Raises:
      ValueError: if there is no such folder, or it is another adapter's; it says what to give.
    """
    named = read_json(directory, CONFIG).get("base_model_name_or_path")
    base = str(named or "BASE")
    if given is not None:
        raise ValueError(
            f"{where} is an adapter, and so is {given}; one can be merged into its base ({base})."
        )
    if not named or not Path(base).is_dir():
        called = f" {base}, which is no local folder" if named else ""
        raise ValueError(
            f"{where} is a LoRA adapter and lacks its base{called}: give both, as "
            f"jm.load({base!r}, adapter={str(where)!r}) or --model {base} --adapter {where}."
        )
    if is_adapter(Path(base)):
        raise ValueError(f"{base}, the base of {where}, is an adapter itself: {MERGE}.")
    return Path(base)


def read_adapter(directory: Path) -> dict[str, Any]:
    """Return an adapter's settings.

    Raises:
      ValueError: if it is none, or of a kind that is not merged.
    """
    if not (directory / CONFIG).is_file():
        raise ValueError(
            f"{directory} is no adapter (no {CONFIG}): give a directory that PEFT's "
            "save_pretrained wrote."
        )
    config = read_json(directory, CONFIG)
    if problem := _beyond(config):
        _refuse(directory, problem)
    for name in ("use_rslora", "fan_in_fan_out", "ensure_weight_tying"):
        flag(config, name, False, CONFIG)
    for name in ("r", "lora_alpha"):
        _check_number(directory, name, config.get(name, USUAL))
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name, {})
        if not isinstance(patterns, dict):
            raise ValueError(f"{directory / CONFIG}: {name} is {patterns!r}, expected an object.")
        for pattern, value in patterns.items():
            _check_number(directory, f"{name}[{pattern!r}]", value)
            try:
                re.compile(ENDING.format(pattern))
            except re.error as error:
                raise ValueError(
                    f"{directory / CONFIG}: {pattern!r} in {name} is no regular expression "
                    f"({error})."
                ) from None
    return config


def _beyond(config: Mapping[str, Any]) -> str | None:
    """Return what of an adapter's settings is not read, in words."""
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    start = str(config.get("init_lora_weights", True)).lower()
    if str(kind).upper() != "LORA":
        return f"peft_type {kind!r}"
    if bias != "none":
        return f"bias {bias!r}"
    if start.startswith(CHANGED):
        return f"init_lora_weights {start!r}, which changes the base"
    return next((name for name in OTHER_SETTINGS if config.get(name)), None)


def _refuse(directory: Path, what: str) -> NoReturn:
    """Refuse what is not plain LoRA."""
    raise ValueError(f"the adapter {directory} has {what}; only plain LoRA is read: {MERGE}.")


def _check_number(directory: Path, name: str, value: Any) -> None:
    """Refuse what is no positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{directory / CONFIG}: {name} is {value!r}, expected a positive number.")


def merged(
    stored: Sequence[Stored], directory: Path, renames: Renames, tied: str | None = None
) -> list[Stored]:
    """Return the tensors of a checkpoint with an adapter in them.

    Args:
      stored: those of the base.
      directory: the adapter's.
      renames: the family's, see `checkpoint`; they count for the names of both.
      tied: name of the embedding, where it is the output matrix too. An adapter may bring another
        one; an adapter that replaces the embedding alone leaves the output matrix as it was,
        unless it says `ensure_weight_tying`.

    Raises:
      ValueError: naming up to ten parts of the adapter that the base does not have or that do not
        fit, or see `read_adapter`.
    """
    config = read_adapter(directory)
    pairs, copies, problems = _parts(directory, renames)
    names = [rename(item.key, renames) for item in stored]
    known = dict(zip(names, stored, strict=True))
    head, changed = rename(HEAD, renames), dict[str, Stored]()
    if tied in known and head not in known:
        known[head] = known[tied]._replace(key=HEAD, source=Copy(known[tied]))
    for name, item in copies.items():
        if name not in known:
            problems.append(f"  {item.key}: the base has no such tensor")
        elif (shape := known[name].shape) != item.shape:
            problems.append(f"  {item.key}: has shape {item.shape}, the base's has {shape}")
        else:
            changed[name] = known[name]._replace(dtype=item.dtype, source=Copy(item))
    for module, pair in pairs.items():  # onto a copy where there is one
        name = rename(f"{module}.weight", renames)
        total = _sum(config, module, changed.get(name) or known.get(name), *pair)
        if isinstance(total, str):
            problems.append(f"  {module}: {total}")
        else:
            changed[name] = known[name]._replace(dtype="F32", source=total)
    if problems:
        trained = config.get("base_model_name_or_path") or "a model that it does not name"
        raise ValueError(
            f"the adapter {directory} does not fit this base (it was trained on {trained}). "
            + listed(problems, "part(s) of it do not fit")
        )
    if tied in copies and not config.get("ensure_weight_tying"):
        changed.setdefault(head, known[head])
    elif tied in copies and not isinstance(
        changed.get(head, known[head]).source, Merged
    ):  # a copy of the embedding
        changed.pop(head, None)
        known.pop(head, None)
    found = [
        changed.get(name, item) for name, item in zip(names, stored, strict=True) if name in known
    ]
    return found + [item for name, item in changed.items() if name not in names]


def _parts(
    directory: Path, renames: Renames
) -> tuple[dict[str, tuple[Stored, Stored]], dict[str, Stored], list[str]]:
    """Return pairs by module, whole copies by their name in the table, and what is amiss."""
    whole = (directory / WEIGHTS).is_file()
    for name in PICKLES[whole:]:
        if (directory / name).is_file():
            raise ValueError(
                f"{directory} has pickled weights ({name}), and unpickling runs whatever code the "
                f"file holds: {MERGE}."
            )
    if not whole:
        raise ValueError(f"no {WEIGHTS} in {directory}: download the adapter again.")
    sides: dict[str, dict[str, Stored]] = {"A": {}, "B": {}, "": {}}
    problems = []
    for item in headers(directory / WEIGHTS):
        for part, what in OTHER_PARTS.items():
            if part in item.key:
                _refuse(directory, f"{what} ({item.key})")
        key = item.key.removeprefix(INSIDE)
        if ".original_module." in key:  # of the base, beside its copy
            continue
        lora = PART.fullmatch(key)
        side = sides[lora[2] if lora else ""]
        name = lora[1] if lora else rename(WRAPPED.sub("", key), renames)
        if name in side:
            problems.append(f"  {name}: stored twice, as {side[name].key} and as {item.key}")
        if item.dtype not in FLOATS:
            problems.append(f"  {item.key}: has dtype {item.dtype}, known are {', '.join(FLOATS)}")
        side[name] = item
    down, up = sides["A"], sides["B"]
    for name in down.keys() ^ up.keys():
        problems.append(f"  {name}: lora_{'B' if name in down else 'A'} is missing")
    if not any(sides.values()):
        raise ValueError(f"{directory / WEIGHTS} is empty: download the adapter again.")
    return {name: (down[name], up[name]) for name in down if name in up}, sides[""], problems


def _sum(
    config: Mapping[str, Any], module: str, base: Stored | None, down: Stored, up: Stored
) -> Merged | str:
    """Return a tensor with the adapter in it, or what is amiss."""
    if base is None:
        return "the base has no such module"
    rank = _by_name(config.get("rank_pattern", {}), module, config.get("r", USUAL))
    alpha = _by_name(config.get("alpha_pattern", {}), module, config.get("lora_alpha", USUAL))
    shapes = f"lora_A {down.shape} and lora_B {up.shape}"
    if min(len(down.shape), len(up.shape)) < 2 or not down.shape[0] == up.shape[1] == rank:
        return f"{shapes} do not have the rank {rank} of {CONFIG}"
    product = (up.shape[0], *down.shape[1:])
    # PEFT itself drops fan_in_fan_out where the module is a Linear, whose weight is [out, in].
    swapped = product != base.shape and bool(config.get("fan_in_fan_out"))
    if math.prod(up.shape[2:]) != 1 or base.shape != (product[::-1] if swapped else product):
        return f"{shapes} do not fit the shape {base.shape} in the base"
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Merged(base, down, up, scale, swapped)


def _by_name(patterns: Mapping[str, float], module: str, usual: float) -> float:
    """Return the value of the first pattern that a module's name ends with, as PEFT does."""
    hits = (x for pattern, x in patterns.items() if re.match(ENDING.format(pattern), module))
    return next(hits, usual)
