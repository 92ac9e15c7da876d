"""The block of SigLIP, Whisper, Qwen2-VL, Qwen3-VL: layer norm, attention, layer norm, GELU MLP.

Rows of all pictures or clips lie one after the other; who sees whom is a static `Groups`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxmem.models.encoders.vision_parts import (
    Gelu,
    Groups,
    gelu_mlp,
    layer_norm,
    self_attention,
    through_blocks,
)
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params


@dataclass(frozen=True)
class Prenorm:
    """Static description of a stack of blocks."""

    depth: int  # blocks
    width: int  # W, of the rows
    heads: int  # attention heads
    mlp_width: int  # inner width of the MLP
    gelu: Gelu  # kind of the MLP's activation
    norm_eps: float  # of every layer norm

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(
                f"an encoder of width {self.width} cannot be cut into {self.heads} heads: the "
                "width must be a multiple."
            )


def through(
    weights: Params,
    config: Prenorm,
    h: Float[Array, "N W"],
    groups: Groups,
    *,
    turn: Float[Array, "N 1 D/2"] | None = None,
    taps: Sequence[int] = (),
) -> tuple[Float[Array, "N W"], list[Float[Array, "N W"]]]:
    """Pass rows through the stack `weights` [depth, ...], rotated by `turn` where it is given.

    The outputs of the blocks in `taps` are returned beside that of the last.
    """

    def block(mine: Params, h: Array, _: None) -> Array:
        x = layer_norm(h, mine["norm1"], config.norm_eps)
        h = h + self_attention(mine, config.heads, x, turn, groups)
        return h + gelu_mlp(mine, layer_norm(h, mine["norm2"], config.norm_eps), config.gelu)

    return through_blocks(weights, h, block, (None,) * config.depth, taps)


def table(
    config: Prenorm, path: str, names: Mapping[str, str], *, key_bias: bool = True
) -> dict[str, Weight]:
    """Return the weight table of a stack.

    Args:
      path: in the tree.
      names: stored name of each part (norm1, q, k, v or qkv, proj, norm2, fc1, fc2), with `{}`.
      key_bias: whether the map of keys has a bias.
    """
    n, width, inner = config.depth, config.width, config.mlp_width
    inputs, outputs = {"fc2": inner}, {"fc1": inner, "qkv": 3 * width}
    found = {}
    for part, name in names.items():
        at = f"{path}.{part}"
        if part.startswith("norm"):
            found |= norm(at, name, width, bias=True, layers=n)
            continue
        bias = key_bias or part != "k"
        fan_in, fan_out = inputs.get(part, width), outputs.get(part, width)
        found |= dense(at, name, fan_in, fan_out, bias=bias, layers=n)
    return found
