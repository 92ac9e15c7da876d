"""SmolVLM2 (256M, 500M, 2.2B; arXiv 2504.05299): config, weights, token layout, positions.

A Llama decoder and a SigLIP encoder, whose patches are brought together, `scale` x `scale` to one
token (pixel shuffle), and projected. Every frame of a video is its time in words, a mark, its
tokens, a mark. Positions are 1-axis. A piece of a stream is one frame.

Frames are first brought to the encoder's side along their longest edge, while they are decoded,
then stretched to a square, as released.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig, linear
from jaxmem.kv import VISION
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import Fitted, MediaFormat
from jaxmem.models.encoders import siglip
from jaxmem.models.encoders.siglip import SiglipConfig
from jaxmem.models.hf.chat import Chat, Turn, Uncoded, check_question
from jaxmem.models.hf.config import decoder_config
from jaxmem.models.hf.family import RATE, Family, Files, Names
from jaxmem.models.hf.keys import (
    check_family,
    check_value,
    is_tied,
    section,
    sections,
    sizes,
    token_ids,
)
from jaxmem.models.hf.preprocessor import OF_VIDEOS, Pixels, file_of, picture_rate, pixels_of
from jaxmem.models.hf.prompt import Ids, Plan, fill, pad, plan
from jaxmem.models.hf.weights import Weight, decoder_table, dense, under
from jaxmem.models.smolvlm import words
from jaxmem.typing import Array, Float, Params, UInt

MODEL_TYPES = ("smolvlm",)
RENAMES = ()
IGNORE = ("lm_head.weight",)
"""A copy of the embedding that tied checkpoints may hold."""
VISION_DEFAULTS = {
    "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32, "image_size": 224,
}  # fmt: skip
"""Of a vision_config that does not say; the rest is as in SigLIP."""
IMAGE = 128_257
"""Placeholder of pictures in a config.json that does not say."""
SIGLIP = {"model_type": siglip.MODEL_TYPES[0], "vision_use_head": False}


@dataclass(frozen=True)
class SmolVLMConfig:
    """Static description of the model."""

    decoder: DecoderConfig  # its language model
    vision: SiglipConfig  # its encoder
    image: int  # placeholder token of pictures and frames
    scale: int  # side of the cell of patches that becomes one token

    def __post_init__(self):
        if self.vision.grid % self.scale:
            raise ValueError(
                f"scale_factor is {self.scale} in config.json, which does not divide the "
                f"{self.vision.grid} patches of a side."
            )

    @property
    def frame_side(self) -> int:
        """Return the side of a frame in tokens."""
        return self.vision.grid // self.scale


def read_config(config: Mapping[str, Any]) -> SmolVLMConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    text, vision = sections(config, ("text_config", "vision_config"))
    check_value("model_type of text_config", text.get("model_type", "llama"), "llama")
    for key in ("attention_bias", "mlp_bias"):
        check_value(key, text.get(key, False), False)
    tied, key = is_tied(config, text), "image_token_id"
    decoder = decoder_config(text, qkv_bias=False, qk_norm=False, tied=tied)
    return SmolVLMConfig(
        decoder=decoder,
        vision=siglip.read_config({**VISION_DEFAULTS, **vision, **SIGLIP}),
        **token_ids(config, {"image": key}, {key: IMAGE}, decoder.vocab),
        **sizes({"scale_factor": 2, **config}, {"scale": "scale_factor"}),
    )


def weight_table(config: SmolVLMConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision", "projector"}."""
    cell, at = config.scale**2 * config.vision.stack.width, "model.connector.modality_projection"
    return {
        **under("decoder", decoder_table(config.decoder, "model.text_model.")),
        **under("vision", siglip.weight_table(config.vision, "model.vision_model.")),
        **dense("projector", f"{at}.proj", cell, config.decoder.width, bias=False),
    }


