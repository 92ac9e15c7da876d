"""Qwen2.5-VL (3B, 7B, 32B, 72B; arXiv 2502.13923): config, weights, token layout, positions.

A video is `<|vision_start|>`, its tokens frame by frame, `<|vision_end|>`. A token stands at (tick,
row, column) after the start of the video, where a frame's tick is
floor(frame * seconds per frame * ticks per second). Text then goes on after the largest of all
three axes; that is the rule of the original release (transformers 4.50.3) and the default here.
Later versions of transformers changed it, see `Rule`.

The chat template's video is the stream; a piece of it is one frame of patches (two pictures).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxmem.models.encoders.vision_parts import Grid, Grids, as_grids
from jaxmem.models.hf.checkpoint import back
from jaxmem.models.hf.family import Names
from jaxmem.models.hf.keys import check_family, sections, sizes, token_ids
from jaxmem.models.hf.prompt import Ids, Plan
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen import mrope
from jaxmem.models.qwen.clip import Size
from jaxmem.models.qwen.config import QWEN2_5_VL, TOKEN_IDS, TOKENS, VLConfig, read_decoder
from jaxmem.models.qwen.qwen2_5_vision import Qwen25VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen2_5_vision import read_config as read_vision
from jaxmem.models.qwen.stream import Features, QwenFamily, vision_plan
from jaxmem.typing import Array, Float, Int, Params

MODEL_TYPES = ("qwen2_5_vl",)
RENAMES = (("model.visual.", "visual."), ("model.language_model.", "model."))
"""Names of checkpoints that newer versions of transformers saved, to those of the release."""
IGNORE = ("lm_head.weight",)
"""A copy of the embedding that tied checkpoints may hold."""

Rule = Literal["4.50", "4.57", "5.23"]
"""Version of transformers whose positions are wanted.

"4.50" is the release. "4.57" truncates the seconds per frame to a whole number first. "5.23" lets
text of a prompt go on at max(rows, columns) after the start of a video, even if its ticks went
further; what follows the prompt stands after the largest position in all of them.
"""


@dataclass(frozen=True)
class TickedConfig(VLConfig):
    """Static description of a model whose videos have a clock on the temporal axis."""

    ticks_per_second: int = 2


@dataclass(frozen=True)
class Qwen25VLConfig(TickedConfig):
    """Static description of the model."""

    vision: Qwen25VisionConfig


def read_config(config: Mapping[str, Any]) -> Qwen25VLConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    (vision,) = sections(config, ("vision_config",))
    decoder = read_decoder(config, QWEN2_5_VL, qkv_bias=True, qk_norm=False)
    ticks = {"ticks_per_second": "tokens_per_second"}
    return Qwen25VLConfig(
        decoder=decoder,
        vision=read_vision(vision),
        **sizes({"tokens_per_second": 4, **vision}, ticks, "vision_config"),
        **token_ids(config, TOKENS, TOKEN_IDS, decoder.vocab),
    )


def weight_table(config: Qwen25VLConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision"}, for names after `RENAMES`."""
    decoder = under("decoder", decoder_table(config.decoder))
    return decoder | under("vision", vision_table(config.vision))


def _rule(config: TickedConfig, rule: Rule, grid: Grid, seconds: mrope.Seconds) -> mrope.Block:
    """Return the positions of a picture or a video."""
    frames, rows, columns = grid
    rows, columns = rows // config.vision.merge, columns // config.vision.merge
    seconds = int(seconds) if rule == "4.57" else seconds
    times = mrope.ticks(np.arange(frames), seconds, config.ticks_per_second)
    pos = mrope.grid_positions(times, rows, columns)
    return mrope.Block(pos, max(rows, columns)) if rule == "5.23" else mrope.to_the_end(pos)


