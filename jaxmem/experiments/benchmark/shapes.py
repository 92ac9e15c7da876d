"""Models as shapes: a checkpoint's config, or a published one by name, and a chunk of its stream.

Nothing is allocated: weights and inputs are `jax.ShapeDtypeStruct`s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem
from jaxmem.memory.base import Embeds
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.prompt import Plan, fill
from jaxmem.models.hf.weights import abstract
from jaxmem.models.llava import onevision as llava_onevision
from jaxmem.models.llava.onevision_stream import frame_of
from jaxmem.models.qwen import qwen2_5_omni, qwen2_5_omni_layout, qwen2_5_vl, qwen3_vl
from jaxmem.models.qwen.audio import token_count
from jaxmem.typing import Params, PyTree

FAMILIES: Mapping[str, ModuleType] = {
    "qwen2.5-vl": qwen2_5_vl,
    "qwen2.5-omni": qwen2_5_omni,
    "qwen3-vl": qwen3_vl,
    "llava-onevision": llava_onevision,
}
"""What stands before the colon of `family:size`."""
MEL_PER_TICK = 4  # log-mel frames of one token of sound, which lasts one tick
STAMP = 10  # tokens of `<36000.5 seconds>`: each digit is one


class Shapes(NamedTuple):
    """A model without its values."""

    name: str
    family: ModuleType
    config: Any
    params: Params  # {"decoder", "vision", ...} of shapes

    @property
    def audio_tokens(self) -> int:
        """Return the rows of sound in a second."""
        return self.config.layout.ticks_per_second if self.family is qwen2_5_omni else 0

    @property
    def timestamps(self) -> bool:
        """Return whether time stamps come between the frames."""
        return self.family is qwen3_vl


class Chunk(NamedTuple):
    """What a stream writes at once."""

    inputs: PyTree  # shapes of what the encoders take
    encode: Callable[[Params, PyTree], Embeds]
    rows: int  # T
    size: tuple[int, int]  # of a picture in pixels, after the family's rounding
    frame: tuple[int, int] | None  # rows and columns of its tokens


def published(family: str) -> dict[str, Any]:
    """Return the published configs of a family: "source", "common" and "sizes"."""
    name = FAMILIES[family].__name__.rpartition(".")[2]
    folder = Path(jaxmem.__file__).parent / "assets" / "shapes"
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Return every `family:size` that is known."""
    return [f"{family}:{size}" for family in FAMILIES for size in published(family)["sizes"]]


def _joined(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        key: _joined(base[key], value) if isinstance(value, Mapping) and key in base else value
        for key, value in more.items()
    }
    return {**base, **inner}


def open_shapes(model: str, dtype: Any) -> Shapes:
    """Return a model's shapes.

    Args:
      model: a checkpoint directory (only its config.json is read), or `family:size`.
      dtype: of the weights.

    Raises:
      ValueError: if there is no such directory or name, or the family is not supported.
    """
    family, _, size = model.lower().partition(":")
    if Path(model).is_dir():
        raw, name = read_json(model), Path(model).resolve().name
    elif family in FAMILIES and size in published(family)["sizes"]:
        known = published(family)
        raw, name = _joined(known["common"], known["sizes"][size]), model.lower()
    else:
        raise ValueError(
            f"--model {model!r} is neither a checkpoint directory nor one of {', '.join(names())}."
        )
    kind = raw.get("model_type")
    found = next((f for f in FAMILIES.values() if kind in f.MODEL_TYPES), None)
    if found is None:
        known = ", ".join(t for f in FAMILIES.values() for t in f.MODEL_TYPES)
        raise ValueError(f"config.json has model_type {kind!r}, supported are {known}.")
    config = found.read_config(raw)
    return Shapes(name, found, config, abstract(found.weight_table(config), dtype))


