"""The Thinker of Qwen2.5-Omni (3B, 7B; arXiv 2503.20215): config, weights, encoders, streaming.

The vision encoder is that of Qwen2.5-VL, the audio encoder Whisper's blocks window by window; how
their tokens are laid out in time is in `jaxmem.models.qwen.qwen2_5_omni_layout`.

The stream is a video with audio: pieces of `seconds_per_chunk` (2 s), in each the frames' tokens,
then those of the audio. `<|vision_bos|><|audio_bos|>` end the prefix at one position, and
`<|audio_eos|><|vision_eos|>` begin every question at another. Sound alone (frames of size (0, 0))
is its tokens between `<|audio_bos|>` and `<|audio_eos|>`, numbered like text.
"""

import math
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
from jaxmem.models.hf.checkpoint import back
from jaxmem.models.hf.family import Files, Names
from jaxmem.models.hf.keys import check_family, number, section, sections, sizes, token_ids
from jaxmem.models.hf.preprocessor import file_of
from jaxmem.models.hf.prompt import Plan, plan
from jaxmem.models.hf.weights import Weight, decoder_table, under
from jaxmem.models.qwen import qwen2_5_omni_layout as lay
from jaxmem.models.qwen.audio import QwenAudioConfig, audio_table, encode_audio, token_count
from jaxmem.models.qwen.audio import read_config as read_audio
from jaxmem.models.qwen.clip import FRAME_TOKENS, Size, read_clip
from jaxmem.models.qwen.config import QWEN2_5_OMNI, TOKEN_IDS, read_decoder
from jaxmem.models.qwen.qwen2_5_omni_layout import OmniLayout
from jaxmem.models.qwen.qwen2_5_vision import Qwen25VisionConfig, encode_vision, vision_table
from jaxmem.models.qwen.qwen2_5_vision import read_config as read_vision
from jaxmem.models.qwen.stream import Features, QwenFamily, sound_plan, without
from jaxmem.typing import Array, Float, Int, Params

MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")
RENAMES = (
    ("thinker.", ""),  # the released checkpoints hold it beside the Talker
    # as transformers 5 holds it in memory
    ("model.visual.", "visual."),
    ("model.audio_tower.", "audio_tower."),
    ("model.language_model.", "model."),
)
IGNORE = (
    "lm_head.weight",  # a copy that tied checkpoints may hold
    "audio_tower.audio_bos_eos_token.weight",  # not used by the released code
    "audio_tower.positional_embedding*",
    "talker.*",
    "token2wav.*",
)
AROUND = ("vision_start", "vision_end", "audio_start", "audio_end")
MEDIA = {name: f"{name}_token_index" for name in ("image", "video", "audio")}
TOKENS = MEDIA | {name: f"{name}_token_id" for name in AROUND}
IDS = {
    "image_token_index": 151655, "video_token_index": 151656, "audio_token_index": 151646,
    "audio_start_token_id": 151647, "audio_end_token_id": 151648, **TOKEN_IDS,
}  # fmt: skip
CLOCK = {"position_id_per_seconds": 25, "seconds_per_chunk": 2}
"""Of a config.json that does not say."""
PARTS = ("text_config", "vision_config", "audio_config")


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
    config = section(config, "thinker_config") or config
    text, vision, audio = sections(config, PARTS)
    encoder, clock = read_vision(vision), {**CLOCK, **config}
    per_second = sizes(clock, {"ticks": "position_id_per_seconds"})["ticks"]
    seconds = number(clock, "seconds_per_chunk", above=0)
    # transformers asks the Thinker whether it is tied, not its text part, which may say otherwise.
    asked = {**config, "text_config": {**text, "tie_word_embeddings": False}}
    decoder = read_decoder(asked, QWEN2_5_OMNI, qkv_bias=True, qk_norm=False)
    layout = OmniLayout(
        **token_ids(config, TOKENS, IDS, decoder.vocab),
        merge=encoder.merge,
        ticks_per_second=per_second,
        chunk_ticks=int(per_second * seconds),
    )
    return Qwen25OmniConfig(decoder, encoder, read_audio(audio), layout)


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
    turns: int = 1  # chunks of the layout in a piece: as many as hold whole windows of the encoder
    read_config = staticmethod(read_config)

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0, max_pixels: int | None = None) -> Self:
        config = read_config(files.config)
        every = Fraction(config.layout.chunk_ticks, config.layout.ticks_per_second)
        mel = read_mel(files.settings, config.sound)
        turns = turns_in(config, mel, every)
        more = {"piece_seconds": turns * every, "max_pixels": max_pixels, "released": FRAME_TOKENS}
        clip = read_clip(files.settings, config.vision, fps, **more)
        return cls(config, files.chat, clip, mel, turns)

    @property
    def names(self) -> Names:
        return Names(weight_table(self.config), RENAMES, IGNORE, back(RENAMES[1:]))

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
        return self._heard(super().turn(question))

    def alone(self, question: str) -> Turn:
        pair = (self.tokens.vision_start, self.tokens.vision_end)
        return self._heard(without(super().turn(question), pair))

    def _heard(self, turn: Turn) -> Turn:
        """Return a prompt with the two tokens that stand around audio."""
        before, after = turn
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
        return super().rows(size) + self.turns * self.tokens.chunk_ticks

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all audio.

        Questions begin after the audio, which lasts to a piece's end.
        """
        omni, (_, rows, columns) = self.tokens, self.clip.grid(size, 1)
        if not any(size):
            return sound_plan(omni.audio, real * self.rows(size))
        parts = [
            lay.video_chunk(
                omni, start * self.turns + i, rows, columns, self.clip.seconds, omni.chunk_ticks
            )
            for i in range(real * self.turns)
        ]
        ids = np.concatenate([part.ids for part in parts])
        pos = np.concatenate([part.pos + i * part.advance[None] for i, part in enumerate(parts)])
        features = {omni.video: (VISION, 0), omni.audio: (AUDIO, pieces * self.clip.tokens(size))}
        return plan(ids, pos, len(parts) * parts[0].advance, features)

    def hear(self, samples: np.ndarray, past: np.ndarray, start: int) -> Float[np.ndarray, "J M"]:
        # Each piece is heard after what came before it.
        before = [past if start else None, *samples[:-1]]
        return np.concatenate([self.mel(x, p) for x, p in zip(samples, before, strict=True)])

    def features(self, params: Params, patches: Any, grids: Grids, mel: Any) -> Features:
        return encode(params, self.config, patches, grids, [jnp.asarray(mel)]), None


def read_mel(settings: Mapping[str, Any], sound: QwenAudioConfig) -> LogMel:
    """Return the log-mel settings of a checkpoint; ValueError if one is no such number."""
    found = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160, **settings}
    names = {"rate": "sampling_rate", "fft": "n_fft", "hop": "hop_length"}
    return LogMel(sound.mel_bins, **sizes(found, names, file_of(settings)))


def turns_in(config: Qwen25OmniConfig, mel: LogMel, every: Fraction) -> int:
    """Return how many chunks of `every` s a piece has: the fewest with whole windows of sound.

    Raises:
      ValueError: if no number of them has, or they become another number of tokens.
    """
    frames, window = every * mel.rate / mel.hop, 2 * config.sound.rows
    ticks = config.layout.chunk_ticks
    count = math.lcm(int(frames), window) // int(frames) if frames >= 1 else 0
    if frames != int(frames) or token_count(config.sound, count * int(frames)) != count * ticks:
        raise ValueError(
            f"{float(every):g} s of sound (seconds_per_chunk) are {float(frames):g} log-mel frames "
            f"and {ticks} tokens (position_id_per_seconds x seconds_per_chunk), but the encoder "
            f"makes one token of 4 frames, in windows of {window} (n_window of audio_config): "
            "these keys of config.json do not fit each other, or hop_length and sampling_rate of "
            "preprocessor_config.json are of another checkpoint."
        )
    return count
