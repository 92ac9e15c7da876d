"""A Qwen2.5-Omni checkpoint directory (its Thinker) as a `Model` that the streaming loop takes.

The stream is a video with sound: pieces of `seconds_per_chunk` (2 s), in each the frames' tokens,
then those of the sound. `<|vision_bos|><|audio_bos|>` end the prefix at one position, and
`<|audio_eos|><|vision_eos|>` begin every question at another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmem.kv import AUDIO, VISION
from jaxmem.memory.base import Embeds
from jaxmem.models.base import MediaFormat
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.hf.checkpoint import read_json
from jaxmem.models.hf.family import Parts
from jaxmem.models.hf.preprocessor import read_settings
from jaxmem.models.hf.prompt import Plan, fill, plan
from jaxmem.models.qwen import qwen2_5_omni as family
from jaxmem.models.qwen import qwen2_5_omni_layout as lay
from jaxmem.models.qwen.audio import QwenAudioConfig, token_count
from jaxmem.models.qwen.clip import Clip, Size, read_clip
from jaxmem.models.qwen.qwen2_5_omni import Qwen25OmniConfig
from jaxmem.models.qwen.qwen2_5_omni_layout import OmniLayout
from jaxmem.models.qwen.stream import Inputs, qwen_parts, turn_of
from jaxmem.typing import Float, Int, Params


@dataclass(frozen=True)
class Layout:
    """See `qwen_model.Layout`."""

    omni: OmniLayout
    clip: Clip

    def rows(self, size: Size) -> int:
        """Return the rows of a piece: its frames, and one of sound for every tick."""
        return self.clip.tokens(size) + self.omni.chunk_ticks

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk; features are those of all frames, then of all sound."""
        omni, (_, rows, columns) = self.omni, self.clip.grid(size, 1)
        parts = [
            lay.video_chunk(omni, start + i, rows, columns, self.clip.seconds, omni.chunk_ticks)
            for i in range(real)
        ]
        ids = np.concatenate([part.ids for part in parts])
        pos = np.concatenate([part.pos + i * part.advance[None] for i, part in enumerate(parts)])
        features = {omni.video: (VISION, 0), omni.audio: (AUDIO, pieces * self.clip.tokens(size))}
        return plan(ids, pos, real * parts[0].advance, features)

    def after(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return zeros: the closing tokens stand behind the sound, which lasts to a piece's end."""
        return np.zeros(3, np.int32)


def encode(config: Qwen25OmniConfig, clip: Clip, params: Params, inputs: Inputs) -> Embeds:
    """Return a chunk as rows."""
    patches, grid = clip.patches(jnp.asarray(inputs.frames))
    features = family.encode(params, config, patches, [grid], [jnp.asarray(inputs.mel)])
    return fill(params["decoder"], inputs.plan, features)


def hear(
    mel: LogMel, samples: np.ndarray, past: np.ndarray, start: int
) -> Float[np.ndarray, "J M"]:
    """Return the log-mel frames of pieces [C, n], each heard by itself after what came before."""
    before = [past if start else None, *samples[:-1]]
    return np.concatenate([mel(x, p) for x, p in zip(samples, before, strict=True)])


def steps(layout: OmniLayout, ids: np.ndarray) -> Int[np.ndarray, "Q"]:
    """Return how far tokens advance: the two that open a video, and those that close it, share."""
    pairs = [(layout.vision_start, layout.audio_start), (layout.audio_end, layout.vision_end)]
    found = np.ones(len(ids), np.int32)
    for first, second in pairs:
        found[:-1][(ids[:-1] == first) & (ids[1:] == second)] = 0
    return found


def read_mel(
    directory: str | Path, sound: QwenAudioConfig, ticks_in: int, every: Fraction
) -> LogMel:
    """Return the log-mel settings of a directory.

    Args:
      directory: the checkpoint.
      sound: config of the audio encoder.
      ticks_in: tokens of sound that a piece must become.
      every: seconds of a piece.

    Raises:
      ValueError: if the encoder makes another number of tokens, or cuts windows across pieces.
    """
    found = read_settings(directory)
    mel = LogMel(
        sound.mel_bins,
        rate=found.get("sampling_rate", 16_000),
        fft=found.get("n_fft", 400),
        hop=found.get("hop_length", 160),
    )
    frames = every * mel.rate / mel.hop
    if frames != int(frames) or frames % (2 * sound.window) or (
        token_count(sound, int(frames)) != ticks_in
    ):  # fmt: skip
        raise ValueError(
            f"a piece of {float(every):g} s has {float(frames):g} log-mel frames, expected a "
            f"multiple of the encoder's window ({2 * sound.window}) that becomes {ticks_in} tokens "
            "(position_id_per_seconds x seconds_per_chunk of config.json): use the config.json and "
            "the preprocessor settings of one checkpoint."
        )
    return mel


def read_parts(directory: str | Path, *, fps: float = 1.0, max_pixels: int | None = None) -> Parts:
    """Return the parts of a checkpoint directory; the arguments are those of `load.load`.

    Raises:
      ValueError: if something is missing or does not fit.
    """
    config, chat = family.read_config(read_json(directory)), read_chat(directory)
    omni = config.layout
    every = Fraction(omni.chunk_ticks, omni.ticks_per_second)
    clip = read_clip(directory, config.vision, fps, piece_seconds=every, max_pixels=max_pixels)
    mel = read_mel(directory, config.sound, omni.chunk_ticks, every)
    parts = qwen_parts(
        family,
        config,
        chat,
        clip,
        Layout(omni, clip),
        turn_of(chat, omni.video, add=(omni.audio_start, omni.audio_end)),
        partial(encode, config, clip),
        media=MediaFormat(float(clip.fps), clip.resized, mel.rate, float(every), mel.past),
        hear=partial(hear, mel),
        steps=partial(steps, omni),
    )
    return replace(parts, audio_tokens=omni.ticks_per_second)
