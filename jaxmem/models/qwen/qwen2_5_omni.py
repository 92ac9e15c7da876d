"""The Thinker of Qwen2.5-Omni (3B, 7B; arXiv 2503.20215): config, weights, encoders, streaming.

The vision encoder is that of Qwen2.5-VL, the audio encoder Whisper's blocks window by window; how
their tokens are laid out in time is in `jaxmem.models.qwen.qwen2_5_omni_layout`.

The stream is a video with audio: pieces of `seconds_per_chunk` (2 s), in each the frames' tokens,
then those of the audio. `<|vision_bos|><|audio_bos|>` end the prefix at one position, and
`<|audio_eos|><|vision_eos|>` begin every question at another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.kv import AUDIO, VISION
from jaxmem.models.encoders.vision_parts import Grids
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.config import check_family, fields
from jaxmem.models.hf.family import Files, Names
from jaxmem.models.hf.prompt import Plan, plan
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen import qwen2_5_omni_layout as lay
from jaxmem.models.qwen.audio import QwenAudioConfig, audio_table, encode_audio, token_count
from jaxmem.models.qwen.audio import read_config as read_audio
from jaxmem.models.qwen.clip import Size, read_clip
from jaxmem.models.qwen.config import read_decoder
from jaxmem.models.qwen.qwen2_5_omni_layout import OmniLayout
from jaxmem.models.qwen.qwen2_5_vision import Qwen25VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen2_5_vision import read_config as read_vision
from jaxmem.models.qwen.stream import Features, QwenFamily
from jaxmem.typing import Array, Float, Int, Params

MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")
RENAMES = (("thinker.", ""),)
"""The released checkpoints hold the Thinker beside the Talker."""
IGNORE = (
    "lm_head.weight",  # a copy that tied checkpoints may hold
    "audio_tower.audio_bos_eos_token.weight",  # not used by the released code
    "audio_tower.positional_embedding*",
    "talker.*",
    "token2wav.*",
)
AROUND = ("vision_start", "vision_end", "audio_start", "audio_end")
TOKENS = {name: f"{name}_token_index" for name in ("image", "video", "audio")}
TOKENS |= {name: f"{name}_token_id" for name in AROUND}
PARTS = {"text": "text_config", "vision": "vision_config", "audio": "audio_config"}


@dataclass(frozen=True)
class Qwen25OmniConfig:
    """Static description of the model: its language model, encoders, and layout of tokens."""

    decoder: DecoderConfig
    vision: Qwen25VisionConfig
    sound: QwenAudioConfig
    layout: OmniLayout


def read_config(config: Mapping[str, Any]) -> Qwen25OmniConfig:
    """Return the Thinker of a config.json or `thinker_config`; ValueError if not implemented."""
    check_family(config, MODEL_TYPES)
    config = config.get("thinker_config") or config
    tokens, parts = fields(config, TOKENS), fields(config, PARTS)
    vision = read_vision(parts["vision"])
    per_second = config.get("position_id_per_seconds", 25)
    layout = OmniLayout(
        **tokens,
        merge=vision.merge,
        ticks_per_second=per_second,
        chunk_ticks=int(per_second * config.get("seconds_per_chunk", 2)),
    )
    decoder = read_decoder(config, qkv_bias=True, qk_norm=False)
    return Qwen25OmniConfig(decoder, vision, read_audio(parts["audio"]), layout)


def weight_table(config: Qwen25OmniConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision", "audio"}, for names after `RENAMES`."""
    table = under("decoder", decoder_table(config.decoder))
    table |= under("vision", vision_table(config.vision, fused=False))
    return table | under("audio", audio_table(config.sound))


def encode(
    params: Params,
    config: Qwen25OmniConfig,
    patches: Float[Array, "N I"] | None,
    grids: Grids,
    clips: Sequence[Float[Array, "J M"]] = (),
) -> Float[Array, "m E"]:
    """Return the features of pictures and videos, then those of clips of log-mel frames."""
    found = []
    if patches is not None:
        found.append(encode_vision(params["vision"], config.vision, patches, grids)[0])
    if clips:
        found.append(encode_audio(params["audio"], config.sound, clips)[0])
    return jnp.concatenate(found)


