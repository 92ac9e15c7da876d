"""A LLaVA-OneVision checkpoint directory as a `Model` that the streaming loop takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.kv import EMPTY, VISION
from jaxmem.memory.base import Embeds
from jaxmem.models.base import MediaFormat
from jaxmem.models.hf.chat import Chat, around, read_chat
from jaxmem.models.hf.checkpoint import read_json
from jaxmem.models.hf.family import RATE, Parts, Turn
from jaxmem.models.hf.preprocessor import Pixels, pixels_of, read_settings
from jaxmem.models.llava import onevision as family
from jaxmem.models.llava.onevision import LlavaConfig
from jaxmem.typing import Array, Bool, Float, Int, Params, UInt

See = Callable[[Params, Any, Float[Array, "F Y X C"]], Float[Array, "m E"]]


class Inputs(NamedTuple):
    """One chunk: the frames of C pieces, and which pieces are real."""

    frames: UInt[Any, "C F Y X 3"]
    valid: Bool[Any, "C"]


def read_pixels(directory: str | Path) -> Pixels:
    """Return the normalisation of a directory's preprocessor settings, or SigLIP's own."""
    return pixels_of(read_settings(directory))


def preprocess(
    frames: np.ndarray, samples: np.ndarray, valid: np.ndarray, past: np.ndarray, start: int
) -> Inputs:
    """Return a chunk's inputs; sound is not used, and every piece is laid out alike."""
    del samples, past, start
    return Inputs(frames, valid)


def encode(see: See, config: LlavaConfig, pixels: Pixels, params: Params, inputs: Inputs) -> Embeds:
    """Return a chunk as rows: pieces one after the other, padding last.

    Args:
      see: the tokens of frames, `frame_tokens` for each.
      config: of the model.
      pixels: normalisation of the frames.
      params: of the model.
      inputs: the chunk.
    """
    frames = jnp.asarray(inputs.frames)
    pieces, per_piece = frames.shape[:2]
    x = see(params, config, pixels(frames.reshape(-1, *frames.shape[2:])))
    rows, each = x.shape[0], per_piece * config.frame_tokens
    real = jnp.repeat(jnp.asarray(inputs.valid), each, total_repeat_length=pieces * each)
    return Embeds(
        x=x,
        pos=jnp.arange(rows, dtype=jnp.int32)[:, None],
        modality=jnp.where(real, VISION, EMPTY).astype(jnp.int8),
        advance=each * jnp.sum(inputs.valid, dtype=jnp.int32).reshape(1),
    )


def with_newline(
    video: int, decoder: DecoderConfig, params: Params
) -> tuple[DecoderConfig, Params]:
    """Return the decoder and weights in which the video's placeholder token IS the newline vector.

    A stream has no end, so the newline behind the last frame is the first row of each question, and
    rows of a question are looked up by token. A tied output matrix is split off first: it keeps the
    placeholder's own row, and with it the checkpoint's logits.
    """
    mine = dict(params["decoder"])
    table = mine["embedding"]["embedding"]
    if decoder.tied:
        decoder, mine["head"] = replace(decoder, tied=False), {"kernel": jnp.copy(table.T)}
    put = jax.jit(lambda t, row: t.at[video].set(row.astype(t.dtype)), donate_argnums=0)
    mine["embedding"] = {"embedding": put(table, params["newline"])}
    return decoder, {**params, "decoder": mine}


def llava_parts(
    directory: str | Path, config: LlavaConfig, chat: Chat, turn: Turn, see: See, fps: float
) -> Parts:
    """Return the parts of a model whose frames have one size; arguments as in `encode`.

    Args:
      directory: the checkpoint.
      config: of the model.
      chat: tokenizer and chat template.
      turn: a question to the ids before the video, and to those behind it.
      see: the tokens of frames.
      fps: pictures per second.

    Raises:
      ValueError: if a second does not hold a whole number of frames.
    """
    if fps < 1 or fps != int(fps):
        raise ValueError(f"fps must be a whole number of frames in each second, got {fps}.")
    return Parts(
        decoder=config.decoder,
        chat=chat,
        turn=turn,
        media=MediaFormat(fps, (config.vision.side, config.vision.side), RATE, 1.0),
        preprocess=preprocess,
        encode=partial(encode, see, config, read_pixels(directory)),
        table=family.weight_table(config),
        renames=family.RENAMES,
        ignore=family.ignored(config),
        tokens_per_piece=int(fps) * config.frame_tokens,
        frame=frame_of(config.frame_tokens),
    )


def frame_of(tokens: int) -> tuple[int, int] | None:
    """Return rows and columns of a frame: a square, or one with a newline after every row."""
    rows = isqrt(tokens)
    return next(((rows, n) for n in (rows, rows + 1) if rows * n == tokens), None)


def read_parts(directory: str | Path, *, fps: float = 1.0) -> Parts:
    """Return the parts of a checkpoint directory; the arguments are those of `load.load`.

    Raises:
      ValueError: if something is missing or does not fit.
    """
    config, chat = family.read_config(read_json(directory)), read_chat(directory)
    newline = np.array([config.video], np.int32)

    def turn(question: str) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "Q"]]:
        before, behind = around(chat, question, config.video)
        return before, np.concatenate([newline, behind])

    parts = llava_parts(directory, config, chat, turn, family.encode, fps)
    return replace(parts, finalise=partial(with_newline, config.video))
