"""`Model`: everything the streaming loop needs to know about a video language model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.sampling import Sampling
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Bool, Int, Params, PyTree


@dataclass(frozen=True)
class MediaFormat:
    """How a model wants its video and audio.

    Attributes:
      fps: frames per second.
      size: (height, width) in pixels, or a function of the native (height, width).
      sample_rate: of mono audio, Hz.
      piece_seconds: length of one aligned piece of frames and samples.
      past_samples: samples before a chunk that `Model.preprocess` needs (overlapping windows).
    """

    fps: float
    size: tuple[int, int] | Callable[[int, int], tuple[int, int]]
    sample_rate: int
    piece_seconds: float
    past_samples: int = 0


class Fitted(NamedTuple):
    """The fields of a `Model` that depend on the size of its frames."""

    tokens_per_piece: int
    question_start: Callable[[int], np.ndarray] | None
    frame: tuple[int, int] | None = None  # rows and columns of a frame's vision tokens
    # A question -> token ids before and after a stream of sound alone, if this is one.
    turn: Callable[[str], tuple[np.ndarray, np.ndarray]] | None = None


@dataclass(frozen=True)
class Encode:
    """`Model.encode`: that of a frozen dataclass, so that equal models share compiled programs."""

    of: Any  # what has the method `encode(params, inputs)`

    def __call__(self, params: Params, inputs: PyTree) -> Embeds:
        """Return a chunk as rows."""
        return self.of.encode(params, inputs)


class Model(NamedTuple):
    """A model as data and pure functions; families differ in these fields only."""

    name: str
    params: Params
    decoder: DecoderConfig
    media: MediaFormat
    tokens_per_piece: int  # rows of a piece, the largest number; 0: see `for_frames`
    # Host side, in the background: pieces of one chunk -> numpy inputs of fixed shape.
    # (frames [C, F, h, w, 3] uint8, samples [C, n] float32, valid [C] bool (real pieces first),
    #  past float32 [past_samples], pieces of the stream before this chunk) -> inputs
    preprocess: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], PyTree]
    # Device side, inside the scan: (params, inputs) -> rows. Static: equal for equal models.
    encode: Callable[[Params, PyTree], Embeds]
    tokenize: Callable[[str], np.ndarray]  # question -> ids; ValueError on unknown words
    detokenize: Callable[[np.ndarray], str]
    end: int | tuple[int, ...] | None = None  # token or tokens that end an answer
    max_new: int = 1  # answer tokens at most
    # An answer ends where its last so many tokens are an earlier run of it; 0: it does not.
    stop_run: int = 0
    sampling: Sampling | None = None  # the checkpoint's own; used only where it is asked for
    pos_dtype: Any = jnp.int32
    text_step: tuple[int, ...] | None = None  # see Spec.step
    ticks_per_second: float | None = None  # of position axis 0, where it is a clock
    # Questions of its own, for memories that score by probes whose text it cannot write:
    # about the present scene, then about the whole stream.
    probes: tuple[str, ...] = ()
    prefix: np.ndarray | None = None  # token ids in front of every stream (chat template)
    note: str = ""  # what a user should know, printed in reports
    # How far text tokens advance the position, in text steps: ids [Q] -> [Q]; None: one each.
    text_steps: Callable[[np.ndarray], np.ndarray | None] | None = None
    # `Embeds.start` of a question asked after n pieces: -> [A]; None: at the end of the last chunk.
    question_start: Callable[[int], np.ndarray] | None = None
    # (height, width) of the frames -> `Fitted`, where the rows depend on that; see `for_frames`.
    for_frames: Callable[[tuple[int, int]], Fitted] | None = None
    audio_tokens: int = 0  # audio tokens in a second, rounded up; 0: no audio input
    timestamps: bool = False  # inserts time stamps between frames
    frame: tuple[int, int] | None = None  # rows and columns of a frame's vision tokens
    # Text without a chat template -> ids; None: the vocabulary is closed.
    tokenize_text: Callable[[str], np.ndarray] | None = None
    answer_start: np.ndarray | None = None  # what the template writes between question and answer
    max_position: int | None = None  # the largest position that it was trained with
    # Options of memories that suit the model, by their names on the command line.
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def penalised_ids(
    model: Model, question: Int[np.ndarray, "Q"], sampling: Sampling | None
) -> Bool[np.ndarray, "V"] | None:
    """Return the prompt tokens to which the repetition penalty applies; None without a penalty.

    Those are the template's text before the video and the `question`, all that follows the video.
    The stream does not count: neither placeholders nor words between its frames.
    """
    if sampling is None or not sampling.penalises:
        return None
    found = np.zeros(model.decoder.vocab, bool)
    found[question] = True
    if model.prefix is not None:
        found[model.prefix] = True
    return found


def for_frames(model: Model, size: tuple[int, int]) -> Model:
    """Return the model for frames of one (height, width), which a stream's shapes depend on.

    (0, 0) is a stream of sound alone: a model that hears then has its own prompt for it, without
    vision tokens.

    Raises:
      ValueError: if the model does not take frames of that size.
    """
    if model.for_frames is None:
        return model
    found = model.for_frames(size)
    if (turn := found.turn) is not None:
        before, after = turn("?")[0], lambda question: turn(question)[1]
        model = model._replace(prefix=before, tokenize=after, timestamps=False)
    return model._replace(
        tokens_per_piece=found.tokens_per_piece,
        question_start=found.question_start,
        frame=found.frame or model.frame,
        media=replace(model.media, size=size),
    )
