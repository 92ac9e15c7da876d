"""The vision encoder of Qwen2.5-VL and Qwen2.5-Omni (arXiv 2502.13923, 2.1.1).

Most blocks attend within windows of `window` pixels, a few within the whole frame; pictures of one
video never see each other beyond the `temporal` pictures that share a patch. Checkpoints of
Qwen2.5-VL hold query, key and value as one matrix, those of Omni as three.

The released code sorts the patches into windows before the first block and back after the merger;
here they stay in place and the attention gathers them, which is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jaxmem.decoder.decoder import linear, rms_norm
from jaxmem.models.encoders.vision_parts import (
    Grid,
    Groups,
    all_places,
    as_grids,
    frame_groups,
    self_attention,
    through_blocks,
    turns,
    vision_rope,
    window_groups,
)
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params


@dataclass(frozen=True)
class Qwen25VisionConfig:
    """Static description of the encoder.

    Attributes:
      depth: blocks.
      width: of the encoder.
      heads: attention heads.
      mlp_width: inner width of the gated MLP.
      out: E, width of the decoder.
      patch: side of a patch in pixels.
      temporal: pictures per patch.
      merge: side of the cell of patches that becomes one token.
      window: side of an attention window in pixels.
      full: blocks that attend within the whole frame.
      channels: of a picture.
      theta: base of the rotary frequencies.
      norm_eps: of every RMS norm.
    """

    depth: int
    width: int
    heads: int
    mlp_width: int
    out: int
    patch: int = 14
    temporal: int = 2
    merge: int = 2
    window: int = 112
    full: tuple[int, ...] = (7, 15, 23, 31)
    channels: int = 3
    theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        if self.window % (self.patch * self.merge):
            raise ValueError(
                f"a window of {self.window} pixels is no multiple of a cell of "
                f"{self.patch * self.merge} pixels."
            )


def read_config(vision: dict) -> Qwen25VisionConfig:
    """Return the encoder that `vision_config` of a config.json describes.

    Raises:
      ValueError: if the activation is not the one implemented.
    """
    if vision.get("hidden_act", "silu") != "silu":
        raise ValueError(
            f"the vision encoder of Qwen2.5 uses silu, the config says {vision['hidden_act']!r}."
        )
    return Qwen25VisionConfig(
        depth=vision["depth"],
        width=vision["hidden_size"],
        heads=vision["num_heads"],
        mlp_width=vision["intermediate_size"],
        out=vision["out_hidden_size"],
        patch=vision["patch_size"],
        temporal=vision["temporal_patch_size"],
        merge=vision["spatial_merge_size"],
        window=vision["window_size"],
        full=tuple(vision["fullatt_block_indexes"]),
        channels=vision.get("in_channels", vision.get("in_chans", 3)),
        theta=(vision.get("rope_parameters") or {}).get("rope_theta", 10_000.0),
    )


def block(
    weights: Params,
    config: Qwen25VisionConfig,
    h: Float[Array, "N W"],
    turn: Float[Array, "N 1 D/2"],
    groups: Groups,
) -> Float[Array, "N W"]:
    """Return one block's output: attention in groups, then a gated MLP."""
    x = rms_norm(h, weights["norm1"], config.norm_eps)
    h = h + self_attention(weights, config.heads, x, turn, groups)
    x = rms_norm(h, weights["norm2"], config.norm_eps)
    inner = jax.nn.silu(linear(x, weights["gate"])) * linear(x, weights["up"])
    return h + linear(inner, weights["down"])


def merge(
    weights: Params, config: Qwen25VisionConfig, h: Float[Array, "N W"]
) -> Float[Array, "m E"]:
    """Return one token for each cell of patches, in raster order."""
    x = rms_norm(h, weights["norm"], config.norm_eps)
    x = x.reshape(-1, config.merge**2 * config.width)
    return linear(jax.nn.gelu(linear(x, weights["fc1"]), approximate=False), weights["fc2"])


def encode_vision(
    params: Params,
    config: Qwen25VisionConfig,
    patches: Float[Array, "N I"],
    grids: Sequence[Grid],
    *,
    taps: Sequence[int] = (),
) -> tuple[Float[Array, "m E"], list[Float[Array, "N W"]]]:
    """Return the tokens of pictures and videos.

    Args:
      params: {"patch", "blocks" (stacked), "merger"}.
      config: of the encoder.
      patches: of all pictures, see `vision_parts`.
      grids: (F, h, w) of each, static.
      taps: blocks whose outputs are wanted as well.

    Returns:
      The tokens, and the outputs of the blocks in `taps`.

    Raises:
      ValueError: if the grids do not fit the patches.
    """
    grids = as_grids(grids, config.merge, patches.shape[0])
    places = all_places(grids, config.merge)
    turn = turns(vision_rope(config.width // config.heads, config.theta), places)
    side = config.window // (config.patch * config.merge)
    groups = {
        True: frame_groups(grids),
        False: window_groups(grids, config.merge, side),
    }

    def step(weights: Params, h: Array, full: bool) -> Array:
        return block(weights, config, h, turn, groups[full])

    h = linear(patches.astype(params["patch"]["kernel"].dtype), params["patch"])
    kinds = [i in config.full for i in range(config.depth)]
    h, tapped = through_blocks(params["blocks"], h, step, kinds, taps)
    return merge(params["merger"], config, h), tapped


def vision_table(
    config: Qwen25VisionConfig, prefix: str = "visual.", *, fused: bool = True
) -> dict[str, Weight]:
    """Return the weight table of the encoder.

    Args:
      config: of the encoder.
      prefix: of its tensors, with the dot.
      fused: query, key and value are one matrix (Qwen2.5-VL), or three (Omni).
    """
    n, width, cell = config.depth, config.width, config.merge**2 * config.width
    at = f"{prefix}blocks.{{}}."
    window = (config.channels, config.temporal, config.patch, config.patch)
    table = {
        "patch.kernel": Weight(f"{prefix}patch_embed.proj.weight", (width, *window), "patch"),
        **norm("blocks.norm1", f"{at}norm1", width, layers=n),
        **norm("blocks.norm2", f"{at}norm2", width, layers=n),
    }
    if fused:
        table |= dense("blocks.qkv", f"{at}attn.qkv", width, 3 * width, layers=n)
    else:
        for name in ("q", "k", "v"):
            table |= dense(f"blocks.{name}", f"{at}attn.{name}", width, width, layers=n)
    table |= dense("blocks.proj", f"{at}attn.proj", width, width, layers=n)
    table |= dense("blocks.gate", f"{at}mlp.gate_proj", width, config.mlp_width, layers=n)
    table |= dense("blocks.up", f"{at}mlp.up_proj", width, config.mlp_width, layers=n)
    table |= dense("blocks.down", f"{at}mlp.down_proj", config.mlp_width, width, layers=n)
    table |= norm("merger.norm", f"{prefix}merger.ln_q", width)
    table |= dense("merger.fc1", f"{prefix}merger.mlp.0", cell, cell)
    return table | dense("merger.fc2", f"{prefix}merger.mlp.2", cell, config.out)
