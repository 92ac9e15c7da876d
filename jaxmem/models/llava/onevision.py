"""LLaVA-OneVision (0.5B, 7B, 72B; arXiv 2408.03326): config, weights, token layout, positions.

A frame is one picture of the SigLIP encoder, projected to the decoder's width and pooled to half
the side (27 x 27 to 14 x 14: 196 tokens). A video is its frames one after the other, then one
learned newline vector. Positions are 1-axis. Pictures are in `jaxmem.models.llava.pictures`.

Names of LLaVA-NeXT's own checkpoints (LLaVA-Video) are renamed to those of transformers.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.kv import EMPTY, VISION
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import MediaFormat
from jaxmem.models.encoders import siglip
from jaxmem.models.encoders.resize import resize_grid
from jaxmem.models.encoders.vision_parts import gelu_mlp
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import RATE, Family, Files, Names
from jaxmem.models.hf.preprocessor import Pixels, pixels_of
from jaxmem.models.hf.prompt import Ids, Plan, plan
from jaxmem.models.hf.weights import Weight, decoder_table, dense, under
from jaxmem.models.llava.config import LlavaConfig, read_config
from jaxmem.typing import Array, Bool, Float, Int, Params, UInt

RENAMES = (
    # transformers from 4.52 on
    ("model.language_model.", "language_model.model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    # LLaVA-NeXT
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    # both
    ("model.vision_tower.", "vision_tower."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
    # before 5
    ("vision_tower.vision_model.", "vision_tower."),
)
NEWER = ("model.language_model.", "model.multi_modal_projector.", "model.vision_tower.", "lm_head.")
MODULES = tuple((new, old) for old, new in RENAMES if old in NEWER)
"""Back to what transformers 5 calls its modules."""
HEAD = "language_model.lm_head.weight"
IGNORE = ("vision_tower.head.*",)
"""The pooling head of SigLIP, which some checkpoints hold and nobody requires."""


def weight_table(config: LlavaConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision", "projector", "newline"} after `RENAMES`."""
    wide, width, at = config.decoder.width, config.vision.stack.width, "multi_modal_projector"
    return {
        **under("decoder", decoder_table(config.decoder, "language_model.model.", HEAD)),
        **under("vision", siglip.weight_table(config.vision, "vision_tower.")),
        **dense("projector.fc1", f"{at}.linear_1", width, wide, bias=config.bias),
        **dense("projector.fc2", f"{at}.linear_2", wide, wide, bias=config.bias),
        "newline": Weight("image_newline", (wide,)),
    }


def ignored(config: LlavaConfig) -> tuple[str, ...]:
    """Return the patterns of stored names that the model does not read."""
    return (*IGNORE, HEAD) if config.decoder.tied else IGNORE


def project(
    params: Params, config: LlavaConfig, pixels: Float[Array, "n Y X C"]
) -> Float[Array, "n r c E"]:
    """Return the projected patches of normalised pictures, not pooled."""
    out, tapped = siglip.encode(params["vision"], config.vision, pixels, taps=(config.layer,))
    x = tapped[0] if config.layer + 1 < config.vision.stack.depth else out
    x = gelu_mlp(params["projector"], x)
    rows = pixels.shape[1] // config.vision.patch
    return x.reshape(x.shape[0], rows, -1, x.shape[-1])


def with_row_ends(
    x: Float[Array, "*n r c E"], newline: Float[Array, "E"]
) -> Float[Array, "*n r c+1 E"]:
    """Return grids of tokens with the newline after every row."""
    ends = jnp.broadcast_to(newline.astype(x.dtype), (*x.shape[:-2], 1, x.shape[-1]))
    return jnp.concatenate([x, ends], axis=-2)


def encode(
    params: Params, config: LlavaConfig, pixels: Float[Array, "F Y X C"]
) -> Float[Array, "m E"]:
    """Return the tokens of frames, without a newline: ceil(side / 2)^2 for each."""
    x = project(params, config, pixels)
    size = (math.ceil(x.shape[1] / 2), math.ceil(x.shape[2] / 2))
    return resize_grid(x, size, "linear").reshape(-1, x.shape[-1])


def video_features(
    params: Params, config: LlavaConfig, pixels: Float[Array, "F Y X C"]
) -> Float[Array, "m E"]:
    """Return the tokens of a whole video: its frames and one newline after the last."""
    return jnp.concatenate([encode(params, config, pixels), params["newline"][None]])


