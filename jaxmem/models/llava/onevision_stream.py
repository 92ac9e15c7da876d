"""LLaVA-OneVision as a `Family` that streams."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.kv import EMPTY, VISION
from jaxmem.memory.base import Embeds
from jaxmem.models.base import MediaFormat
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import RATE, Family, Files, Names
from jaxmem.models.hf.preprocessor import Pixels, pixels_of
from jaxmem.models.llava import onevision as family
from jaxmem.typing import Array, Bool, Float, Params, UInt


class Inputs(NamedTuple):
    """One chunk: the frames of C pieces, and which pieces are real."""

    frames: UInt[Any, "C F Y X 3"]
    valid: Bool[Any, "C"]


@dataclass(frozen=True)
class LlavaFamily(Family):
    """A LLaVA whose frames have one size, one after the other on one axis; see `Family`.

    Attributes:
      fps: pictures per second, a whole number.
      pixels: normalisation of the frames.
    """

    config: family.LlavaConfig
    fps: int
    pixels: Pixels

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0) -> Self:
        """Return the member that a checkpoint holds."""
        if fps < 1 or fps != int(fps):
            raise ValueError(f"fps must be a whole number of frames in each second, got {fps}.")
        config = cls.read_config(files.config)
        return cls(config, files.chat, int(fps), pixels_of(files.settings))

    @staticmethod
    def read_config(config: Any) -> family.LlavaConfig:
        """Return the model that a config.json describes."""
        return family.read_config(config)

    @property
    def names(self) -> Names:
        """Return which tensors the checkpoint must hold."""
        table = family.weight_table(self.config)
        return Names(table, family.RENAMES, family.ignored(self.config))

    @property
    def media(self) -> MediaFormat:
        """Return how video is wanted; audio is read and dropped."""
        side = self.config.vision.side
        return MediaFormat(float(self.fps), (side, side), RATE, 1.0)

    @property
    def tokens_per_piece(self) -> int:
        """Return the rows of a second."""
        return self.fps * self.config.frame_tokens

    @property
    def frame(self) -> tuple[int, int] | None:
        """Return rows and columns of a frame: a square, or one with a newline after every row."""
        tokens = self.config.frame_tokens
        rows = isqrt(tokens)
        return next(((rows, n) for n in (rows, rows + 1) if rows * n == tokens), None)

    def preprocess(
        self,
        frames: np.ndarray,
        samples: np.ndarray,
        valid: np.ndarray,
        past: np.ndarray,
        start: int,
    ) -> Inputs:
        """Return a chunk's inputs; audio is not used, and every piece is laid out alike."""
        del samples, past, start
        return Inputs(frames, valid)

    def tokens(self, params: Params, pixels: Float[Array, "F Y X C"]) -> Float[Array, "m E"]:
        """Return the tokens of normalised frames, `frame_tokens` for each."""
        return family.encode(params, self.config, pixels)

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        """Return a chunk as rows: pieces one after the other, padding last."""
        frames = jnp.asarray(inputs.frames)
        pieces, per_piece = frames.shape[:2]
        x = self.tokens(params, self.pixels(frames.reshape(-1, *frames.shape[2:])))
        rows, each = x.shape[0], per_piece * self.config.frame_tokens
        real = jnp.repeat(jnp.asarray(inputs.valid), each, total_repeat_length=pieces * each)
        return Embeds(
            x=x,
            pos=jnp.arange(rows, dtype=jnp.int32)[:, None],
            modality=jnp.where(real, VISION, EMPTY).astype(jnp.int8),
            advance=each * jnp.sum(inputs.valid, dtype=jnp.int32).reshape(1),
        )


@dataclass(frozen=True)
class LlavaOnevision(LlavaFamily):
    """LLaVA-OneVision: a newline vector after the last frame.

    A stream has no end, so the newline is the first row of each question. Rows of a question are
    looked up by token: the video's placeholder token IS the newline vector. A tied output matrix is
    split off first: it keeps the placeholder's own row, and with it the checkpoint's logits.
    """

    @property
    def decoder(self) -> DecoderConfig:
        """Return the language model with an output matrix of its own."""
        return replace(self.config.decoder, tied=False)

    def turn(self, question: str) -> Turn:
        """Return the token ids around the video, its newline with those after it."""
        before, after = self.chat.around(question, self.config.video)
        return Turn(before, np.insert(after, 0, np.int32(self.config.video)))

    def finalise(self, params: Params) -> Params:
        """Return the weights in which the placeholder's embedding is the newline vector."""
        mine = dict(params["decoder"])
        table = mine["embedding"]["embedding"]
        if self.config.decoder.tied:
            mine["head"] = {"kernel": jnp.copy(table.T)}
        row = self.config.video
        put = jax.jit(lambda t, line: t.at[row].set(line.astype(t.dtype)), donate_argnums=0)
        mine["embedding"] = {"embedding": put(table, params["newline"])}
        return {**params, "decoder": mine}
