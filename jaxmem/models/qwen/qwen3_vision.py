"""The vision encoder of Qwen3-VL: learned and rotary positions, and features for DeepStack.

Every block attends within a frame. The learned positions are those of a square of side x side
patches, stretched over the frame (corner on corner) by bilinear interpolation. Besides the tokens,
the outputs of some blocks are merged to features that the decoder adds after its first layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders.vision_parts import (
    Grid,
    Groups,
    all_places,
    as_grids,
    frame_groups,
    layer_norm,
    self_attention,
    through_blocks,
    turns,
    vision_rope,
)
from jaxmem.models.hf.config import check_keys
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params

KEYS = ("depth", "hidden_size", "num_heads", "intermediate_size", "out_hidden_size", "patch_size")
MORE = ("temporal_patch_size", "spatial_merge_size", "num_position_embeddings")


@dataclass(frozen=True)
class Qwen3VisionConfig:
    """Static description of the encoder.

    Attributes:
      depth: blocks.
      width: W, of the encoder.
      heads: attention heads.
      mlp_width: inner width of the MLP.
      out: E, width of the decoder.
      side: of the square of learned positions.
      deep: blocks whose outputs are merged for DeepStack.
      patch: side of a patch in pixels.
      temporal: pictures per patch.
      merge: side of the cell of patches that becomes one token.
      channels: of a picture.
      theta: base of the rotary frequencies.
      norm_eps: of every layer norm.
    """

    depth: int
    width: int
    heads: int
    mlp_width: int
    out: int
    side: int
    deep: tuple[int, ...]
    patch: int = 16
    temporal: int = 2
    merge: int = 2
    channels: int = 3
    theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        if list(self.deep) != sorted(set(self.deep)) or not set(self.deep) <= {*range(self.depth)}:
            raise ValueError(
                f"deepstack_visual_indexes {self.deep} must ascend and name blocks of "
                f"0..{self.depth - 1}."
            )


def read_config(vision: Mapping[str, Any]) -> Qwen3VisionConfig:
    """Return the encoder that `vision_config` of a config.json describes.

    Raises:
      ValueError: if a key is missing, or the encoder has parts that are not implemented.
    """
    check_keys(vision, (*KEYS, *MORE, "deepstack_visual_indexes"), "vision_config")
    if vision.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise ValueError(
            "the vision encoder of Qwen3-VL uses gelu_pytorch_tanh, vision_config says "
            f"{vision['hidden_act']!r}."
        )
    side = math.isqrt(vision["num_position_embeddings"])
    if side**2 != vision["num_position_embeddings"]:
        raise ValueError(
            f"num_position_embeddings is {vision['num_position_embeddings']}, which is no square."
        )
    return Qwen3VisionConfig(
        depth=vision["depth"],
        width=vision["hidden_size"],
        heads=vision["num_heads"],
        mlp_width=vision["intermediate_size"],
        out=vision["out_hidden_size"],
        side=side,
        deep=tuple(vision["deepstack_visual_indexes"]),
        patch=vision["patch_size"],
        temporal=vision["temporal_patch_size"],
        merge=vision["spatial_merge_size"],
        channels=vision.get("in_channels", 3),
        theta=(vision.get("rope_parameters") or {}).get("rope_theta", 10_000.0),
    )


class Corners(NamedTuple):
    """Bilinear interpolation: the four learned positions of every patch, and their weights."""

    index: np.ndarray  # int32 [4, N]
    weight: np.ndarray  # float32 [4, N]


def corners(config: Qwen3VisionConfig, grids: Sequence[Grid]) -> Corners:
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
    table: Float[Array, "S W"], config: Qwen3VisionConfig, grids: Sequence[Grid]
) -> Float[Array, "N W"]:
    """Return the interpolated positions of all patches."""
    at = corners(config, grids)
    weight = jnp.asarray(at.weight, table.dtype)[..., None]
    return jnp.sum(table[jnp.asarray(at.index)] * weight, axis=0)


def block(
    weights: Params,
    config: Qwen3VisionConfig,
    h: Float[Array, "N W"],
    turn: Float[Array, "N 1 D/2"],
    groups: Groups,
) -> Float[Array, "N W"]:
    """Return one block's output: attention within frames, then an MLP."""
    x = layer_norm(h, weights["norm1"], config.norm_eps)
    h = h + self_attention(weights, config.heads, x, turn, groups)
    x = layer_norm(h, weights["norm2"], config.norm_eps)
    return h + linear(jax.nn.gelu(linear(x, weights["fc1"]), approximate=True), weights["fc2"])