def positions(ids: Ids) -> tuple[Int[np.ndarray, "T 1"], int]:
    """Return the positions of a prompt (every token is one further), and the next one."""
    return np.arange(len(ids), dtype=np.int32)[:, None], len(ids)


def prompt_plan(config: LlavaConfig, ids: Ids) -> Plan:
    """Return the plan of a whole prompt; its features are those of all pictures, then videos."""
    pos, after = positions(ids)
    pictures = int((np.asarray(ids) == config.image).sum())
    return plan(ids, pos, after, {config.image: (VISION, 0), config.video: (VISION, pictures)})


def video_chunk(config: LlavaConfig, frames: int) -> Plan:
    """Return the plan of some frames of an endless video; the newline comes with what follows."""
    count = frames * config.frame_tokens
    ids = np.full(count, config.video, np.int32)
    return plan(ids, positions(ids)[0], count, {config.video: (VISION, 0)})


class Inputs(NamedTuple):
    """One chunk: the frames of C pieces, and which pieces are real."""

    frames: UInt[Any, "C F Y X 3"]
    valid: Bool[Any, "C"]


@dataclass(frozen=True)
class LlavaFamily(Family):
    """A LLaVA whose frames have one size, one after the other on one axis; see `Family`.

    Of its config are read `decoder`, `vision.side` and `frame_tokens`.
    """

    fps: int  # pictures per second, a whole number
    pixels: Pixels  # normalisation of the frames

    @staticmethod
    @abstractmethod
    def read_config(config: Mapping[str, Any]) -> Any:
        """Return the model that a config.json describes."""

    @staticmethod
    @abstractmethod
    def frame_features(params: Params, config: Any, pixels: Array) -> Float[Array, "m E"]:
        """Return the tokens of normalised frames [F, Y, X, C], `frame_tokens` for each."""

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0) -> Self:
        if fps < 1 or fps != int(fps):
            raise ValueError(f"fps must be a whole number of frames in each second, got {fps}.")
        config = cls.read_config(files.config)
        return cls(config, files.chat, int(fps), pixels_of(files.settings))

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, ignored(self.config))

    @property
    def media(self) -> MediaFormat:
        side = self.config.vision.side
        return MediaFormat(float(self.fps), (side, side), RATE, 1.0)

    @property
    def tokens_per_piece(self) -> int:
        return self.fps * self.config.frame_tokens

    @property
    def frame(self) -> tuple[int, int] | None:
        # A square, or one with a newline after every row.
        tokens = self.config.frame_tokens
        rows = math.isqrt(tokens)
        return next(((rows, n) for n in (rows, rows + 1) if rows * n == tokens), None)

    def preprocess(self, frames: Any, samples: Any, valid: Any, past: Any, start: Any) -> Inputs:
        del samples, past, start  # audio is not used, and every piece is laid out alike
        return Inputs(frames, valid)

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        frames = jnp.asarray(inputs.frames)
        pieces, per_piece = frames.shape[:2]
        pixels = self.pixels(frames.reshape(-1, *frames.shape[2:]))
        x = self.frame_features(params, self.config, pixels)
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
    """LLaVA-OneVision as a `Family`: a newline vector after the last frame.

    A stream has no end, so the newline is the first row of each question. Rows of a question are
    looked up by token: the video's placeholder token IS the newline vector. A tied output matrix is
    split off first: it keeps the placeholder's own row, and with it the checkpoint's logits.
    """

    config: LlavaConfig
    read_config = staticmethod(read_config)
    frame_features = staticmethod(encode)

    @property
    def names(self) -> Names:
        return super().names._replace(modules=MODULES)

    @property
    def decoder(self) -> DecoderConfig:
        return replace(self.config.decoder, tied=False)

    def turn(self, question: str) -> Turn:
        return self.with_newline(self.chat.around(question, self.config.video))

    def with_newline(self, turn: Turn) -> Turn:
        """Return a prompt with the newline first in its question."""
        return Turn(turn.before, np.insert(turn.after, 0, np.int32(self.config.video)))

    def finalise(self, params: Params) -> Params:
        mine = dict(params["decoder"])
        table = mine["embedding"]["embedding"]
        if self.config.decoder.tied:
            mine["head"] = {"kernel": jnp.copy(table.T)}
        row = self.config.video
        put = jax.jit(lambda t, line: t.at[row].set(line.astype(t.dtype)), donate_argnums=0)
        mine["embedding"] = {"embedding": put(table, params["newline"])}
        return {**params, "decoder": mine}
