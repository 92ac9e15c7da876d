"""video-SALMONN 2+: a Qwen vision-language model that also hears.

Sound is cut into clips of 30 s and padded to whole ones. Whisper's encoder makes 50 rows a second,
a windowed Q-Former reads each 25 of them with one query, and a linear map takes what it read to the
decoder: 2 tokens a second. The bases are Qwen2.5-VL (3B, 7B, 72B) and, as OmniMem runs it, Qwen3-VL
(4B, 8B); `jaxmem.models.salmonn.layout` has the layout of each.

The names of the released tensors and config keys are not known here: `MODEL_TYPES`, `NAMES` and the
keys that `read_config` adds to the base's are this project's own.

Whisper hears a clip of 30 s at once, so a piece of the stream is 30 s of frames with their audio:
exactly what one prompt over the whole video holds. Shorter pieces (`piece_seconds`) answer sooner;
each is then heard by itself with silence after it, as a short video is, and no longer what the
prompt over the whole video holds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig, linear
from jaxmem.models.encoders import qformer, whisper
from jaxmem.models.encoders.qformer import QFormerConfig
from jaxmem.models.encoders.vision_parts import Grids
from jaxmem.models.encoders.whisper import WhisperConfig
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.config import check_family, check_keys
from jaxmem.models.hf.family import Files, Names
from jaxmem.models.hf.prompt import Plan
from jaxmem.models.hf.weights import Weight, dense, under
from jaxmem.models.qwen import qwen2_5_vl, qwen3_vl
from jaxmem.models.qwen.clip import Size, read_clip
from jaxmem.models.qwen.qwen2_5_vl import Qwen25VLConfig
from jaxmem.models.qwen.qwen3_vl import Qwen3VLConfig, stamp_rows, stamps
from jaxmem.models.qwen.stream import Features, QwenFamily
from jaxmem.models.salmonn import layout as lay
from jaxmem.typing import Array, Float, Int, Params

BASES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}
PREFIX = "video_salmonn_2_plus_"
MODEL_TYPES = tuple(PREFIX + base for base in BASES)
NAMES = {
    "sound": "audio_encoder.",
    "qformer": "audio_qformer.",
    "queries": "audio_query_tokens",
    "projector": "audio_projector",
}
"""What stored names begin with; the base's stand beside them unchanged."""
WHISPER_LARGE_V3 = {
    "model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120, "num_mel_bins": 128, "max_source_positions": 1500,
}  # fmt: skip
QFORMER = {
    "hidden_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # fmt: skip
"""The released code's defaults; the inner width of the MLP is that of BERT's base model."""
ROWS_PER_SECOND = 50  # of Whisper's encoder


@dataclass(frozen=True)
class SalmonnConfig:
    """Static description of the model."""

    base: Qwen25VLConfig | Qwen3VLConfig  # the vision-language model
    sound: WhisperConfig  # Whisper's encoder
    qformer: QFormerConfig  # what reads its rows
    audio: int  # placeholder token of sound

    @property
    def decoder(self) -> DecoderConfig:
        """Return the language model."""
        return self.base.decoder

    @property
    def family(self) -> Any:
        """Return the module of the base."""
        return qwen3_vl if isinstance(self.base, Qwen3VLConfig) else qwen2_5_vl

    @property
    def per_second(self) -> Fraction:
        """Return the tokens of sound in a second."""
        return Fraction(ROWS_PER_SECOND * self.qformer.queries, self.qformer.window)

    @property
    def clip_tokens(self) -> int:
        """Return the tokens of a clip."""
        return self.sound.rows // self.qformer.window * self.qformer.queries


def read_config(config: Mapping[str, Any]) -> SalmonnConfig:
    """Return the model that a config.json describes.

    It is the base's with `model_type` after `PREFIX`, `audio_token_id`, and, where they differ from
    `WHISPER_LARGE_V3` and `QFORMER`, `audio_config` (Whisper's keys) and `qformer_config` (those of
    BERT, and `window` and `queries`).

    Raises:
      ValueError: if it is of another family or asks for something that is not implemented.
    """
    check_family(config, MODEL_TYPES)
    check_keys(config, ("audio_token_id",))
    base = config["model_type"].removeprefix(PREFIX)
    sound = whisper.read_config(config.get("audio_config") or WHISPER_LARGE_V3)
    former = {**QFORMER, **(config.get("qformer_config") or {})}
    former["encoder_hidden_size"] = sound.stack.width
    window, queries = former.pop("window", ROWS_PER_SECOND // 2), former.pop("queries", 1)
    if window < 1 or sound.rows % window:
        raise ValueError(
            f"qformer_config.window is {window}, expected a divisor of the {sound.rows} rows of a "
            "clip (max_source_positions)."
        )
    return SalmonnConfig(
        base=BASES[base].read_config({**config, "model_type": base}),
        sound=sound,
        qformer=qformer.read_config(former, window=window, queries=queries),
        audio=config["audio_token_id"],
    )


def weight_table(config: SalmonnConfig) -> dict[str, Weight]:
    """Return the base's table with {"sound", "qformer", "projector"}."""
    former = qformer.weight_table(config.qformer, NAMES["queries"], NAMES["qformer"])
    width, wide = config.qformer.width, config.decoder.width
    return {
        **config.family.weight_table(config.base),
        **under("sound", whisper.weight_table(config.sound, NAMES["sound"])),
        **under("qformer", former),
        **dense("projector", NAMES["projector"], width, wide),
    }


def hear(
    params: Params, config: SalmonnConfig, logmel: Float[Array, "c J M"]
) -> Float[Array, "c m E"]:
    """Return the tokens of clips, `clip_tokens` for each whole one."""
    rows, _ = whisper.encode(params["sound"], config.sound, logmel)
    return linear(qformer.encode(params["qformer"], config.qformer, rows), params["projector"])


@dataclass(frozen=True)
class Salmonn(QwenFamily):
    """video-SALMONN 2+ on Qwen2.5-VL, as a `Family`."""

    max_pixels: ClassVar[int] = 61_250  # of a frame, as released
    config: SalmonnConfig
    sounds: int  # audio tokens of a piece
    read_config = staticmethod(read_config)

    @classmethod
    def read(
        cls,
        files: Files,
        *,
        fps: float = 1.0,
        max_pixels: int | None = None,
        piece_seconds: float | None = None,
        **more: Any,
    ) -> Self:
        """Return the member that a checkpoint holds.

        Args:
          fps: pictures per second.
          max_pixels: of a frame; None: as released.
          piece_seconds: length of a piece; None: what the audio encoder hears at once.
          more: of the base.
        """
        config = read_config(files.config)
        every = Fraction(config.clip_tokens) / config.per_second
        if piece_seconds is not None:
            every = Fraction(piece_seconds).limit_denominator(1000)
        sounds = tokens_in(config, every)
        clip = read_clip(
            files.settings,
            config.base.vision,
            fps,
            piece_seconds=every,
            max_pixels=cls.max_pixels if max_pixels is None else max_pixels,
            whole_videos=cls.whole_videos,
        )
        return cls(config, files.chat, clip, sounds, **more)

    @property
    def names(self) -> Names:
        base = self.config.family
        return Names(weight_table(self.config), base.RENAMES, base.IGNORE)

    @property
    def tokens(self) -> Qwen25VLConfig | Qwen3VLConfig:
        return self.config.base

    @property
    def mel(self) -> LogMel:
        """Return what makes log-mel frames."""
        return LogMel(self.config.sound.mel_bins)

    @property
    def audio_format(self) -> tuple[int, int]:
        return self.mel.rate, 0

    @property
    def audio_tokens(self) -> int:
        return math.ceil(self.config.per_second)

    def rows(self, size: Size) -> int:
        return super().rows(size) + self.sounds

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        """Return the tokens of frames of the stream."""
        ends, seconds = range(first, first + frames + 1), self.clip.seconds
        sounds = lay.shares(self.config, ends, seconds)
        return lay.aligned_video(self.config, ends, sounds, self.clip.cells(size), seconds)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all audio."""
        each = self.clip.per_piece
        video = self.video(size, start * each, real * each)
        return lay.video_plan(self.config, video, pieces * self.clip.tokens(size))

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        frames = pieces * self.clip.per_piece
        return lay.text_after(self.config, frames, self.clip.cells(size), self.clip.seconds)

    def hear(self, samples: np.ndarray, past: np.ndarray, start: int) -> Float[np.ndarray, "C J M"]:
        # Each piece by itself, with silence up to a whole clip.
        del past, start
        whole = 2 * self.config.sound.rows * self.mel.hop
        samples = np.pad(samples, ((0, 0), (0, whole - samples.shape[1])))
        return np.stack([self.mel(piece, None) for piece in samples])

    def features(self, params: Params, patches: Array, grids: Grids, mel: Any) -> Features:
        """Return the features of the frames, then of the audio; DeepStack adds to the frames."""
        seen, deep = self.config.family.encode(params, self.config.base, patches, grids), None
        heard = hear(params, self.config, jnp.asarray(mel))[:, : self.sounds]
        heard = heard.reshape(-1, heard.shape[-1])
        if self.timestamps:
            seen, deep = seen.tokens, jnp.pad(seen.deep, ((0, 0), (0, len(heard)), (0, 0)))
        return jnp.concatenate([seen, heard.astype(seen.dtype)]), deep


@dataclass(frozen=True)
class TimedSalmonn(Salmonn):
    """video-SALMONN 2+ on Qwen3-VL, with the time in words."""

    timestamps = True
    whole_videos = True
    max_pixels = 176_400
    # Frames (of two pictures) under one time stamp. The released layout takes 1 for videos of up to
    # 256 frames, and as many more as keep within 256 stamps.
    group: int = 1

    def __post_init__(self):
        if self.group < 1 or self.clip.per_piece % self.group:
            raise ValueError(
                f"group is {self.group}, expected a divisor of the {self.clip.per_piece} frames of "
                "a piece."
            )

    def rows(self, size: Size) -> int:
        return super().rows(size) + self.clip.per_piece // self.group * stamp_rows(self.chat)

    def video(self, size: Size, first: int, frames: int) -> lay.Video:
        ends, wide = lay.group_ends(first, frames, self.group), self.clip.temporal * self.group
        numbers = range(first // self.group, (first + frames) // self.group)
        words = stamps(self.chat, numbers, wide, self.clip)
        sounds = lay.shares(self.config, ends, self.clip.seconds)
        return lay.timed_video(self.config, words, ends, sounds, self.clip.cells(size))

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        # Text goes on where the last frame's closing token ended.
        return QwenFamily.question_start(self, size, pieces)


def tokens_in(config: SalmonnConfig, seconds: Fraction) -> int:
    """Return the audio tokens of a piece; ValueError if that is no whole number within a clip."""
    count = seconds * config.per_second
    if count != int(count) or not 0 < count <= config.clip_tokens:
        raise ValueError(
            f"piece_seconds is {float(seconds):g}, expected a multiple of "
            f"{float(1 / config.per_second):g} s up to {config.clip_tokens} of them: what the "
            "audio encoder hears at once."
        )
    return int(count)
