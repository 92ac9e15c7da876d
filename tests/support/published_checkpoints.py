"""Checkpoints with the config, names and shards of published ones, and random bfloat16 weights."""

import json
from pathlib import Path

import numpy as np
from checkpoints import write_files_of

from jaxmem.models.hf.chat import Uncoded
from jaxmem.models.hf.family import ANY_SIZE, Files
from jaxmem.models.hf.published import published_config
from jaxmem.models.load import family_of

SHARD = 4 * 2**30
"""Bytes of a shard at most."""
RELEASED = {"llava_onevision": {"vision_tower.": "vision_tower.vision_model."}}
"""Prefixes of the weight table, as the release has them."""


def write_published(name: str, target: Path, seed: int = 0) -> Path:
    """Write the checkpoint of a `family:size` and return its directory; one tensor is in memory."""
    config = published_config(name)
    kind = config["model_type"]
    write_files_of(config, kind, target, cells=(4, 16_384))
    draw, shards = np.random.default_rng(seed), _shards(config, name)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(target / file, shard, draw)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def _shards(config: dict, name: str) -> list[dict[str, tuple]]:
    """Return the shapes of every shard's tensors by their released names."""
    table = family_of(config, name).read(Files(config, ANY_SIZE, Uncoded())).names.table
    shapes = {key: weight.shape for weight in table.values() for key in weight.names}
    shards, room = [{}], SHARD
    for key, shape in shapes.items():
        for mine, released in RELEASED.get(config["model_type"], {}).items():
            key = released + key.removeprefix(mine) if key.startswith(mine) else key
        room -= _bytes(shape)
        if room < 0 and shards[-1]:
            shards.append({})
            room = SHARD - _bytes(shape)
        shards[-1][key] = shape
    return shards


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def _write_shard(path: Path, shapes: dict[str, tuple], draw: np.random.Generator) -> None:
    header, at = {}, 0
    for key, shape in shapes.items():
        where = [at, at := at + _bytes(shape)]
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": where}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, shape in shapes.items():
            # The upper half of a float32 is the bfloat16 below it.
            file.write((_values(key, shape, draw).view(np.uint32) >> 16).astype(np.uint16).data)


def _values(key: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Return norms near one, small biases, and matrices that keep the size of their input."""
    noise = draw.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return noise / np.float32(np.prod(shape[1:]) ** 0.5)
    small, kind = np.float32(0.1) * noise, key.split(".")[-2:]
    return np.float32(1) + small if "norm" in kind[0] and kind[-1] == "weight" else small