def merge(
    weights: Params, config: Qwen3VisionConfig, h: Float[Array, "N W"], *, deep: bool
) -> Float[Array, "m E"]:
    """Return one token for each cell of patches, in raster order.

    The cell is concatenated before the norm for DeepStack, after it for the decoder's input.
    """
    cell = config.merge**2 * config.width
    x = h.reshape(-1, cell) if deep else h
    x = layer_norm(x, weights["norm"], config.norm_eps).reshape(-1, cell)
    return linear(jax.nn.gelu(linear(x, weights["fc1"]), approximate=False), weights["fc2"])


class Encoded(NamedTuple):
    """What the encoder makes of pictures and videos."""

    tokens: Float[Array, "m E"]
    deep: Float[Array, "n m E"]  # for the decoder's first n layers
    tapped: list[Float[Array, "N W"]]  # outputs of the blocks that were asked for


def embed_patches(params: Params, patches: Float[Array, "N I"]) -> Float[Array, "N W"]:
    """Return the embedding of patches, before positions are added."""
    return linear(patches.astype(params["patch"]["kernel"].dtype), params["patch"])


def encode_vision(
    params: Params,
    config: Qwen3VisionConfig,
    patches: Float[Array, "N I"],
    grids: Sequence[Grid],
    *,
    taps: Sequence[int] = (),
) -> Encoded:
    """Return the tokens of pictures and videos, and their DeepStack features.

    Args:
      params: {"patch", "positions", "blocks" (stacked), "merger", "deep" (stacked mergers)}.
      config: of the encoder.
      patches: of all pictures, see `vision_parts`.
      grids: (F, h, w) of each, static.
      taps: blocks whose outputs are wanted as well.

    Raises:
      ValueError: if the grids do not fit the patches.
    """
    grids = as_grids(grids, config.merge, patches.shape[0])
    turn = turns(
        vision_rope(config.width // config.heads, config.theta), all_places(grids, config.merge)
    )
    groups = frame_groups(grids)

    def step(weights: Params, h: Array, _: Any) -> Array:
        return block(weights, config, h, turn, groups)

    h = embed_patches(params, patches)
    h = h + learned_positions(params["positions"], config, grids)
    stops = sorted({*config.deep, *taps})
    h, outputs = through_blocks(params["blocks"], h, step, (None,) * config.depth, stops)
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
    n, width, inner = config.depth, config.width, config.mlp_width
    cell, count = config.merge**2 * config.width, len(config.deep)
    window = (config.channels, config.temporal, config.patch, config.patch)
    at, deep = f"{prefix}blocks.{{}}.", f"{prefix}deepstack_merger_list.{{}}."
    table = {
        "patch.kernel": Weight(f"{prefix}patch_embed.proj.weight", (width, *window), "patch"),
        "patch.bias": Weight(f"{prefix}patch_embed.proj.bias", (width,)),
        "positions": Weight(f"{prefix}pos_embed.weight", (config.side**2, width)),
    }
    table |= norm("blocks.norm1", f"{at}norm1", width, bias=True, layers=n)
    table |= dense("blocks.qkv", f"{at}attn.qkv", width, 3 * width, layers=n)
    table |= dense("blocks.proj", f"{at}attn.proj", width, width, layers=n)
    table |= norm("blocks.norm2", f"{at}norm2", width, bias=True, layers=n)
    table |= dense("blocks.fc1", f"{at}mlp.linear_fc1", width, inner, layers=n)
    table |= dense("blocks.fc2", f"{at}mlp.linear_fc2", inner, width, layers=n)
    table |= norm("merger.norm", f"{prefix}merger.norm", width, bias=True)
    table |= dense("merger.fc1", f"{prefix}merger.linear_fc1", cell, cell)
    table |= dense("merger.fc2", f"{prefix}merger.linear_fc2", cell, config.out)
    if not count:
        return table
    table |= norm("deep.norm", f"{deep}norm", cell, bias=True, layers=count)
    table |= dense("deep.fc1", f"{deep}linear_fc1", cell, cell, layers=count)
    return table | dense("deep.fc2", f"{deep}linear_fc2", cell, config.out, layers=count)
