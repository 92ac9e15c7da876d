"""The audio encoder of Qwen2.5-Omni (arXiv 2503.20215, 2.2): Whisper's blocks, window by window.

A clip is cut into windows of 2 `window` log-mel frames (2 s of the released models), the last one
shorter. Every window passes the convolutions by itself (zeros around it), has positions of its own
from 0 and attends to itself only; windows of a stream are therefore encoded as they come. The rows
of a clip are then averaged in pairs, one token for four frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders import prenorm
from jaxmem.models.encoders.prenorm import Prenorm
from jaxmem.models.encoders.vision_parts import groups_of, layer_norm
from jaxmem.models.encoders.whisper import WhisperConfig, stem
from jaxmem.models.hf.config import check_keys
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params

KEYS = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")


@dataclass(frozen=True)
class QwenAudioConfig:
    """Static description of the encoder.

    Attributes:
      stack: its blocks.
      mel_bins: of the log-mel spectrogram.
      window: rows of a window; it takes twice as many frames.
      out: E, width of the decoder.
    """

    stack: Prenorm
    mel_bins: int
    window: int
    out: int


def read_config(audio: Mapping[str, Any]) -> QwenAudioConfig:
    """Return the encoder that `audio_config` of a config.json describes.

    Raises:
      ValueError: if a key is missing, or the encoder has parts that are not implemented.
    """
    check_keys(audio, (*KEYS, "n_window", "output_dim"), "audio_config")
    if audio.get("activation_function", "gelu") != "gelu":
        raise ValueError(
            "the audio encoder of Qwen2.5-Omni uses gelu, audio_config says "
            f"{audio['activation_function']!r}."
        )
    stack = Prenorm(
        depth=audio["encoder_layers"],
        width=audio["d_model"],
        heads=audio["encoder_attention_heads"],
        mlp_width=audio["encoder_ffn_dim"],
        tanh_gelu=False,
        norm_eps=1e-5,  # torch's default; config.json does not hold it
    )
    return QwenAudioConfig(stack, audio["num_mel_bins"], audio["n_window"], audio["output_dim"])


def sinusoids(rows: int, width: int) -> Float[np.ndarray, "t W"]:
    """Return sines, then cosines, of row * 10000^(-i / (width/2 - 1)) for i < width/2."""
    step = np.log(10_000) / (width // 2 - 1)
    freq = np.exp(-step * np.arange(width // 2)).astype(np.float32)
    angle = np.arange(rows, dtype=np.float32)[:, None] * freq
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def windows(config: QwenAudioConfig, frames: int) -> list[int]:
    """Return the frames of every window of a clip."""
    size = 2 * config.window
    return [min(size, frames - start) for start in range(0, frames, size)]


def token_count(config: QwenAudioConfig, frames: int) -> int:
    """Return how many tokens a clip of so many log-mel frames becomes."""
    return sum((n + 1) // 2 for n in windows(config, frames)) // 2


def _rows(params: Params, config: QwenAudioConfig, clip: Float[Array, "J M"]) -> list[Array]:
    """Return the rows of a clip's windows, before the first block."""
    whole = WhisperConfig(config.stack, config.mel_bins, config.window)
    table = jnp.asarray(sinusoids(config.window, config.stack.width))
    weights = {**params, "positions": table.astype(params["conv1"]["bias"].dtype)}
    size = 2 * config.window
    full = len(clip) // size
    rows = []
    if full:
        rows += list(stem(weights, whole, clip[: full * size].reshape(full, size, -1)))
    if len(clip) % size:
        rows += list(stem(weights, whole, clip[None, full * size :]))
    return rows


def encode_audio(
    params: Params,
    config: QwenAudioConfig,
    clips: Sequence[Float[Array, "J M"]],
    *,
    taps: Sequence[int] = (),
) -> tuple[Float[Array, "m E"], list[Float[Array, "t W"]]]:
    """Return the tokens of clips of sound, one clip after the other.

    Args:
      params: {"conv1", "conv2", "blocks" (stacked), "norm", "proj"}.
      config: of the encoder.
      clips: log-mel frames of each clip, without padding; at least 3 (one token).
      taps: blocks whose outputs are wanted as well.

    Raises:
      ValueError: if a clip is too short or has other bins.
    """
    for clip in clips:
        if clip.ndim != 2 or clip.shape[1] != config.mel_bins or len(clip) < 3:
            raise ValueError(
                f"clips of log-mel frames must be [at least 3, {config.mel_bins}], got {clip.shape}"
            )
    parts = [_rows(params, config, jnp.asarray(clip)) for clip in clips]
    sizes = [len(window) for part in parts for window in part]
    ends = np.cumsum(sizes)
    groups = groups_of([np.arange(end - n, end) for n, end in zip(sizes, ends, strict=True)])
    h = jnp.concatenate([window for part in parts for window in part])
    h, tapped = prenorm.through(params["blocks"], config.stack, h, groups, taps=taps)
    first, pooled = 0, []
    for part in parts:
        count = sum(len(window) for window in part)
        pairs = h[first : first + count // 2 * 2].reshape(count // 2, 2, -1)
        pooled.append(jnp.mean(pairs, axis=1))
        first += count
    x = layer_norm(jnp.concatenate(pooled), params["norm"], config.stack.norm_eps)
    return linear(x, params["proj"]), tapped


def audio_table(config: QwenAudioConfig, prefix: str = "audio_tower.") -> dict[str, Weight]:
    """Return the weight table of the encoder; its tensors begin with `prefix`."""
    width, at = config.stack.width, f"{prefix}layers.{{}}."
    names = {name: f"{at}self_attn.{name}_proj" for name in "qkv"}
    names |= {"proj": f"{at}self_attn.out_proj", "fc1": f"{at}fc1", "fc2": f"{at}fc2"}
    names |= {"norm1": f"{at}self_attn_layer_norm", "norm2": f"{at}final_layer_norm"}
    table = prenorm.table(config.stack, "blocks", names, key_bias=False)
    for name, inputs in (("conv1", config.mel_bins), ("conv2", width)):
        table[f"{name}.kernel"] = Weight(f"{prefix}{name}.weight", (width, inputs, 3), "conv")
        table[f"{name}.bias"] = Weight(f"{prefix}{name}.bias", (width,))
    table |= norm("norm", f"{prefix}ln_post", width, bias=True)
    return table | dense("proj", f"{prefix}proj", width, config.out)
