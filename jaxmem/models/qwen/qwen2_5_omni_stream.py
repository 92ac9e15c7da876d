"""The Thinker of Qwen2.5-Omni as a `Family` that streams.

The stream is a video with audio: pieces of `seconds_per_chunk` (2 s), in each the frames' tokens,
then those of the audio. `<|vision_bos|><|audio_bos|>` end the prefix at one position, and
`<|audio_eos|><|vision_eos|>` begin every question at another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from jaxmem.kv import AUDIO, VISION
from jaxmem.memory.base import Embeds
from jaxmem.models.base import MediaFormat
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import Files
from jaxmem.models.hf.prompt import Plan, fill, plan
from jaxmem.models.qwen import qwen2_5_omni as family
from jaxmem.models.qwen import qwen2_5_omni_layout as lay
from jaxmem.models.qwen.audio import QwenAudioConfig, token_count
from jaxmem.models.qwen.clip import Size, read_clip
from jaxmem.models.qwen.stream import Inputs, QwenFamily, between
from jaxmem.typing import Float, Int, Params


@dataclass(frozen=True)
class Qwen25Omni(QwenFamily):
    """Qwen2.5-Omni's Thinker; see `Family`.

    Attributes:
      mel: samples to log-mel frames.
    """

    module = family
    config: family.Qwen25OmniConfig
    mel: LogMel

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0, max_pixels: int | None = None) -> Self:
        """Return the member that a checkpoint holds."""
        config = family.read_config(files.config)
        every = Fraction(config.layout.chunk_ticks, config.layout.ticks_per_second)
        more = {"piece_seconds": every, "max_pixels": max_pixels}
        clip = read_clip(files.settings, config.vision, fps, **more)
        mel = read_mel(files.settings, config.sound, config.layout.chunk_ticks, every)
        return cls(config, files.chat, clip, mel)

    @property
    def media(self) -> MediaFormat:
        """Return how video and audio are wanted."""
        clip, mel = self.clip, self.mel
        seconds = float(clip.seconds * clip.per_piece)
        return MediaFormat(float(clip.fps), clip.resized, mel.rate, seconds, mel.past)

    @property
    def audio_tokens(self) -> int:
        """Return the audio tokens of a second."""
        return self.config.layout.ticks_per_second

    def turn(self, question: str) -> Turn:
        """Return the token ids around the video, with those around its audio."""
        layout = self.config.layout
        turn = self.chat.around(question, layout.video)
        return between(turn, (layout.audio_start, layout.audio_end))

    def text_steps(self, ids: np.ndarray) -> Int[np.ndarray, "Q"]:
        """Return how far tokens advance: the pairs that open and close a video share a position."""
        layout = self.config.layout
        pairs = [(layout.vision_start, layout.audio_start), (layout.audio_end, layout.vision_end)]
        found = np.ones(len(ids), np.int32)
        for first, second in pairs:
            found[:-1][(ids[:-1] == first) & (ids[1:] == second)] = 0
        return found

    def rows(self, size: Size) -> int:
        """Return the rows of a piece: its frames, and one of audio for every tick."""
        return self.clip.tokens(size) + self.config.layout.chunk_ticks

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all audio.

        Questions begin after the audio, which lasts to a piece's end.
        """
        omni, (_, rows, columns) = self.config.layout, self.clip.grid(size, 1)
        parts = [
            lay.video_chunk(omni, start + i, rows, columns, self.clip.seconds, omni.chunk_ticks)
            for i in range(real)
        ]
        ids = np.concatenate([part.ids for part in parts])
        pos = np.concatenate([part.pos + i * part.advance[None] for i, part in enumerate(parts)])
        features = {omni.video: (VISION, 0), omni.audio: (AUDIO, pieces * self.clip.tokens(size))}
        return plan(ids, pos, real * parts[0].advance, features)

    def hear(self, samples: np.ndarray, past: np.ndarray, start: int) -> Float[np.ndarray, "J M"]:
        """Return the log-mel frames of pieces [C, n], each heard after what came before it."""
        before = [past if start else None, *samples[:-1]]
        return np.concatenate([self.mel(x, p) for x, p in zip(samples, before, strict=True)])

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        """Return a chunk as rows."""
        patches, grid = self.clip.patches(jnp.asarray(inputs.frames))
        mel = [jnp.asarray(inputs.mel)]
        return fill(
            params["decoder"],
            inputs.plan,
            family.encode(params, self.config, patches, [grid], mel),
        )


def read_mel(
    settings: Mapping[str, Any], sound: QwenAudioConfig, ticks_in: int, every: Fraction
) -> LogMel:
    """Return the log-mel settings of a checkpoint.

    Args:
      settings: of its preprocessor.
      sound: config of the audio encoder.
      ticks_in: audio tokens that a piece must become.
      every: seconds of a piece.

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
