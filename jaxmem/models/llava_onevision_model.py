"""A LLaVA-OneVision checkpoint directory as a `Model` that the streaming loop takes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxmem.memory.base import Rows
from jaxmem.models import llava_onevision as family
from jaxmem.models.base import MediaFormat, Model
from jaxmem.models.chat import around, read_chat
from jaxmem.models.checkpoint import Place, load, read_json
from jaxmem.models.decoder import DecoderConfig
from jaxmem.models.llava_onevision import LlavaConfig
from jaxmem.tokens import EMPTY, VISION
from jaxmem.typing import Array, Bool, Float, Int, Params, UInt

RATE = 16_000  # of the sound that is read and dropped
PROBES = ("Describe the video in detail.", "What is happening in the video now?")


class Inputs(NamedTuple):
    """One chunk: the frames of C pieces, and which pieces are real."""

    frames: UInt[Any, "C F Y X 3"]
    valid: Bool[Any, "C"]


class Pixels(NamedTuple):
    """How pixels 0..255 are normalised: (x * scale - mean) / std."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, frames: UInt[Array, "n Y X C"]) -> Float[Array, "n Y X C"]:
        """Return normalised pictures, float32."""
        mean, std = (np.array(x, np.float32).reshape(1, 1, 1, -1) for x in (self.mean, self.std))
        return (frames.astype(jnp.float32) * self.scale - mean) / std


def read_pixels(directory: str | Path) -> Pixels:
    """Return the normalisation of a directory's preprocessor settings, or SigLIP's own."""
    folder = Path(directory)
    names = ("video_preprocessor_config.json", "preprocessor_config.json")
    found = next((read_json(folder, n) for n in names if (folder / n).is_file()), {})
    mean, std = found.get("image_mean", [0.5] * 3), found.get("image_std", [0.5] * 3)
    return Pixels(found.get("rescale_factor", 1 / 255), tuple(mean), tuple(std))


def pack(frames: np.ndarray, samples: np.ndarray, valid: np.ndarray, past: np.ndarray) -> Inputs:
    """Return a chunk's inputs; sound is not used."""
    del samples, past
    return Inputs(frames, valid)


def encode(config: LlavaConfig, pixels: Pixels, params: Params, inputs: Inputs) -> Rows:
    """Return a chunk as rows: pieces one after the other, padding last."""
    frames = jnp.asarray(inputs.frames)
    pieces, per_piece = frames.shape[:2]
    x = family.encode(params, config, pixels(frames.reshape(-1, *frames.shape[2:])))
    rows, each = x.shape[0], per_piece * config.frame_tokens
    real = jnp.repeat(jnp.asarray(inputs.valid), each, total_repeat_length=pieces * each)
    return Rows(
        x=x,
        rel=jnp.arange(rows, dtype=jnp.int32)[:, None],
        kind=jnp.where(real, VISION, EMPTY).astype(jnp.int8),
        span=each * jnp.sum(inputs.valid, dtype=jnp.int32).reshape(1),
    )


def with_newline(config: LlavaConfig, params: Params) -> tuple[DecoderConfig, Params]:
    """Return the decoder and weights in which the video's placeholder token IS the newline vector.

    A stream has no end, so the newline behind the last frame is the first row of each question, and
    rows of a question are looked up by token. A tied output matrix is split off first: it keeps the
    placeholder's own row, and with it the checkpoint's logits.
    """
    decoder, mine = config.decoder, dict(params["decoder"])
    table = mine["embedding"]["embedding"]
    if decoder.tied:
        decoder, mine["head"] = replace(decoder, tied=False), {"kernel": jnp.copy(table.T)}
    put = jax.jit(lambda t, row: t.at[config.video].set(row.astype(t.dtype)), donate_argnums=0)
    mine["embedding"] = {"embedding": put(table, params["newline"])}
    return decoder, {**params, "decoder": mine}


def load_model(
    directory: str | Path,
    *,
    dtype: Any = jnp.bfloat16,
    sharding: Place | Sharding | None = None,
    fps: float = 1.0,
    max_new: int = 128,
) -> Model:
    """Return the model of a checkpoint directory.

    Its `prefix` holds the token ids that the chat template writes in front of the video.

    Args:
      directory: with config.json, safetensors, tokenizer.json and a chat template.
      dtype: of the weights.
      sharding: placement of the weights, see `checkpoint.load`.
      fps: frames per second of a stream; whole numbers.
      max_new: answer tokens at most.

    Raises:
      ValueError: if something is missing or does not fit; nothing large is read before that.
    """
    if fps < 1 or fps != int(fps):
        raise ValueError(f"fps must be a whole number of frames in each second, got {fps}.")
    config = family.read_config(read_json(directory))
    chat, pixels = read_chat(directory), read_pixels(directory)
    before, _ = around(chat, "?", config.video)
    params = load(
        directory,
        family.weight_table(config),
        dtype=dtype,
        sharding=sharding,
        renames=family.RENAMES,
        ignore=family.ignored(config),
    )
    decoder, params = with_newline(config, params)
    newline = np.array([config.video], np.int32)

    def tokenize(question: str) -> Int[np.ndarray, "Q"]:
        return np.concatenate([newline, around(chat, question, config.video)[1]])

    return Model(
        name=Path(directory).name,
        params=params,
        decoder=decoder,
        media=MediaFormat(fps, (config.vision.side, config.vision.side), RATE, 1.0),
        tokens_per_piece=int(fps) * config.frame_tokens,
        pack=pack,
        encode=partial(encode, config, pixels),
        tokenize=tokenize,
        detokenize=lambda ids: chat.text(ids).strip(),
        end=chat.end,
        max_new=max_new,
        probes=PROBES,
        prefix=before,
    )
