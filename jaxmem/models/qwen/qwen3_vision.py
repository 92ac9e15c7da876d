"""The vision encoder of Qwen3-VL: learned and rotary positions, and features for DeepStack.

Every block attends within a frame. The learned positions are those of a square of side x side
patches, stretched over the frame (corner on corner) by bilinear interpolation. Besides the tokens,
the outputs of some blocks are merged to features that the decoder adds after its first layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.models.encoders import prenorm
from jaxmem.models.encoders.prenorm import Prenorm
from jaxmem.models.encoders.vision_parts import (
    Grids,
    all_places,
    as_grids,
    frame_groups,
    gelu_mlp,
    layer_norm,
)
from jaxmem.models.hf.weights import Weight, norm
from jaxmem.models.qwen.vision import VisionConfig, embed_patches
from jaxmem.typing import Array, Float, Params

DEFAULTS = {
    "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24], "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
"""Of a vision_config that does not say."""


@dataclass(frozen=True, kw_only=True)
class Qwen3VisionConfig(VisionConfig):
    """Static description of the encoder."""

    places: int  # learned positions, those of a square
    deep: tuple[int, ...]  # blocks whose outputs are merged for DeepStack

    @property
    def stack(self) -> Prenorm:
        """Return the blocks."""
        sizes = (self.depth, self.width, self.heads, self.mlp_width)
        return Prenorm(*sizes, gelu="tanh", norm_eps=self.norm_eps)

    @property
    def side(self) -> int:
        """Return the side of the square of learned positions."""
        return math.isqrt(self.places)

    def __post_init__(self):
        if self.side**2 != self.places:
            raise ValueError(f"num_position_embeddings is {self.places}, which is no square.")
        if list(self.deep) != sorted(set(self.deep)) or not set(self.deep) <= {*range(self.depth)}:
            raise ValueError(
                f"deepstack_visual_indexes {self.deep} must ascend and name blocks of "
                f"0..{self.depth - 1}."
            )


def read_config(vision: Mapping[str, Any]) -> Qwen3VisionConfig:
    """Return the encoder that `vision_config` of a config.json describes; see `read`."""
    vision, blocks = {**DEFAULTS, **vision}, {"deep": "deepstack_visual_indexes"}
    places = "num_position_embeddings"
    return Qwen3VisionConfig.read(vision, "gelu_pytorch_tanh", blocks, places=places)


class Corners(NamedTuple):
    """Bilinear interpolation: the four learned positions of every patch, and their weights."""

    index: np.ndarray  # int32 [4, N]
    weight: np.ndarray  # float32 [4, N]


def corners(config: Qwen3VisionConfig, grids: Grids) -> Corners:
    """Return where the patches of frames lie in the square of learned positions.

    Patch row i of h lies at i (side - 1)/(h - 1), a single row at 0; columns likewise.
    """
    index, weight = [], []
    for grid in grids:
        row, column = all_places([grid], config.merge).T
        lines = [
            np.linspace(0, config.side - 1, count, dtype=np.float32)[place]
            for count, place in ((grid[1], row), (grid[2], column))
        ]
        low = [line.astype(np.int32) for line in lines]
        high = [np.minimum(at + 1, config.side - 1) for at in low]
        part = [line - at for line, at in zip(lines, low, strict=True)]
        choices = [((lo, 1 - p), (hi, p)) for lo, hi, p in zip(low, high, part, strict=True)]
        index.append(np.stack([r * config.side + c for r, _ in choices[0] for c, _ in choices[1]]))
        weight.append(np.stack([a * b for _, a in choices[0] for _, b in choices[1]]))
    return Corners(np.concatenate(index, 1), np.concatenate(weight, 1).astype(np.float32))


def learned_positions(
    table: Float[Array, "S W"], config: Qwen3VisionConfig, grids: Grids
) -> Float[Array, "N W"]:
    """Return the interpolated positions of all patches."""
    at = corners(config, grids)
    weight = jnp.asarray(at.weight, table.dtype)[..., None]
    return jnp.sum(table[jnp.asarray(at.index)] * weight, axis=0)


def merge(
    weights: Params, config: Qwen3VisionConfig, h: Float[Array, "N W"], *, deep: bool
) -> Float[Array, "m E"]:
    """Return one token for each cell of patches, in raster order.

    The cell is concatenated before the norm for DeepStack, after it for the decoder's input.
    """
    x = h.reshape(-1, config.cell_width) if deep else h
    x = layer_norm(x, weights["norm"], config.norm_eps).reshape(-1, config.cell_width)
    return gelu_mlp(weights, x)


class Encoded(NamedTuple):
    """What the encoder makes of pictures and videos."""

    tokens: Float[Array, "m E"]
    deep: Float[Array, "n m E"]  # for the decoder's first n layers
    tapped: list[Float[Array, "N W"]]  # outputs of the blocks that were asked for


def encode_vision(
    params: Params,
    config: Qwen3VisionConfig,
    patches: Float[Array, "N I"],
    grids: Grids,
    *,
    taps: Sequence[int] = (),
) -> Encoded:
    """Return the tokens of pictures and videos, and their DeepStack features.

    Args:
      params: {"patch", "positions", "blocks" (stacked), "merger", "deep" (stacked mergers)}.
      patches: of all pictures, see `vision_parts`.
      grids: (F, h, w) of each, static.
      taps: blocks whose outputs are wanted as well.

    Raises:
      ValueError: if the grids do not fit the patches.
    """
    grids = as_grids(grids, config.merge, patches.shape[0])
    h = embed_patches(params, patches) + learned_positions(params["positions"], config, grids)
    stops, groups = sorted({*config.deep, *taps}), frame_groups(grids)
    h, outputs = prenorm.through(
        params["blocks"], config.stack, h, groups, turn=config.turn(grids), taps=stops
    )
    after = dict(zip(stops, outputs, strict=True))
    deep = [
        merge(jax.tree.map(lambda x, i=i: x[i], params["deep"]), config, after[at], deep=True)
        for i, at in enumerate(config.deep)
    ]
    tokens = merge(params["merger"], config, h, deep=False)
    stacked = jnp.stack(deep) if deep else jnp.zeros((0, *tokens.shape), tokens.dtype)
    return Encoded(tokens, stacked, [after[i] for i in taps])


def vision_table(config: Qwen3VisionConfig, prefix: str = "model.visual.") -> dict[str, Weight]:
    """Return the weight table of the encoder; its tensors begin with `prefix`."""
    width, count = config.width, len(config.deep)
    at, deep = f"{prefix}blocks.{{}}.", f"{prefix}deepstack_merger_list.{{}}."
    names = {"norm1": f"{at}norm1", "qkv": f"{at}attn.qkv", "proj": f"{at}attn.proj"}
    names |= {"norm2": f"{at}norm2", "fc1": f"{at}mlp.linear_fc1", "fc2": f"{at}mlp.linear_fc2"}
    table = {
        "patch.kernel": config.patch_weight(prefix),
        "patch.bias": Weight(f"{prefix}patch_embed.proj.bias", (width,)),
        "positions": Weight(f"{prefix}pos_embed.weight", (config.places, width)),
    }
    table |= prenorm.table(config.stack, "blocks", names)
    merger, maps = f"{prefix}merger.", ("linear_fc1", "linear_fc2")
    table |= norm("merger.norm", f"{merger}norm", width, bias=True)
    table |= config.merger_table("merger", merger, maps)
    if not count:
        return table
    table |= norm("deep.norm", f"{deep}norm", config.cell_width, bias=True, layers=count)
    return table | config.merger_table("deep", deep, maps, layers=count)
