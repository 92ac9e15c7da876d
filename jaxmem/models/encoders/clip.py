"""The CLIP vision encoder (arXiv 2103.00020): a class token before the patches.

Its pooled output (a final norm of the class token, and a projection) is not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxmem.kernels.dense import linear
from jaxmem.models.encoders import prenorm
from jaxmem.models.encoders.prenorm import Prenorm
from jaxmem.models.encoders.vision_parts import frame_groups, layer_norm, patchify
from jaxmem.models.hf.keys import (
    ENCODER,
    check_family,
    check_value,
    number,
    picture_sizes,
    section,
    sizes,
)
from jaxmem.models.hf.weights import Weight, norm
from jaxmem.typing import Array, Float, Params

MODEL_TYPES = ("clip_vision_model",)
RENAMES = (("vision_model.", ""),)
IGNORE = ("post_layernorm.*", "visual_projection.*", "text_*", "logit_scale")
"""The pooled output, and the other tower of a whole CLIP checkpoint."""
DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""Of the base model; config.json leaves out what equals them."""


@dataclass(frozen=True)
class ClipConfig:
    """Static description of the encoder."""

    stack: Prenorm  # the encoder's blocks
    side: int  # of a picture in pixels
    patch: int  # side of a patch in pixels
    channels: int = 3  # of a picture

    @property
    def grid(self) -> int:
        """Return the patches along a side."""
        return self.side // self.patch


def read_config(vision: Mapping[str, Any]) -> ClipConfig:
    """Return the encoder of a config.json or its `vision_config`; ValueError if not implemented."""
    if vision.get("model_type") == "clip":
        vision = {"model_type": MODEL_TYPES[0], **section(vision, "vision_config")}
    check_family(vision, MODEL_TYPES, "the vision encoder")
    vision = {**DEFAULTS, **vision}
    check_value("hidden_act of the vision encoder", vision["hidden_act"], "quick_gelu")
    where = "the config of the vision encoder"
    eps = number(vision, "layer_norm_eps", where)
    stack = Prenorm(**sizes(vision, ENCODER, where), gelu="quick", norm_eps=eps)
    return ClipConfig(stack, **picture_sizes(vision, where))


def encode(
    params: Params, config: ClipConfig, pixels: Float[Array, "n Y X C"], *, taps: Sequence[int] = ()
) -> tuple[Float[Array, "n N+1 W"], list[Float[Array, "n N+1 W"]]]:
    """Return the last block's output of pictures: the class token, then patches in raster order.

    Args:
      params: {"class", "patch", "positions", "norm", "blocks" (stacked)}.
      pixels: normalised pictures of the encoder's size, channel last.
      taps: blocks whose outputs are wanted as well.

    Raises:
      ValueError: if pictures have another size.
    """
    wanted = (config.side, config.side, config.channels)
    if pixels.shape[1:] != wanted:
        raise ValueError(f"pictures must be [n, {wanted}], got {pixels.shape}: resize them.")
    n, count, width = pixels.shape[0], config.grid**2 + 1, config.stack.width
    whole = pixels[:, : config.grid * config.patch, : config.grid * config.patch]
    patches = patchify(whole, patch=config.patch, temporal=1, merge=1)
    x = linear(patches.astype(params["patch"]["kernel"].dtype), params["patch"])
    first = jnp.broadcast_to(params["class"].astype(x.dtype), (n, 1, width))
    x = jnp.concatenate([first, x.reshape(n, -1, width)], axis=1)
    x = x + params["positions"].astype(x.dtype)[None]
    x = layer_norm(x, params["norm"], config.stack.norm_eps)
    groups = frame_groups([(n, 1, count)])
    out, tapped = prenorm.through(
        params["blocks"], config.stack, x.reshape(-1, width), groups, taps=taps
    )
    return out.reshape(x.shape), [tap.reshape(x.shape) for tap in tapped]


def weight_table(config: ClipConfig, prefix: str = "") -> dict[str, Weight]:
    """Return the weight table of the encoder; its tensors begin with `prefix`."""
    width, patch, at = config.stack.width, config.patch, f"{prefix}encoder.layers.{{}}."
    names = {name: f"{at}self_attn.{name}_proj" for name in "qkv"}
    names |= {"proj": f"{at}self_attn.out_proj", "fc1": f"{at}mlp.fc1", "fc2": f"{at}mlp.fc2"}
    names |= {"norm1": f"{at}layer_norm1", "norm2": f"{at}layer_norm2"}
    inputs = f"{prefix}embeddings"
    table = {
        "class": Weight(f"{inputs}.class_embedding", (width,)),
        "patch.kernel": Weight(
            f"{inputs}.patch_embedding.weight", (width, config.channels, patch, patch), "patch"
        ),
        "positions": Weight(f"{inputs}.position_embedding.weight", (config.grid**2 + 1, width)),
    }
    table |= norm("norm", f"{prefix}pre_layrnorm", width, bias=True)
    return table | prenorm.table(config.stack, "blocks", names)
