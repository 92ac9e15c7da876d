"""The encoder block that SigLIP and Whisper share: layer norm, attention, layer norm, GELU MLP.

Rows of all pictures or clips lie one after the other; who sees whom is a static `Groups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders.vision_parts import Groups, layer_norm, self_attention, through_blocks
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params


@dataclass(frozen=True)
class Prenorm:
    """Static description of a stack of blocks.

    Attributes:
      depth: blocks.
      width: of the rows.
      heads: attention heads.
      mlp_width: inner width of the MLP.
      tanh_gelu: GELU by its tanh approximation instead of the error function.
      norm_eps: of every layer norm.
    """

    depth: int
    width: int
    heads: int
    mlp_width: int
    tanh_gelu: bool
    norm_eps: float

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(
                f"an encoder of width {self.width} cannot be cut into {self.heads} heads: the "
                "width must be a multiple."
            )


def mlp(weights: Params, config: Prenorm, x: Float[Array, "*N W"]) -> Float[Array, "*N W"]:
    """Return the feed-forward part of a block, without norm and residual."""
    inner = jax.nn.gelu(linear(x, weights["fc1"]), approximate=config.tanh_gelu)
    return linear(inner, weights["fc2"])


def block(
    weights: Params, config: Prenorm, h: Float[Array, "N W"], groups: Groups
) -> Float[Array, "N W"]:
    """Return one block's output."""
    x = layer_norm(h, weights["norm1"], config.norm_eps)
    h = h + self_attention(weights, config.heads, x, None, groups)
    return h + mlp(weights, config, layer_norm(h, weights["norm2"], config.norm_eps))


def through(
    weights: Params,
    config: Prenorm,
    h: Float[Array, "N W"],
    groups: Groups,
    *,
    taps: Sequence[int] = (),
) -> tuple[Float[Array, "N W"], list[Float[Array, "N W"]]]:
    """Pass rows through the stack `weights` [depth, ...].

    Returns:
      The output of the last block, and of those in `taps`.
    """
    step = lambda mine, h, _: block(mine, config, h, groups)
    return through_blocks(weights, h, step, (None,) * config.depth, taps)


def table(
    config: Prenorm, path: str, names: Mapping[str, str], *, key_bias: bool = True
) -> dict[str, Weight]:
    """Return the weight table of a stack.

    Args:
      config: of the stack.
      path: of the stack in the tree.
      names: stored name of each part (norm1, q, k, v, proj, norm2, fc1, fc2), with `{}`.
      key_bias: whether the map of keys has a bias.
    """
    n, width = config.depth, config.width
    found = {}
    for part in ("norm1", "norm2"):
        found |= norm(f"{path}.{part}", names[part], width, bias=True, layers=n)
    for part in ("q", "k", "v", "proj"):
        bias = key_bias or part != "k"
        found |= dense(f"{path}.{part}", names[part], width, width, bias=bias, layers=n)
    found |= dense(f"{path}.fc1", names["fc1"], width, config.mlp_width, layers=n)
    return found | dense(f"{path}.fc2", names["fc2"], config.mlp_width, width, layers=n)
