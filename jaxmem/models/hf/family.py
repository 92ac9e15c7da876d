"""`Family`: one class that holds what a kind of checkpoint is, and how it becomes a `Model`.

A new family is a subclass, and a line in `jaxmem.models.load.FAMILIES`.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.sampling import Sampling
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import Encode, Fitted, MediaFormat, Model
from jaxmem.models.hf.chat import Chat, Turn, Uncoded, read_chat, read_sampling
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.keys import section, sizes
from jaxmem.models.hf.preprocessor import OF_VIDEOS, read_settings
from jaxmem.models.hf.weights import Weight
from jaxmem.typing import Params, PyTree

RATE = 16_000  # samples per second of audio that is read and dropped
PROBES = ("What is happening in the video now?", "Describe the video in detail.")
ANY_SIZE = {"min_pixels": 1, "max_pixels": sys.maxsize, OF_VIDEOS: True}
"""Preprocessor settings of an abstract model whose directory has none."""


class Files(NamedTuple):
    """What a family reads of a checkpoint: everything but the weights."""

    config: Mapping[str, Any]  # config.json
    settings: Mapping[str, Any]  # of the preprocessor; {}: there are none
    chat: Chat
    sampling: Sampling | None = None


class Names(NamedTuple):
    """Which tensors a checkpoint holds, in the terms of `checkpoint.load`."""

    table: Mapping[str, Weight]
    renames: Sequence[tuple[str, str]] = ()
    ignore: Sequence[str] = ()
    # Prefixes of the table's names to those of the modules of transformers 5, in the manner of
    # `renames`; None: modules are called as the checkpoint stores them.
    modules: Sequence[tuple[str, str]] | None = None


def read_files(directory: str | Path, *, abstract: bool = False) -> Files:
    """Return the small files of a checkpoint directory.

    Args:
      directory: the checkpoint.
      abstract: config.json is enough: without a tokenizer ids are only counted, and without
        preprocessor settings frames may have any size.

    Raises:
      ValueError: if something is missing.
    """
    config, settings = read_json(directory), read_settings(directory)
    if not abstract:
        return Files(config, settings, read_chat(directory), read_sampling(directory))
    try:
        chat = read_chat(directory)
    except ValueError:
        chat = Uncoded()
    return Files(config, settings or ANY_SIZE, chat)


@dataclass(frozen=True)
class Family(ABC):
    """A member of a family: what its config says, and the functions that a `Model` is made of.

    Two that were read of equal files are equal.

    Attributes:
      config: static description, with `decoder`.
      chat: tokenizer and chat template.
      timestamps: whether time stamps come between the frames.
      stop_run: see `Model`.
    """

    timestamps: ClassVar[bool] = False
    stop_run: ClassVar[int] = 0
    config: Any
    chat: Chat = field(compare=False)

    @classmethod
    @abstractmethod
    def read(cls, files: Files, *, fps: float = 1.0, **options: Any) -> Self:
        """Return the member that a checkpoint holds; `fps` and `options` as in `load.load`.

        Raises:
          ValueError: if something is missing or does not fit.
        """

    @property
    @abstractmethod
    def names(self) -> Names:
        """Return which tensors the checkpoint must hold."""

    @property
    @abstractmethod
    def media(self) -> MediaFormat:
        """Return how video and audio are wanted."""

    @abstractmethod
    def turn(self, question: str) -> Turn:
        """Return the token ids before and after the video of a prompt with one question."""

    @abstractmethod
    def preprocess(
        self,
        frames: np.ndarray,
        samples: np.ndarray,
        valid: np.ndarray,
        past: np.ndarray,
        start: int,
    ) -> PyTree:
        """Return a chunk's inputs, see `Model.preprocess`."""

    @abstractmethod
    def encode(self, params: Params, inputs: Any) -> Embeds:
        """Return a chunk as rows."""

    # What only some families have.

    @property
    def decoder(self) -> DecoderConfig:
        """Return the language model, as `finalise` leaves it."""
        return self.config.decoder

    @property
    def tokens_per_piece(self) -> int:
        """Return the rows of a piece; 0: `for_frames` says."""
        return 0

    @property
    def frame(self) -> tuple[int, int] | None:
        """Return rows and columns of a frame's vision tokens; None: `for_frames` says."""
        return None

    @property
    def audio_tokens(self) -> int:
        """Return the audio tokens of a second, rounded up; 0: no audio input."""
        return 0

    def for_frames(self, size: tuple[int, int]) -> Fitted:
        """Return what depends on the (height, width) of the frames.

        Raises:
          ValueError: if the frames cannot have that size.
        """
        raise NotImplementedError

    def text_steps(self, ids: np.ndarray) -> np.ndarray | None:
        """Return how far text tokens advance the position; None: one step each."""
        del ids
        return None

    def finalise(self, params: Params) -> Params:
        """Return the weights as the model runs them, from those that are stored."""
        return params

    def stored(self, adapters: Params) -> Params:
        """Return pairs a [..., i, r], b [..., r, j] as those of the stored matrices.

        Paths are the table's; the rank of what is stored as one matrix may be a sum.
        """
        return adapters


def model_of(family: Family, files: Files, params: Params, *, name: str, max_new: int) -> Model:
    """Return the model of a family's member, with its weights (finalised) or their shapes.

    Raises:
      ValueError: if the template cannot write a question.
    """
    return Model(
        name=name,
        params=params,
        decoder=family.decoder,
        media=family.media,
        tokens_per_piece=family.tokens_per_piece,
        preprocess=family.preprocess,
        encode=Encode(family),
        tokenize=lambda question: family.turn(question).after,
        detokenize=lambda ids: family.chat.text(ids).strip(),
        end=family.chat.end,
        max_new=max_new,
        stop_run=family.stop_run,
        sampling=files.sampling,
        probes=PROBES,
        prefix=family.turn("?").before,
        text_steps=family.text_steps,
        for_frames=None if family.tokens_per_piece else family.for_frames,
        audio_tokens=family.audio_tokens,
        timestamps=family.timestamps,
        frame=family.frame,
        tokenize_text=family.chat.ids,
        answer_start=answer_start(family),
        max_position=max_position(files.config),
    )


def answer_start(family: Family) -> np.ndarray | None:
    """Return the ids with which prompts of two questions end alike; None if there are none."""
    one, two = (family.turn(question).after[::-1] for question in ("?", "Yes"))
    most = min(len(one), len(two))
    alike = int(np.argmin(np.append(one[:most] == two[:most], False)))
    return one[:alike][::-1].astype(np.int32) if alike else None


def max_position(config: Mapping[str, Any]) -> int | None:
    """Return the largest position of the language model that a config.json names.

    Raises:
      ValueError: if it is no such number.
    """
    key, thinker = "max_position_embeddings", section(config, "thinker_config") or config
    for part in (section(thinker, "text_config"), thinker, config):
        if part.get(key) is not None:
            return sizes(part, {key: key})[key]
    return None