@dataclass(frozen=True)
class Qwen25Omni(QwenFamily):
    """Qwen2.5-Omni's Thinker as a `Family`."""

    config: Qwen25OmniConfig
    mel: LogMel  # samples to log-mel frames
    read_config = staticmethod(read_config)

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0, max_pixels: int | None = None) -> Self:
        config = read_config(files.config)
        every = Fraction(config.layout.chunk_ticks, config.layout.ticks_per_second)
        more = {"piece_seconds": every, "max_pixels": max_pixels}
        clip = read_clip(files.settings, config.vision, fps, **more)
        mel = read_mel(files.settings, config.sound, config.layout.chunk_ticks, every)
        return cls(config, files.chat, clip, mel)

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, IGNORE)

    @property
    def tokens(self) -> OmniLayout:
        return self.config.layout

    @property
    def audio_format(self) -> tuple[int, int]:
        return self.mel.rate, self.mel.past

    @property
    def audio_tokens(self) -> int:
        return self.config.layout.ticks_per_second

    def turn(self, question: str) -> Turn:
        # The audio within the video has two tokens of its own around it.
        before, after = super().turn(question)
        first, last = np.array([self.tokens.audio_start, self.tokens.audio_end], np.int32)
        return Turn(np.append(before, first), np.insert(after, 0, last))

    def text_steps(self, ids: np.ndarray) -> Int[np.ndarray, "Q"]:
        # The pairs that open and close a video share a position.
        layout = self.tokens
        pairs = [(layout.vision_start, layout.audio_start), (layout.audio_end, layout.vision_end)]
        found = np.ones(len(ids), np.int32)
        for first, second in pairs:
            found[:-1][(ids[:-1] == first) & (ids[1:] == second)] = 0
        return found

    def rows(self, size: Size) -> int:
        return super().rows(size) + self.tokens.chunk_ticks

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all audio.

        Questions begin after the audio, which lasts to a piece's end.
        """
        omni, (_, rows, columns) = self.tokens, self.clip.grid(size, 1)
        parts = [
            lay.video_chunk(omni, start + i, rows, columns, self.clip.seconds, omni.chunk_ticks)
            for i in range(real)
        ]
        ids = np.concatenate([part.ids for part in parts])
        pos = np.concatenate([part.pos + i * part.advance[None] for i, part in enumerate(parts)])
        features = {omni.video: (VISION, 0), omni.audio: (AUDIO, pieces * self.clip.tokens(size))}
        return plan(ids, pos, real * parts[0].advance, features)

    def hear(self, samples: np.ndarray, past: np.ndarray, start: int) -> Float[np.ndarray, "J M"]:
        # Each piece is heard after what came before it.
        before = [past if start else None, *samples[:-1]]
        return np.concatenate([self.mel(x, p) for x, p in zip(samples, before, strict=True)])

    def features(self, params: Params, patches: Array, grids: Grids, mel: Any) -> Features:
        return encode(params, self.config, patches, grids, [jnp.asarray(mel)]), None


def read_mel(
    settings: Mapping[str, Any], sound: QwenAudioConfig, ticks_in: int, every: Fraction
) -> LogMel:
    """Return the log-mel settings of a checkpoint whose pieces of `every` s have `ticks_in` tokens.

    Raises:
      ValueError: if the encoder makes another number of tokens, or cuts windows across pieces.
    """
    mel = LogMel(
        sound.mel_bins,
        rate=settings.get("sampling_rate", 16_000),
        fft=settings.get("n_fft", 400),
        hop=settings.get("hop_length", 160),
    )
    frames = every * mel.rate / mel.hop
    if frames != int(frames) or frames % (2 * sound.rows) or (
        token_count(sound, int(frames)) != ticks_in
    ):  # fmt: skip
        raise ValueError(
            f"a piece of {float(every):g} s has {float(frames):g} log-mel frames, expected a "
            f"multiple of the encoder's window ({2 * sound.rows}) that becomes {ticks_in} tokens "
            "(position_id_per_seconds x seconds_per_chunk of config.json): use the config.json and "
            "the preprocessor settings of one checkpoint."
        )
    return mel
