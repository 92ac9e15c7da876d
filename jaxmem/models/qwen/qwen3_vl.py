"""Qwen3-VL, dense (2B, 4B, 8B, 32B): config, weights, token layout, positions.

Every frame of a video is `<12.5 seconds>` in words, `<|vision_start|>`, its tokens,
`<|vision_end|>`, in place of the chat template's one video. Time is in the words: a frame is a
block of rows and columns at one temporal position, and what follows stands max(rows, columns) after
its start. A stream of any length is therefore the same arithmetic from every chunk's start, on all
three axes alike. A piece of it is one frame (two pictures) with its words, rows of modality TEXT.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from jaxmem.models.encoders.vision_parts import Grid, Grids, as_grids
from jaxmem.models.hf.chat import Chat
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import check_family, flag, sections, token_ids
from jaxmem.models.hf.prompt import Ids, Plan, pad
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen.clip import Clip, Size
from jaxmem.models.qwen.config import QWEN3_VL, TOKEN_IDS, TOKENS, VLConfig, read_decoder
from jaxmem.models.qwen.mrope import grid_positions, join, to_the_end
from jaxmem.models.qwen.qwen3_vision import Encoded, Qwen3VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen3_vision import read_config as read_vision
from jaxmem.models.qwen.stream import Features, QwenFamily, vision_plan
from jaxmem.typing import Array, Float, Int, Params

MODEL_TYPES = ("qwen3_vl",)
RENAMES = ()
IGNORE = ("lm_head.weight",)
"""A copy of the embedding that tied checkpoints may hold."""
LONGEST = "<999999.9 seconds>"
"""Room for the words of eleven days."""


@dataclass(frozen=True)
class Qwen3VLConfig(VLConfig):
    """Static description of the model."""

    vision: Qwen3VisionConfig

    def __post_init__(self):
        if len(self.vision.deep) > self.decoder.layers:
            raise ValueError(
                f"DeepStack feeds {len(self.vision.deep)} layers, the decoder has "
                f"{self.decoder.layers}."
            )


def read_config(config: Mapping[str, Any]) -> Qwen3VLConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    text, vision = sections(config, ("text_config", "vision_config"))
    if flag(text, "attention_bias", False):
        raise ValueError("attention_bias is set: no released Qwen3-VL has biases on q, k and v.")
    decoder = read_decoder(config, QWEN3_VL, qkv_bias=False, qk_norm=True)
    tokens = token_ids(config, TOKENS, TOKEN_IDS, decoder.vocab)
    return Qwen3VLConfig(decoder=decoder, vision=read_vision(vision), **tokens)


def weight_table(config: Qwen3VLConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision"}."""
    decoder = decoder_table(config.decoder, "model.language_model.")
    return under("decoder", decoder) | under("vision", vision_table(config.vision))


def positions(
    config: Qwen3VLConfig, ids: Ids, *, images: Grids = (), videos: Grids = ()
) -> tuple[Int[np.ndarray, "T 3"], int]:
    """Return the positions of a prompt, and where the next text token would stand.

    Args:
      ids: token ids without padding.
      images: (1, h, w) of every picture, in patches.
      videos: (F, h, w) of every video, in patches; its frames are blocks of their own.

    Raises:
      ValueError: if ids and grids do not fit together.
    """
    merge = config.vision.merge
    blocks = {
        token: [
            to_the_end(grid_positions(np.zeros(1), h // merge, w // merge))
            for frames, h, w in as_grids(grids, merge)
            for _ in range(frames)
        ]
        for token, grids in ((config.image, images), (config.video, videos))
    }
    return join(ids, blocks)


def prompt_plan(config: Qwen3VLConfig, ids: Ids, **media: Grids) -> Plan:
    """Return the plan of a whole prompt; `media` as in `positions`.

    Features are those of all pictures, then those of all videos.
    """
    return vision_plan(config, ids, *positions(config, ids, **media), media.get("images", ()))


def encode(
    params: Params, config: Qwen3VLConfig, patches: Float[Array, "N I"], grids: Grids
) -> Encoded:
    """Return the features of pictures and videos, for `prompt.fill`."""
    return encode_vision(params["vision"], config.vision, patches, grids)


def stamp(frame: int, temporal: int, fps: Fraction | float) -> str:
    """Return the words before a frame: the mean time of its first and its last picture.

    Args:
      frame: number from 0.
      temporal: pictures per frame.
      fps: pictures per second; a Fraction for a stream of hours.
    """
    first, last = frame * temporal / fps, (frame * temporal + temporal - 1) / fps
    return f"<{float((first + last) / 2):.1f} seconds>"


def stamps(chat: Chat, numbers: Iterable[int], temporal: int, clip: Clip) -> list[list[int]]:
    """Return the token ids of time stamps, each of `temporal` pictures."""
    return [chat.ids(stamp(i, temporal, clip.fps)).tolist() for i in numbers]


def stamp_rows(chat: Chat) -> int:
    """Return the rows of the longest time stamp and the two tokens around its frame."""
    return len(chat.ids(LONGEST)) + 2


def video_chunk(
    config: Qwen3VLConfig, stamps: Sequence[Sequence[int]], grid: Grid, size: int
) -> Plan:
    """Return the plan of some frames of an endless video, padded to `size` rows.

    Time stamps grow by a token now and then, so the rows of a chunk vary: `size` is what the
    longest stamps need.

    Args:
      stamps: token ids of every frame's `stamp`.
      grid: (F, h, w) of the chunk, in patches.
      size: T, rows after padding.

    Raises:
      ValueError: if the stamps are not one for each frame, or the rows do not fit.
    """
    ((frames, rows, columns),) = as_grids([grid], config.vision.merge)
    if len(stamps) != frames:
        raise ValueError(f"{frames} frames came with {len(stamps)} time stamps.")
    seen = [config.video] * (rows * columns // config.vision.merge**2)
    ids = [
        token
        for words in stamps
        for token in (*words, config.vision_start, *seen, config.vision_end)
    ]
    return pad(prompt_plan(config, ids, videos=[grid]), size)


@dataclass(frozen=True)
class Qwen3VL(QwenFamily):
    """Qwen3-VL as a `Family`."""

    timestamps = True
    whole_videos = True
    config: Qwen3VLConfig
    read_config = staticmethod(read_config)

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, IGNORE)

    def rows(self, size: Size) -> int:
        return super().rows(size) + self.clip.per_piece * stamp_rows(self.chat)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        each, clip = self.clip.per_piece, self.clip
        frames = range(start * each, (start + real) * each)
        words, grid = stamps(self.chat, frames, clip.temporal, clip), clip.grid(size, real)
        return video_chunk(self.config, words, grid, pieces * self.rows(size))

    def features(self, params: Params, patches: Array, grids: Grids, mel: Any) -> Features:
        seen = encode(params, self.config, patches, grids)
        return seen.tokens, seen.deep
