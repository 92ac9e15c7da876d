"""`Model`: everything the streaming loop needs to know about a video language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Rows
from jaxmem.models.decoder import DecoderConfig
from jaxmem.typing import Params, PyTree


@dataclass(frozen=True)
class MediaFormat:
    """How a model wants its video and sound.

    Attributes:
      fps: frames per second.
      size: (height, width) in pixels, or a function of the native (height, width).
      sample_rate: of mono sound, Hz.
      piece_seconds: length of one aligned piece of frames and samples.
      past_samples: samples before a chunk that `Model.pack` needs (overlapping windows).
    """

    fps: float
    size: tuple[int, int] | Callable[[int, int], tuple[int, int]]
    sample_rate: int
    piece_seconds: float
    past_samples: int = 0


class Model(NamedTuple):
    """A model as data and pure functions; families differ in these fields only."""

    name: str
    params: Params
    decoder: DecoderConfig
    media: MediaFormat
    tokens_per_piece: int
    # Host side, in the background: pieces of one chunk -> numpy inputs of fixed shape.
    # (frames [C, F, h, w, 3] uint8, samples [C, n] float32, valid [C] bool,
    #  past float32 [past_samples]) -> inputs
    pack: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], PyTree]
    # Device side, inside the scan: (params, inputs) -> rows
    encode: Callable[[Params, PyTree], Rows]
    tokenize: Callable[[str], np.ndarray]  # question -> ids; ValueError on unknown words
    detokenize: Callable[[np.ndarray], str]
    end: int | None = None  # token that ends an answer
    max_new: int = 1  # answer tokens at most
    pos_dtype: Any = jnp.int32
    text_step: tuple[int, ...] | None = None  # see Spec.text_step
    ticks_per_second: float | None = None  # of position axis 0, where it is a clock
    # Generic questions for memories that score by probes, most general first.
    probes: tuple[str, ...] = ()
    prefix: np.ndarray | None = None  # token ids in front of every stream (chat template)
    note: str = ""  # what a user should know, printed in reports