def encode(
    params: Params, config: SmolVLMConfig, pixels: Float[Array, "F Y X C"]
) -> Float[Array, "m E"]:
    """Return the tokens of normalised pictures of the encoder's size, `frame_side`^2 for each.

    transformers finds the learned position of a patch from a rounded fraction of the side. For the
    grids of all published sizes (27, 32) that is the patch's own, which is taken here for any.
    """
    vision, cells, scale = params["vision"], config.frame_side, config.scale
    x, _ = siglip.encode(vision, config.vision, pixels)
    x = siglip.final(vision, config.vision, x)
    x = x.reshape(-1, cells, scale, cells, scale, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
    return linear(x.reshape(-1, scale**2 * x.shape[-1]), params["projector"])


def prompt_plan(config: SmolVLMConfig, ids: Ids) -> Plan:
    """Return the plan of a prompt or a part of one, from its first token's position."""
    pos = np.arange(len(ids), dtype=np.int32)[:, None]
    return plan(ids, pos, len(ids), {config.image: (VISION, 0)})


def longest_edge(settings: Mapping[str, Any], side: int) -> int:
    """Return the length that the longest edge of a frame is brought to before it is a square."""
    sampling = section(settings, "video_sampling", file_of(settings))
    if settings.get(OF_VIDEOS) and "video_size" not in sampling:
        return _edge(settings, "size", side, settings)
    return _edge(sampling, "video_size", side, settings)


def _edge(part: Mapping[str, Any], key: str, side: int, settings: Mapping[str, Any]) -> int:
    """Return `longest_edge` of a size, `side` where there is none."""
    where, edge = file_of(settings), "longest_edge"
    found = {edge: side, **section(part, key, where)}
    return sizes(found, {"edge": edge}, f"{key} of {where}")["edge"]


def resized(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return the (height, width) whose longest edge is `longest`; the other one is even."""
    ratio = width / height
    short = int(longest / ratio) if width >= height else int(longest * ratio)
    short = max(short + short % 2, 1)
    return (short, longest) if width >= height else (longest, short)


def square(frames: UInt[Array, "n Y X C"], side: int) -> Array:
    """Return pictures stretched to a square (Lanczos), in grey levels 0..255."""
    if frames.shape[1:3] == (side, side):
        return frames
    x = frames.astype(jnp.float32)
    shape, exact = (len(x), side, side, x.shape[-1]), jax.lax.Precision.HIGHEST
    return jnp.clip(jnp.round(jax.image.resize(x, shape, "lanczos3", precision=exact)), 0, 255)


class Inputs(NamedTuple):
    """One chunk: where its rows come from, and the frames of C pieces."""

    plan: Plan
    frames: UInt[Any, "C F Y X 3"]


@dataclass(frozen=True)
class SmolVLM(Family):
    """SmolVLM2 as a `Family`."""

    timestamps = True
    config: SmolVLMConfig
    fps: Fraction  # frames per second
    pixels: Pixels  # normalisation of the frames
    longest: int  # edge of a frame before it becomes a square
    intro: str  # words before the video

    @classmethod
    def read(
        cls,
        files: Files,
        *,
        fps: float = 1.0,
        frames: int | None = None,
        seconds: float | None = None,
    ) -> Self:
        """Return the member; `frames` and `seconds` of the whole video as in `words.intro`."""
        config = read_config(files.config)
        side = config.vision.side
        settings = files.settings
        found = _edge(settings, "max_image_size", side, settings)
        if found != side:
            raise ValueError(
                f"max_image_size is {found} in {file_of(settings)}, but image_size is {side} in "
                "vision_config of config.json: use the two files of one checkpoint."
            )
        check_tokens(files.chat, config.image)
        return cls(
            config,
            files.chat,
            picture_rate(fps),
            pixels_of(settings),
            longest_edge(settings, side),
            words.intro(frames, seconds),
        )

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, IGNORE)

    @property
    def media(self) -> MediaFormat:
        rate = self.fps.numerator * -(-RATE // self.fps.numerator)  # whole numbers in a piece
        size = lambda height, width: resized(height, width, self.longest)
        return MediaFormat(float(self.fps), size, rate, float(1 / self.fps))

    def turn(self, question: str) -> Turn:
        check_question(question)
        after = f"{words.AFTER}{question}{words.ANSWER}"
        return Turn(self.chat.ids(words.USER + self.intro), self.chat.ids(after))

    def block(self, stamp: str) -> list[int]:
        """Return the token ids of a frame after its `stamp`; a mark is one token."""
        around, whole = (self.chat.ids(mark).tolist()[-1:] for mark in (words.AROUND, words.GLOBAL))
        seen = [self.config.image] * self.config.frame_side**2
        return [*self.chat.ids(stamp).tolist(), *around, *whole, *seen, *around]

    def video_ids(self, numbers: Iterable[int]) -> list[int]:
        """Return the token ids of frames of the stream, by their numbers from 0."""
        return [token for i in numbers for token in self.block(words.stamp(i / self.fps))]

    @property
    def rows(self) -> int:
        """Return the rows of a piece, the largest number."""
        return len(self.block(words.LONGEST))

    def preprocess(self, frames: Any, samples: Any, valid: Any, past: Any, start: Any) -> Inputs:
        ids = self.video_ids(range(start, start + int(valid.sum())))
        return Inputs(pad(prompt_plan(self.config, ids), len(valid) * self.rows), frames)

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        frames = jnp.asarray(inputs.frames)
        pictures = square(frames.reshape(-1, *frames.shape[2:]), self.config.vision.side)
        tokens = encode(params, self.config, self.pixels(pictures))
        return fill(params["decoder"], inputs.plan, tokens)

    def for_frames(self, size: tuple[int, int]) -> Fitted:
        del size  # all become the encoder's square
        side = self.config.frame_side
        return Fitted(self.rows, None, (side, side))


def check_tokens(chat: Chat, image: int) -> None:
    """Refuse a tokenizer that does not know the marks around a frame, or another placeholder."""
    if isinstance(chat, Uncoded):
        return
    found = {mark: chat.ids(mark).tolist() for mark in (words.AROUND, words.GLOBAL, words.IMAGE)}
    wrong = [mark for mark, ids in found.items() if len(ids) != 1]
    if wrong or found[words.IMAGE] != [image]:
        raise ValueError(
            f"the tokenizer knows {', '.join(wrong) or words.IMAGE} not as one token, or not as "
            f"config.json does (image_token_id {image}): use the two files of one checkpoint."
        )
