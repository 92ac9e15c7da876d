"""The audio encoder of Qwen2.5-Omni (arXiv 2503.20215, 2.2): Whisper's blocks, window by window.

A clip is cut into windows of 2 `rows` log-mel frames (2 s of the released models), the last one
shorter. Every window passes the convolutions by itself (zeros around it), has positions of its own
from 0 and attends to itself only; windows of a stream are therefore encoded as they come. The rows
of a clip are then averaged in pairs, one token for four frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders import prenorm
from jaxmem.models.encoders.vision_parts import groups_of, layer_norm
from jaxmem.models.encoders.whisper import WhisperConfig, read_stack, stem, trunk_table
from jaxmem.models.hf.keys import sizes
from jaxmem.models.hf.weights import Weight, dense, norm
from jaxmem.typing import Array, Float, Params


@dataclass(frozen=True)
class QwenAudioConfig(WhisperConfig):
    """Static description of the encoder; `rows` are those of a window."""

    out: int  # E, width of the decoder


KEYS = {"mel_bins": "num_mel_bins", "rows": "n_window", "out": "output_dim"}


def read_config(audio: Mapping[str, Any]) -> QwenAudioConfig:
    """Return the encoder that an `audio_config` describes; ValueError if it is not implemented."""
    where = "audio_config"
    return QwenAudioConfig(read_stack(audio, where), **sizes(audio, KEYS, where))


def sinusoids(rows: int, width: int) -> Float[np.ndarray, "t W"]:
    """Return sines, then cosines, of row * 10000^(-i / (width/2 - 1)) for i < width/2."""
    step = np.log(10_000) / (width // 2 - 1)
    freq = np.exp(-step * np.arange(width // 2)).astype(np.float32)
    angle = np.arange(rows, dtype=np.float32)[:, None] * freq
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def token_count(config: QwenAudioConfig, frames: int) -> int:
    """Return how many tokens a clip of so many log-mel frames becomes."""
    whole, rest = divmod(frames, 2 * config.rows)
    return (whole * config.rows + (rest + 1) // 2) // 2


def _rows(params: Params, config: QwenAudioConfig, clip: Float[Array, "J M"]) -> list[Array]:
    """Return the rows of a clip's windows, before the first block."""
    table = jnp.asarray(sinusoids(config.rows, config.stack.width))
    weights = {**params, "positions": table.astype(params["conv1"]["bias"].dtype)}
    size = 2 * config.rows
    full = len(clip) // size
    rows = []
    if full:
        rows += list(stem(weights, config, clip[: full * size].reshape(full, size, -1)))
    if len(clip) % size:
        rows += list(stem(weights, config, clip[None, full * size :]))
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
    width = config.stack.width
    table = trunk_table(config, prefix) | norm("norm", f"{prefix}ln_post", width, bias=True)
    return table | dense("proj", f"{prefix}proj", width, config.out)
