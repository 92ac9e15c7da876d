"""The SigLIP vision encoder (arXiv 2303.15343), with and without its attention-pooling head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders import prenorm
from jaxmem.models.encoders.prenorm import Prenorm
from jaxmem.models.encoders.resize import resize_grid
from jaxmem.models.encoders.vision_parts import (
    attend_all,
    frame_groups,
    gelu_mlp,
    layer_norm,
    patchify,
)
from jaxmem.models.hf.keys import ENCODER, check_family, flag, number, picture_sizes, section, sizes
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params

MODEL_TYPES = ("siglip_vision_model",)
RENAMES = (("vision_model.", ""),)
"""Older checkpoints have one level more."""
IGNORE = ("text_model.*", "logit_scale", "logit_bias")
"""The other tower of a whole SigLIP checkpoint."""
DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True,
}  # fmt: skip
"""Of the base model; config.json leaves out what equals them."""


@dataclass(frozen=True)
class SiglipConfig:
    """Static description of the encoder."""

    stack: Prenorm  # the encoder's blocks
    side: int  # of the pictures it was trained on, in pixels
    patch: int  # side of a patch in pixels
    channels: int = 3  # of a picture
    head: bool = True  # whether it has the attention-pooling head

    @property
    def grid(self) -> int:
        """Return the patches along a side of a picture it was trained on."""
        return self.side // self.patch


def read_config(vision: Mapping[str, Any]) -> SiglipConfig:
    """Return the encoder of a config.json or its `vision_config`; ValueError if not implemented."""
    if vision.get("model_type") == "siglip":
        vision = section(vision, "vision_config")
    check_family(vision, MODEL_TYPES, "the vision encoder")
    vision = {**DEFAULTS, **vision}
    if vision["hidden_act"] != "gelu_pytorch_tanh":
        raise ValueError(
            f"the SigLIP encoder uses gelu_pytorch_tanh, config.json says {vision['hidden_act']!r}."
        )
    where = "the config of the vision encoder"
    eps = number(vision, "layer_norm_eps", where)
    head = flag(vision, "vision_use_head", True, where)
    stack = Prenorm(**sizes(vision, ENCODER, where), gelu="tanh", norm_eps=eps)
    return SiglipConfig(stack, **picture_sizes(vision, where), head=head)


def embed_patches(
    params: Params, config: SiglipConfig, pixels: Float[Array, "n Y X C"]
) -> Float[Array, "n r c W"]:
    """Return the patches of pictures with their positions; rows and columns that do not fill a
    patch are cut off. Positions of pictures of another size are interpolated (bicubic).

    Raises:
      ValueError: if a picture is smaller than a patch or has other channels.
    """
    n, height, width, channels = pixels.shape
    rows, columns = height // config.patch, width // config.patch
    if channels != config.channels or not rows * columns:
        raise ValueError(
            f"pictures must be [n, height, width, {config.channels}] of at least {config.patch} "
            f"pixels a side, got {pixels.shape}."
        )
    pixels = pixels[:, : rows * config.patch, : columns * config.patch]
    patches = patchify(pixels, patch=config.patch, temporal=1, merge=1)
    kernel = params["patch"]["kernel"]
    x = linear(patches.astype(kernel.dtype), params["patch"])
    table = params["positions"].reshape(1, config.grid, config.grid, -1)
    return x.reshape(n, rows, columns, -1) + resize_grid(table, (rows, columns), "cubic")


def encode(
    params: Params,
    config: SiglipConfig,
    pixels: Float[Array, "n Y X C"],
    *,
    taps: Sequence[int] = (),
) -> tuple[Float[Array, "n N W"], list[Float[Array, "n N W"]]]:
    """Return the features of pictures BEFORE the final norm (`final`), raster order.

    Args:
      params: {"patch", "positions", "blocks" (stacked), "norm", and with a head "head"}.
      pixels: normalised pictures, channel last.
      taps: blocks whose outputs are wanted as well.

    Raises:
      ValueError: see `embed_patches`.
    """
    x = embed_patches(params, config, pixels)
    n, rows, columns, width = x.shape
    groups = frame_groups([(n, rows, columns)])
    out, tapped = prenorm.through(
        params["blocks"], config.stack, x.reshape(-1, width), groups, taps=taps
    )
    shape = (n, rows * columns, width)
    return out.reshape(shape), [tap.reshape(shape) for tap in tapped]


def final(params: Params, config: SiglipConfig, h: Float[Array, "n N W"]) -> Array:
    """Return the encoder's output ("last hidden state") from `encode`'s features."""
    return layer_norm(h, params["norm"], config.stack.norm_eps)


def pool(params: Params, config: SiglipConfig, x: Float[Array, "n N W"]) -> Float[Array, "n W"]:
    """Return one vector per picture: a learned query attends to `final`'s output, then an MLP.

    Raises:
      ValueError: if the encoder has no such head.
    """
    if not config.head:
        raise ValueError("this SigLIP encoder has no pooling head (vision_use_head is false).")
    head, heads = params["head"], config.stack.heads
    split = lambda y: y.reshape(*y.shape[:-1], heads, -1)
    q = split(linear(head["probe"][None], head["q"]))
    k, v = (split(linear(x, head[name])) for name in "kv")
    read = jax.vmap(attend_all, (None, 0, 0))(q, k, v)
    h = linear(read.reshape(x.shape[0], -1), head["proj"])
    rows = layer_norm(h, head["norm"], config.stack.norm_eps)
    return h + gelu_mlp(head, rows, config.stack.gelu)


def weight_table(config: SiglipConfig, prefix: str = "") -> dict[str, Weight]:
    """Return the weight table of the encoder; its tensors begin with `prefix`."""
    width, patch = config.stack.width, config.patch
    at = f"{prefix}encoder.layers.{{}}."
    names = {name: f"{at}self_attn.{name}_proj" for name in "qkv"}
    names |= {"proj": f"{at}self_attn.out_proj", "fc1": f"{at}mlp.fc1", "fc2": f"{at}mlp.fc2"}
    names |= {"norm1": f"{at}layer_norm1", "norm2": f"{at}layer_norm2"}
    kernel, bias = (f"{prefix}embeddings.patch_embedding.{x}" for x in ("weight", "bias"))
    places = f"{prefix}embeddings.position_embedding.weight"
    table = {
        "patch.kernel": Weight(kernel, (width, config.channels, patch, patch), "patch"),
        "patch.bias": Weight(bias, (width,)),
        "positions": Weight(places, (config.grid**2, width)),
    }
    table |= prenorm.table(config.stack, "blocks", names)
    table |= norm("norm", f"{prefix}post_layernorm", width, bias=True)
    return table | _head_table(config, f"{prefix}head.") if config.head else table


def _head_table(config: SiglipConfig, prefix: str) -> dict[str, Weight]:
    """Return the head's table; its query, key and value maps are stored as one."""
    width, inner = config.stack.width, config.stack.mlp_width
    table = {"head.probe": Weight(f"{prefix}probe", (1, 1, width), "flat")}
    for i, part in enumerate("qkv"):
        rows, at = (i * width, (i + 1) * width), f"{prefix}attention.in_proj_"
        table[f"head.{part}.kernel"] = Weight(
            f"{at}weight", (3 * width, width), "linear", rows=rows
        )
        table[f"head.{part}.bias"] = Weight(f"{at}bias", (3 * width,), rows=rows)
    table |= dense("head.proj", f"{prefix}attention.out_proj", width, width)
    table |= norm("head.norm", f"{prefix}layernorm", width, bias=True)
    table |= dense("head.fc1", f"{prefix}mlp.fc1", width, inner)
    return table | dense("head.fc2", f"{prefix}mlp.fc2", inner, width)
