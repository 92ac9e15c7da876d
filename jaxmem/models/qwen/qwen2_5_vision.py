"""The vision encoder of Qwen2.5-VL and Qwen2.5-Omni (arXiv 2502.13923, 2.1.1).

Most blocks attend within windows of `window` pixels, a few within the whole frame; pictures of one
video never see each other beyond the `temporal` pictures that share a patch. Checkpoints of
Qwen2.5-VL hold query, key and value as one matrix, those of Omni as three.

The released code sorts the patches into windows before the first block and back after the merger;
here they stay in place and the attention gathers them, which is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxmem.decoder.decoder import linear, rms_norm
from jaxmem.models.encoders.vision_parts import (
    Grids,
    as_grids,
    frame_groups,
    gelu_mlp,
    self_attention,
    through_blocks,
    window_groups,
)
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.models.qwen.vision import VisionConfig, embed_patches
from jaxmem.typing import Array, Float, Params

DEFAULTS = {
    "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
"""Of a vision_config that does not say."""


@dataclass(frozen=True, kw_only=True)
class Qwen25VisionConfig(VisionConfig):
    """Static description of the encoder."""

    window: int  # side of an attention window in pixels
    full: tuple[int, ...]  # blocks that attend within the whole frame

    def __post_init__(self):
        if self.window % (self.patch * self.merge):
            raise ValueError(
                f"a window of {self.window} pixels is no multiple of a cell of "
                f"{self.patch * self.merge} pixels."
            )


def read_config(vision: Mapping[str, Any]) -> Qwen25VisionConfig:
    """Return the encoder that `vision_config` of a config.json describes; see `read`."""
    vision, blocks = {**DEFAULTS, **vision}, {"full": "fullatt_block_indexes"}
    return Qwen25VisionConfig.read(vision, "silu", blocks, window="window_size")


def encode_vision(
    params: Params,
    config: Qwen25VisionConfig,
    patches: Float[Array, "N I"],
    grids: Grids,
    *,
    taps: Sequence[int] = (),
) -> tuple[Float[Array, "m E"], list[Float[Array, "N W"]]]:
    """Return the tokens of pictures and videos, and the outputs of the blocks in `taps`.

    Args:
      params: {"patch", "blocks" (stacked), "merger"}.
      patches: of all pictures, see `vision_parts`.
      grids: (F, h, w) of each, static.
      taps: blocks whose outputs are wanted as well.

    Raises:
      ValueError: if the grids do not fit the patches.
    """
    grids = as_grids(grids, config.merge, patches.shape[0])
    turn, eps = config.turn(grids), config.norm_eps
    side = config.window // (config.patch * config.merge)
    groups = {True: frame_groups(grids), False: window_groups(grids, config.merge, side)}

    def block(mine: Params, h: Array, full: bool) -> Array:
        x = rms_norm(h, mine["norm1"], eps)
        h = h + self_attention(mine, config.heads, x, turn, groups[full])
        x = rms_norm(h, mine["norm2"], eps)
        inner = jax.nn.silu(linear(x, mine["gate"])) * linear(x, mine["up"])
        return h + linear(inner, mine["down"])

    h, kinds = embed_patches(params, patches), [i in config.full for i in range(config.depth)]
    h, tapped = through_blocks(params["blocks"], h, block, kinds, taps)
    x = rms_norm(h, params["merger"]["norm"], eps).reshape(-1, config.cell_width)
    return gelu_mlp(params["merger"], x), tapped


def vision_table(
    config: Qwen25VisionConfig, prefix: str = "visual.", *, fused: bool = True
) -> dict[str, Weight]:
    """Return the weight table of the encoder; its tensors begin with `prefix`.

    Query, key and value are one matrix, `fused` (Qwen2.5-VL), or three (Omni).
    """
    n, width, inner = config.depth, config.width, config.mlp_width
    at = f"{prefix}blocks.{{}}."
    attention = {"qkv": 3 * width} if fused else dict.fromkeys("qkv", width)
    table = {"patch.kernel": config.patch_weight(prefix)}
    for name in ("norm1", "norm2"):
        table |= norm(f"blocks.{name}", f"{at}{name}", width, layers=n)
    for name, fan_out in attention.items():
        table |= dense(f"blocks.{name}", f"{at}attn.{name}", width, fan_out, layers=n)
    table |= dense("blocks.proj", f"{at}attn.proj", width, width, layers=n)
    for name in ("gate", "up"):
        table |= dense(f"blocks.{name}", f"{at}mlp.{name}_proj", width, inner, layers=n)
    table |= dense("blocks.down", f"{at}mlp.down_proj", inner, width, layers=n)
    table |= norm("merger.norm", f"{prefix}merger.ln_q", width)
    return table | config.merger_table("merger", f"{prefix}merger.mlp.", ("0", "2"))