def chunk_of(
    shapes: Shapes, *, pictures: int, seconds: Fraction, size: tuple[int, int], dtype: Any
) -> Chunk:
    """Return one chunk of a video stream.

    Args:
      shapes: of the model.
      pictures: that the chunk brings.
      seconds: that the chunk lasts.
      size: (height, width) of a picture in pixels; rounded to the family's cells of patches, and
        without effect where the family has one size.
      dtype: of what the encoders take.

    Raises:
      ValueError: if pictures or seconds do not fit the family's layout.
    """
    if shapes.family is llava_onevision:
        return _llava(shapes.config, pictures, dtype)
    config = shapes.config
    vision = config.vision
    if pictures % vision.temporal:
        raise ValueError(
            f"{pictures} pictures in a chunk: {shapes.name} takes them in groups of "
            f"{vision.temporal}, so fps times chunk seconds must be a multiple of it."
        )
    cell = vision.patch * vision.merge
    height, width = (max(1, round(side / cell)) * cell for side in size)
    grid = (pictures // vision.temporal, height // vision.patch, width // vision.patch)
    numbers = vision.channels * vision.temporal * vision.patch**2
    patches = jax.ShapeDtypeStruct((grid[0] * grid[1] * grid[2], numbers), dtype)
    make = {qwen2_5_vl: _qwen2_5, qwen3_vl: _qwen3, qwen2_5_omni: _omni}[shapes.family]
    plan, inputs, encode = make(config, grid, patches, seconds)
    return Chunk(inputs, encode, len(plan.ids), (height, width), (height // cell, width // cell))


def _llava(config: Any, pictures: int, dtype: Any) -> Chunk:
    side, plan = config.vision.side, llava_onevision.video_chunk(config, pictures)
    pixels = jax.ShapeDtypeStruct((pictures, side, side, config.vision.channels), dtype)

    def encode(params: Params, pixels: Any) -> Embeds:
        return fill(params["decoder"], plan, llava_onevision.encode(params, config, pixels))

    return Chunk(pixels, encode, len(plan.ids), (side, side), frame_of(config.frame_tokens))


Made = tuple[Plan, PyTree, Callable[[Params, PyTree], Embeds]]


def _qwen2_5(config: Any, grid: Any, patches: Any, seconds: Fraction) -> Made:
    plan = qwen2_5_vl.video_chunk(config, 0, grid, seconds / grid[0])

    def encode(params: Params, patches: Any) -> Embeds:
        return fill(params["decoder"], plan, qwen2_5_vl.encode(params, config, patches, [grid]))

    return plan, patches, encode


def _qwen3(config: Any, grid: Any, patches: Any, seconds: Fraction) -> Made:
    del seconds  # time is in the words before a frame
    cells = grid[1] * grid[2] // config.vision.merge**2
    size = grid[0] * (STAMP + 2 + cells)
    plan = qwen3_vl.video_chunk(config, [[0] * STAMP] * grid[0], grid, size)

    def encode(params: Params, patches: Any) -> Embeds:
        found = qwen3_vl.encode(params, config, patches, [grid])
        return fill(params["decoder"], plan, found.tokens, found.deep)

    return plan, patches, encode


def _omni(config: Any, grid: Any, patches: Any, seconds: Fraction) -> Made:
    layout = config.layout
    own = Fraction(layout.chunk_ticks, layout.ticks_per_second)
    if seconds != own:
        raise ValueError(
            f"a chunk of {float(seconds):g} s: Qwen2.5-Omni's layout has chunks of {float(own):g} "
            "s, give --chunk-seconds so."
        )
    mel = jax.ShapeDtypeStruct(
        (MEL_PER_TICK * layout.chunk_ticks, config.sound.mel_bins), jnp.float32
    )
    sounds = token_count(config.sound, mel.shape[0])
    frames, rows, columns = grid
    gap = own / frames
    plan = qwen2_5_omni_layout.video_chunk(layout, 0, rows, columns, gap, sounds)
    assert np.sum(plan.ids == layout.video) * config.vision.merge**2 == patches.shape[0]

    def encode(params: Params, inputs: Any) -> Embeds:
        found = qwen2_5_omni.encode(params, config, inputs[0], [grid], [inputs[1]])
        return fill(params["decoder"], plan, found)

    return plan, (patches, mel), encode
