"""The encoder of Whisper (arXiv 2212.04356)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxmem.models.encoders import prenorm
from jaxmem.models.encoders.prenorm import Prenorm
from jaxmem.models.encoders.vision_parts import frame_groups, layer_norm
from jaxmem.models.hf.keys import check_family, check_value, sizes
from jaxmem.models.hf.weights import Weight, norm
from jaxmem.typing import Array, Float, Params

MODEL_TYPES = ("whisper",)
RENAMES = (("model.", ""),)
"""WhisperForConditionalGeneration has one level more than WhisperModel."""
IGNORE = ("decoder.*", "proj_out.weight")
"""What a whole Whisper checkpoint has besides its encoder."""


KEYS = {
    "depth": "encoder_layers", "width": "d_model", "heads": "encoder_attention_heads",
    "mlp_width": "encoder_ffn_dim",
}  # fmt: skip


@dataclass(frozen=True)
class WhisperConfig:
    """Static description of the encoder."""

    stack: Prenorm  # the encoder's blocks
    mel_bins: int  # of the log-mel spectrogram
    rows: int  # length of the table of positions; the spectrogram has twice as many frames


def read_config(config: Mapping[str, Any]) -> WhisperConfig:
    """Return the encoder that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    found = sizes(config, {"mel_bins": "num_mel_bins", "rows": "max_source_positions"})
    return WhisperConfig(read_stack(config), **found)


def read_stack(config: Mapping[str, Any], where: str = "config.json") -> Prenorm:
    """Return the blocks that Whisper's keys describe; ValueError if one is missing or not known."""
    check_value("activation_function", config.get("activation_function", "gelu"), "gelu")
    # The epsilon is torch's default; config.json does not hold it.
    return Prenorm(**sizes(config, KEYS, where), gelu="exact", norm_eps=1e-5)


def stem(
    params: Params, config: WhisperConfig, logmel: Float[Array, "n J M"]
) -> Float[Array, "n t W"]:
    """Return rows from frames: two convolutions of width 3, the second halves their number.

    Raises:
      ValueError: if the frames have other bins or exceed the table of positions.
    """
    _, frames, bins = logmel.shape
    if bins != config.mel_bins or frames > 2 * config.rows:
        raise ValueError(
            f"log-mel frames must be [n, at most {2 * config.rows}, {config.mel_bins}], got "
            f"{logmel.shape}: cut the sound into clips."
        )
    x = logmel.astype(params["conv1"]["kernel"].dtype)
    for name, stride in (("conv1", 1), ("conv2", 2)):
        x = jax.nn.gelu(_conv(x, params[name], stride), approximate=False)
    return x + params["positions"][None, : x.shape[1]]


def _conv(x: Float[Array, "n J I"], weight: Params, stride: int) -> Float[Array, "n t W"]:
    y = jax.lax.conv_general_dilated(
        x, weight["kernel"], (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    return y + weight["bias"][None, None]


def encode(
    params: Params,
    config: WhisperConfig,
    logmel: Float[Array, "n J M"],
    *,
    taps: Sequence[int] = (),
) -> tuple[Float[Array, "n t W"], list[Float[Array, "n t W"]]]:
    """Return the features of clips, one row for two frames, after the final norm.

    transformers takes exactly 2 * `rows` frames; fewer are encoded here with the first positions.

    Args:
      params: {"conv1", "conv2", "positions", "blocks" (stacked), "norm"}.
      logmel: log-mel frames of n clips, frame by frame.
      taps: blocks whose outputs (before the final norm) are wanted as well.

    Raises:
      ValueError: see `stem`.
    """
    x = stem(params, config, logmel)
    n, rows, width = x.shape
    groups = frame_groups([(n, 1, rows)])
    out, tapped = prenorm.through(
        params["blocks"], config.stack, x.reshape(-1, width), groups, taps=taps
    )
    out = layer_norm(out, params["norm"], config.stack.norm_eps)
    return out.reshape(x.shape), [jnp.reshape(tap, x.shape) for tap in tapped]


def weight_table(config: WhisperConfig, prefix: str = "encoder.") -> dict[str, Weight]:
    """Return the weight table of the encoder; its tensors begin with `prefix`."""
    width = config.stack.width
    places = Weight(f"{prefix}embed_positions.weight", (config.rows, width))
    table = {"positions": places, **trunk_table(config, prefix)}
    return table | norm("norm", f"{prefix}layer_norm", width, bias=True)


def trunk_table(config: WhisperConfig, prefix: str) -> dict[str, Weight]:
    """Return the part of the table that Qwen's audio encoder shares: convolutions and blocks."""
    width, at = config.stack.width, f"{prefix}layers.{{}}."
    names = {name: f"{at}self_attn.{name}_proj" for name in "qkv"}
    names |= {"proj": f"{at}self_attn.out_proj", "fc1": f"{at}fc1", "fc2": f"{at}fc2"}
    names |= {"norm1": f"{at}self_attn_layer_norm", "norm2": f"{at}final_layer_norm"}
    table = prenorm.table(config.stack, "blocks", names, key_bias=False)
    for name, inputs in (("conv1", config.mel_bins), ("conv2", width)):
        table[f"{name}.kernel"] = Weight(f"{prefix}{name}.weight", (width, inputs, 3), "conv")
        table[f"{name}.bias"] = Weight(f"{prefix}{name}.bias", (width,))
    return table