def positions(
    config: TickedConfig,
    ids: Ids,
    *,
    images: Grids = (),
    videos: Grids = (),
    seconds: Sequence[mrope.Seconds] | None = None,
    rule: Rule = "4.50",
) -> tuple[Int[np.ndarray, "T 3"], int]:
    """Return the positions of a prompt, and where the first token of the answer stands.

    Args:
      ids: token ids without padding.
      images: (1, h, w) of every picture, in patches.
      videos: (F, h, w) of every video, in patches.
      seconds: between the frames of each video (`second_per_grid_ts`: pictures per patch divided
        by pictures per second); None: 1. A Fraction is exact, see `mrope.ticks`.
      rule: whose positions.

    Raises:
      ValueError: if ids and grids do not fit together, or the rule is unknown.
    """
    if rule not in ("4.50", "4.57", "5.23"):
        raise ValueError(f'rule must be "4.50", "4.57" or "5.23", got {rule!r}.')
    merge = config.vision.merge
    images, videos = as_grids(images, merge), as_grids(videos, merge)
    gap = mrope.gaps(seconds, videos)
    blocks = {
        config.image: [_rule(config, rule, grid, 0.0) for grid in images],
        config.video: [_rule(config, rule, *video) for video in zip(videos, gap, strict=True)],
    }
    pos, after = mrope.join(ids, blocks)
    return pos, max(after, int(pos.max(initial=-1)) + 1)


def prompt_plan(config: TickedConfig, ids: Ids, **media: Any) -> Plan:
    """Return the plan of a whole prompt; `media` as in `positions`.

    Features are those of all pictures, then those of all videos.
    """
    return vision_plan(config, ids, *positions(config, ids, **media), media.get("images", ()))


def encode(
    params: Params, config: Qwen25VLConfig, patches: Float[Array, "N I"], grids: Grids
) -> Float[Array, "m E"]:
    """Return the features of pictures and videos, for `prompt.fill`."""
    return encode_vision(params["vision"], config.vision, patches, grids)[0]


def video_chunk(config: TickedConfig, first: int, grid: Grid, seconds: mrope.Seconds) -> Plan:
    """Return the plan of some frames of an endless video.

    The stream's position is where the frames before it ended: (begin + tick of the first frame,
    begin, begin). Rows and columns do not advance while the video goes on.

    Args:
      first: number of the first frame.
      grid: (F, h, w) of the chunk, in patches.
      seconds: between frames; a Fraction for a stream of hours.
    """
    merge = config.vision.merge
    ((frames, rows, columns),) = as_grids([grid], merge)
    times = mrope.ticks(np.arange(first, first + frames + 1), seconds, config.ticks_per_second)
    times = times - times[0]
    pos = mrope.as_int32(mrope.grid_positions(times[:-1], rows // merge, columns // merge))
    return vision_plan(config, [config.video] * len(pos), pos, [times[-1], 0, 0])


def text_after(
    config: TickedConfig, frames: int, rows: int, columns: int, seconds: mrope.Seconds
) -> Int[np.ndarray, "3"]:
    """Return `Embeds.start` of text after a video, relative to the position its chunks reached.

    The largest coordinate of their sum is where the text stands. It stays sensible where a memory
    has numbered the stream anew: nothing in it grows with the stream.

    Args:
      frames: that were streamed; 0: text goes on at the base.
      rows: of patches in a frame; `columns` likewise.
      seconds: between frames.
    """
    if not frames:
        return np.zeros(3, np.int32)
    merge = config.vision.merge
    last, end = mrope.ticks(np.array([frames - 1, frames]), seconds, config.ticks_per_second)
    return mrope.as_int32(np.array([last + 1 - end, rows // merge, columns // merge]))


@dataclass(frozen=True)
class TickedFamily(QwenFamily):
    """A model whose frames stand at the ticks of a clock, without words about the time."""

    config: TickedConfig

    @property
    def seconds(self) -> mrope.Seconds:
        """Return the time from one frame of patches to the next, as positions count it."""
        return self.clip.seconds

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        first = start * self.clip.per_piece
        return video_chunk(self.config, first, self.clip.grid(size, real), self.seconds)

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        return text_after(self.config, *self.clip.grid(size, pieces), self.seconds)


@dataclass(frozen=True)
class Qwen25VL(TickedFamily):
    """Qwen2.5-VL as a `Family`."""

    config: Qwen25VLConfig
    read_config = staticmethod(read_config)

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, IGNORE, back(RENAMES))

    def features(self, params: Params, patches: Array, grids: Grids, mel: Any) -> Features:
        return encode(params, self.config, patches, grids), None
