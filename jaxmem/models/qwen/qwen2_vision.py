"""The vision encoder of Qwen2-VL (arXiv 2409.12191): layer norms, quick GELU, whole frames.

The `hidden_size` of its config is the decoder's width, its own is `embed_dim`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxmem.models.encoders import prenorm
from jaxmem.models.encoders.prenorm import Prenorm
from jaxmem.models.encoders.vision_parts import Grids, as_grids, frame_groups, gelu_mlp, layer_norm
from jaxmem.models.hf.keys import number, sizes
from jaxmem.models.hf.weights import Weight, norm
from jaxmem.models.qwen.vision import VisionConfig, embed_patches
from jaxmem.typing import Array, Float, Params

DEFAULTS = {
    "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
"""Of a vision_config that does not say."""


@dataclass(frozen=True, kw_only=True)
class Qwen2VisionConfig(VisionConfig):
    """Static description of the encoder."""

    @property
    def stack(self) -> Prenorm:
        """Return the blocks."""
        sizes = (self.depth, self.width, self.heads, self.mlp_width)
        return Prenorm(*sizes, gelu="quick", norm_eps=self.norm_eps)


def read_config(vision: Mapping[str, Any]) -> Qwen2VisionConfig:
    """Return the encoder that `vision_config` of a config.json describes; see `read`."""
    vision, where = {**DEFAULTS, **vision}, "vision_config"
    found = sizes(vision, {"width": "embed_dim", "out": "hidden_size"}, where)
    inner = int(found["width"] * number(vision, "mlp_ratio", where, above=0))
    named = {"hidden_size": found["width"], "out_hidden_size": found["out"]}
    return Qwen2VisionConfig.read({**vision, **named, "intermediate_size": inner}, "quick_gelu")


def encode_vision(
    params: Params, config: Qwen2VisionConfig, patches: Float[Array, "N I"], grids: Grids
) -> Float[Array, "m E"]:
    """Return the tokens of pictures and videos.

    Args:
      params: {"patch", "blocks" (stacked), "merger"}.
      patches: of all pictures, see `vision_parts`.
      grids: (F, h, w) of each, static.

    Raises:
      ValueError: if the grids do not fit the patches.
    """
    grids = as_grids(grids, config.merge, patches.shape[0])
    h, groups = embed_patches(params, patches), frame_groups(grids)
    h, _ = prenorm.through(params["blocks"], config.stack, h, groups, turn=config.turn(grids))
    x = layer_norm(h, params["merger"]["norm"], config.norm_eps)
    return gelu_mlp(params["merger"], x.reshape(-1, config.cell_width))


def vision_table(config: Qwen2VisionConfig, prefix: str = "visual.") -> dict[str, Weight]:
    """Return the weight table of the encoder; its tensors begin with `prefix`."""
    at = f"{prefix}blocks.{{}}."
    names = {"norm1": f"{at}norm1", "qkv": f"{at}attn.qkv", "proj": f"{at}attn.proj"}
    names |= {"norm2": f"{at}norm2", "fc1": f"{at}mlp.fc1", "fc2": f"{at}mlp.fc2"}
    table = {"patch.kernel": config.patch_weight(prefix)}
    table |= prenorm.table(config.stack, "blocks", names)
    table |= norm("merger.norm", f"{prefix}merger.ln_q", config.width, bias=True)
    return table | config.merger_table("merger", f"{prefix}merger.mlp.", ("0", "2"))
