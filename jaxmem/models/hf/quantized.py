"""Quantised checkpoints: FP8 in blocks and AWQ are turned into numbers while they are read.

A quantised matrix is several stored tensors; `gathered` makes one `Stored` of them, with the name
and the shape that it has in the checkpoint it was made of. It is read like any other: one at a
time, whatever files its parts lie in.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from safetensors import safe_open

from jaxmem.models.hf.keys import refusal
from jaxmem.typing import Float, Int

RAW = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu}
"""Dtypes that the package safetensors does not give out as numpy arrays."""
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which four bits of a 32-bit number hold its columns 0 to 7 (AWQ's layout "gemm")."""
KNOWN = "use the checkpoint it was made from, or an edition in FP8 (blocks) or AWQ (4 bits, gemm)"


class Source(Protocol):
    """What a tensor is computed from while it is read."""

    def read(self) -> np.ndarray:
        """Return the tensor."""
        ...


class Stored(NamedTuple):
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    key: str  # the name in the file, before renaming
    shape: tuple[int, ...]
    dtype: str
    source: Source | None = None  # where it is made of other tensors


@dataclass(frozen=True)
class Fp8:
    """A matrix of 8-bit floats, and a factor for each block of rows and columns."""

    weight: Stored
    scale: Stored
    block: tuple[int, int]

    def read(self) -> Float[np.ndarray, "out in"]:
        """Return the matrix, float32."""
        found, scale = (read(x).astype(np.float32) for x in (self.weight, self.scale))
        if scale.size == 1:  # one for all
            return found * scale.reshape(())
        for axis, size in enumerate(self.block):  # the last block may be cut
            scale = np.repeat(scale, size, axis)[
                (slice(None),) * axis + (slice(found.shape[axis]),)
            ]
        return np.multiply(found, scale, out=found)


@dataclass(frozen=True)
class Awq:
    """A matrix of 4-bit numbers, eight in each of 32 bits, with zeros and factors by groups."""

    weight: Stored
    zeros: Stored | None  # None: 8, the middle
    scale: Stored

    def read(self) -> Float[np.ndarray, "out in"]:
        """Return the matrix, float32."""
        scale = read(self.scale).astype(np.float32)
        each = self.weight.shape[0] // len(scale)
        found = unpacked(read(self.weight)).reshape(len(scale), each, -1)
        found -= 8 if self.zeros is None else unpacked(read(self.zeros))[:, None]
        return (found * scale[:, None]).reshape(-1, scale.shape[1]).T


def unpacked(packed: Int[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows 8*columns"]:
    """Return the eight 4-bit numbers of every 32 bits, in the order of the columns, float32."""
    shifts = 4 * np.array(AWQ_ORDER, np.uint32)
    found = (packed.view(np.uint32)[..., None] >> shifts) & np.uint32(15)
    return found.reshape(len(packed), -1).astype(np.float32)


def read(item: Stored) -> np.ndarray:
    """Return one stored tensor."""
    if item.source is not None:
        return item.source.read()
    if item.dtype not in RAW:
        with safe_open(item.file, "numpy") as file:
            return file.get_tensor(item.key)
    with item.file.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        first, _ = json.loads(file.read(head))[item.key]["data_offsets"]
        file.seek(8 + head + first)
        found = np.frombuffer(file.read(math.prod(item.shape)), RAW[item.dtype])
    return found.reshape(item.shape)


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how the weights of a config.json are quantised; {}: they are not.

    Raises:
      ValueError: if it is a way that is not read; it says what to use instead.
    """
    parts = (config, config.get("thinker_config"), config.get("text_config"))
    keys = ("quantization_config", "compression_config")
    every = (part.get(key) for part in parts if isinstance(part, Mapping) for key in keys)
    found = next((x for x in every if isinstance(x, Mapping) and x), {})
    if not found:
        return {}
    method = str(found.get("quant_method", "unknown")).lower()
    form = str(found.get("version") or found.get("format") or "gemm").lower()
    bits = found.get("bits", found.get("w_bit", 4))
    if method == "fp8" or (method == "awq" and form == "gemm" and bits == 4):
        return found
    detail = f", version {form}, {bits} bits" if method == "awq" else ""
    raise ValueError(
        f"the weights are quantised by {method}{detail} (quantization_config of config.json), "
        f"which is not read: {KNOWN}."
    )


def gathered(stored: Sequence[Stored], config: Mapping[str, Any]) -> list[Stored]:
    """Return the tensors of a checkpoint with those that make a quantised matrix as one.

    Args:
      stored: what its files hold.
      config: its config.json.

    Raises:
      ValueError: if a part is missing or does not fit, or see `settings_of`.
    """
    settings = settings_of(config)
    if not settings:
        return list(stored)
    by_key = {item.key: item for item in stored}
    make = _fp8 if settings["quant_method"].lower() == "fp8" else _awq
    found = [make(item, by_key, settings) for item in stored]
    return [item for item in found if item is not None]


def _fp8(item: Stored, by_key: Mapping[str, Stored], settings: Mapping[str, Any]) -> Stored | None:
    """Return an item as it counts, None: as a part of another."""
    parts = ("weight_scale_inv", "weight_scale", "input_scale", "activation_scale")
    if item.key.endswith(parts):
        return None
    if item.dtype != "F8_E4M3":
        return item
    scale = by_key.get(f"{item.key}_scale_inv")
    rows, columns = _block(settings)
    shape = () if scale is None else scale.shape
    fits = (-(-item.shape[0] // rows), -(-item.shape[-1] // columns))
    if scale is None or (math.prod(shape) != 1 and shape != fits):
        raise ValueError(
            f"{item.key} is in 8-bit floats, but its factors {item.key}_scale_inv "
            + ("are missing" if scale is None else f"have shape {shape}, expected {fits}")
            + f" (blocks of {rows} x {columns}): download the checkpoint again."
        )
    return item._replace(dtype="F32", source=Fp8(item, scale, (rows, columns)))


def _block(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows and columns of a block."""
    key = "weight_block_size"
    found = settings.get(key) or [128, 128]
    if not isinstance(found, list) or [type(n) for n in found] != [int, int] or min(found) < 1:
        where = "the quantization_config of config.json"
        raise refusal(key, found, "two whole numbers from 1 on", where)
    return found[0], found[1]


def _awq(item: Stored, by_key: Mapping[str, Stored], settings: Mapping[str, Any]) -> Stored | None:
    """Return an item as it counts, None: as a part of another."""
    name, _, part = item.key.rpartition(".")
    if f"{name}.qweight" not in by_key or part not in ("qweight", "qzeros", "scales"):
        return item
    if part != "qweight":
        return None
    zeros, scale = by_key.get(f"{name}.qzeros"), by_key.get(f"{name}.scales")
    inputs, outputs = item.shape[0], 8 * item.shape[1]
    groups = scale.shape[0] if scale is not None and scale.shape else inputs + 1
    fits = inputs % groups == 0 and (zeros is not None or not settings.get("zero_point", True))
    expected = {scale: (groups, outputs), zeros: (groups, outputs // 8)}
    if scale is None or not fits or any(x and x.shape != y for x, y in expected.items()):
        raise ValueError(
            f"{item.key} is in 4 bits, but {name}.scales or {name}.qzeros are missing or do not "
            f"fit its {inputs} inputs and {outputs} outputs: download the checkpoint again."
        )
    source = Awq(item, zeros, scale)
    return Stored(item.file, f"{name}.weight", (outputs, inputs), "F32", source)
