"""Quantised checkpoints, dequantised tensor by tensor while they are read: FP8 blocks and AWQ.

FP8: `X.weight` in float8_e4m3, and `X.weight_scale_inv`, one factor for each block (128 x 128 as
published). AWQ ("gemm"): `X.qweight` [in, out / 8] holds eight numbers of 4 bits in each int32,
`X.qzeros` [in / group, out / 8] likewise, and `X.scales` [in / group, out].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxmem.typing import Float, Int

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring columns the i-th 4 bits of a packed int32 hold (AWQ)."""
DTYPES = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "I32": np.int32, "F16": np.float16, "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


class Stored(NamedTuple):
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    key: str  # the name in the file, before renaming
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] | None = None  # of a tensor that must be dequantised


def joined(stored: Sequence[Stored], config: Mapping[str, Any]) -> list[Stored]:
    """Return tensors with each quantised one as the weight that it stands for.

    Args:
      stored: what the files hold.
      config: of config.json.

    Raises:
      ValueError: if the checkpoint is quantised in a way that is not read.
    """
    settings = config.get("quantization_config")
    if not settings:
        return list(stored)
    method = str(settings.get("quant_method", "")).lower()
    if method == "fp8":
        return _fp8(stored, settings)
    if method == "awq" and settings.get("bits", 4) == 4 and settings.get("version") in _GEMM:
        return _awq(stored)
    what = " ".join(f"{key} {settings[key]}" for key in ("bits", "version") if key in settings)
    raise ValueError(
        f"this checkpoint is quantised by {method or 'a method that it does not name'!r}"
        f"{what and f' ({what})'}, which is not read: take the repository without quantisation, or "
        "one in FP8 or AWQ (4 bits, gemm)."
    )


_GEMM = (None, "gemm", "GEMM")


def _fp8(stored: Sequence[Stored], settings: Mapping[str, Any]) -> list[Stored]:
    by_name, out = {item.key: item for item in stored}, []
    block = tuple(settings.get("weight_block_size") or ())
    for item in stored:
        scale = by_name.get(f"{item.key}_scale_inv")
        if item.dtype == "F8_E4M3" and scale is not None:
            whole = lambda item=item, scale=scale: fp8(raw(item), raw(scale), block)
            out.append(item._replace(dtype="F32", read=whole))
        elif not item.key.endswith(("_scale_inv", ".input_scale", ".activation_scale")):
            out.append(item)
    return out


def fp8(
    weight: Float[np.ndarray, "F E"], scale: Float[np.ndarray, "f e"], block: Sequence[int] = ()
) -> Float[np.ndarray, "F E"]:
    """Return the float32 weight of float8 numbers and a factor for each of their blocks.

    Blocks at the ends may be cut. Without a block there is one factor for the whole, or one for
    every row.
    """
    wide, factor = weight.astype(np.float32), scale.astype(np.float32)
    for axis, size in enumerate(block if factor.ndim == wide.ndim else ()):
        factor = factor.repeat(size, axis).take(range(wide.shape[axis]), axis)
    return wide * factor


def _awq(stored: Sequence[Stored]) -> list[Stored]:
    by_name, out = {item.key: item for item in stored}, []
    for item in stored:
        name, _, kind = item.key.rpartition(".")
        if kind in ("qzeros", "scales") and f"{name}.qweight" in by_name:
            continue
        if kind != "qweight":
            out.append(item)
            continue
        parts = [by_name.get(f"{name}.{kind}") for kind in ("qzeros", "scales")]
        zeros, scales = parts
        if zeros is None or scales is None:
            raise ValueError(f"{item.file} holds {item.key} without {name}.qzeros and scales.")
        whole = lambda item=item, zeros=zeros, scales=scales: awq(*map(raw, (item, zeros, scales)))
        shape = (item.shape[1] * len(ORDER), item.shape[0])
        out.append(Stored(item.file, f"{name}.weight", shape, "F32", whole))
    return out


def awq(
    packed: Int[np.ndarray, "E f"], zeros: Int[np.ndarray, "e f"], scales: Float[np.ndarray, "e F"]
) -> Float[np.ndarray, "F E"]:
    """Return the float32 weight [out, in] of packed numbers, their zeros and scales."""
    group = packed.shape[0] // scales.shape[0]
    zero, scale = (x.repeat(group, 0) for x in (unpacked(zeros), scales.astype(np.float32)))
    return ((unpacked(packed) - zero) * scale).T


def unpacked(packed: Int[np.ndarray, "E f"]) -> Int[np.ndarray, "E F"]:
    """Return the eight numbers 0 to 15 that every int32 holds, in the order of their columns."""
    out = np.empty((*packed.shape, len(ORDER)), np.int32)
    for i, column in enumerate(ORDER):
        out[..., column] = (packed >> (4 * i)) & 15
    return out.reshape(packed.shape[0], -1)


@cache
def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file begin, and its header."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return 8 + size, json.loads(opened.read(size))


def raw(item: Stored) -> np.ndarray:
    """Return a tensor as it is stored, as a view of its file.

    The numpy side of safetensors does not know float8.
    """
    begin, header = _header(item.file)
    first, _ = header[item.key]["data_offsets"]
    return np.memmap(item.file, DTYPES[item.dtype], "r", begin + first, item.shape)
