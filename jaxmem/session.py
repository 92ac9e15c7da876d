"""`Session`: a thin convenience for notebooks and command lines over the pure functions.

It buffers pieces of video and sound into chunks, feeds them to `jaxmem.loop`, and asks.
Everything it holds is reachable: `session.carry` is the live state, a plain pytree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from jaxmem.decoder.program import layers_of
from jaxmem.decoder.step import make_prefix
from jaxmem.kv import KV
from jaxmem.loop import (
    Carry,
    Program,
    Sampling,
    ask,
    begin_answer,
    continue_answer,
    decoder_of,
    init_carry,
    make_program,
    question_rows,
    so_far,
    spec_of,
    stream,
)
from jaxmem.memory.base import Embeds, Memory, Spec, State, nbytes
from jaxmem.models.base import Model, said_by
from jaxmem.models.text_streamer import Growing
from jaxmem.typing import Array, Bool, Float, Int, PyTree

TOKENS_AT_ONCE = 4
"""Written between two looks at a growing answer: about a few words."""


class PieceLike(Protocol):
    """What a media reader yields: frames [F, h, w, 3] uint8 and samples [n] float32."""

    @property
    def frames(self) -> np.ndarray:
        """Return the piece's frames."""
        ...

    @property
    def samples(self) -> np.ndarray:
        """Return the piece's samples."""
        ...


@dataclass(frozen=True)
class Reply:
    """An answer with what it cost.

    Attributes:
      text: the answer's words.
      seconds: from the question to the answer's last token, in seconds.
      logits: float32 [V] of the first answer token.
    """

    text: str
    seconds: float
    logits: np.ndarray


def model_spec(model: Model, chunk: int) -> Spec:
    """Return the `Spec` of a model's streams.

    Keys and values are held in the dtype of the weights.

    Args:
      model: what sees and answers.
      chunk: T, tokens written at once.
    """
    return spec_of(
        model.decoder,
        chunk=chunk,
        prefix=0 if model.prefix is None else len(model.prefix),
        dtype=decoder_of(model.params)["embedding"]["embedding"].dtype,
        pos_dtype=model.pos_dtype,
        text_step=model.text_step,
    )


def pinned(model: Model, program: Program) -> KV | None:
    """Return the keys and values of the text in front of every stream; None if there is none."""
    if model.prefix is None or not len(model.prefix):
        return None
    ids, spec = model.prefix, program.spec
    steps = None if model.steps is None else model.steps(ids)
    rows = question_rows(model.params, ids, program=program, size=len(ids), steps=steps)
    # The stream begins at position P, whatever its prefix advances: the prefix ends right there.
    rows = rows._replace(pos=rows.pos + (spec.prefix - rows.advance)[None])
    more = {"axes": spec.axes, "dtype": spec.dtype, "pos_dtype": spec.pos_dtype}
    return make_prefix(decoder_of(model.params), model.decoder, rows, **more)


def asked_rows(model: Model, program: Program, ids: np.ndarray, pieces: int) -> Embeds:
    """Return a question as rows, placed where the model puts text behind a video.

    Args:
      model: that answers.
      program: of its stream.
      ids: token ids [Q].
      pieces: that the stream has seen.
    """
    return question_rows(
        model.params,
        ids,
        program=program,
        steps=None if model.steps is None else model.steps(ids),
        after=None if model.after is None else model.after(pieces),
    )


def write_answer(
    model: Model,
    program: Program,
    carry: Carry,
    rows: Embeds,
    *,
    seen: Callable[[Int[np.ndarray, "m"], bool], None],
    prefix: KV | None = None,
    sampling: Sampling | None = None,
    key: Array | None = None,
    said: Bool[np.ndarray, "V"] | None = None,
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "V"]]:
    """Write the answer of `jaxmem.loop`, whose arguments these are, where it can be seen.

    `seen` is called behind the first token and behind every `TOKENS_AT_ONCE` more, with all tokens
    so far, and whether these are all of the answer.

    Returns:
      The tokens without an end token, and the logits of the first one.
    """
    more = {"program": program, "sampling": sampling, "key": key}
    first = {"max_new": model.max_new, "prefix": prefix, "said": said}
    answer = begin_answer(model.params, carry, rows, **first, **more)
    first, (ids, done) = np.array(answer.first), so_far(answer, model.end)
    seen(ids, done)
    more |= {"steps": TOKENS_AT_ONCE, "end": model.end}
    # Also where the first token ends the answer: who has run this once has compiled both programs.
    answer = continue_answer(model.params, answer, **more)
    while not done:
        ids, done = so_far(answer, model.end)
        seen(ids, done)
        answer = answer if done else continue_answer(model.params, answer, **more)
    return ids, first


class Session:
    """One live stream of one model through one memory."""

    def __init__(self, model: Model, memory: Memory, *, chunk_pieces: int = 1):
        """Start an empty stream.

        Args:
          model: what sees and answers.
          memory: what is kept.
          chunk_pieces: pieces that are written at once; a question flushes what has come so far.
        """
        if chunk_pieces < 1:
            raise ValueError(f"chunk_pieces must be at least 1, got {chunk_pieces}.")
        if not model.tokens_per_piece:
            raise ValueError(
                f"the rows of a piece of {model.name} depend on the size of its frames: give "
                "jaxmem.models.base(model, (height, width)), and frames of that size."
            )
        self.model, self.memory, self.chunk_pieces = model, memory, chunk_pieces
        self.spec = model_spec(model, chunk_pieces * model.tokens_per_piece)
        self.program = make_program(model.decoder, memory, self.spec)
        self.prefix = pinned(model, self.program)
        self.carry = init_carry(self.program)
        self.pieces = 0
        self.pack = Packer(model, chunk_pieces)
        self._held: list[PieceLike] = []

    def feed(self, piece: PieceLike) -> bool:
        """Take one piece of video and sound; return whether a chunk was written."""
        self._held.append(piece)
        if len(self._held) < self.chunk_pieces:
            return False
        self.flush()
        return True

    def watch(self, pieces: Iterable[PieceLike]) -> Session:
        """Feed every piece and flush; return self."""
        for piece in pieces:
            self.feed(piece)
        self.flush()
        return self

    def flush(self) -> None:
        """Write what is buffered, padded to a whole chunk."""
        if self._held:
            held, self._held = self._held, []
            self.write(self.pack(held), len(held))

    def write(self, inputs: PyTree, pieces: int | None = None) -> None:
        """Write one packed chunk; use this when packing (`Packer`) runs on another thread.

        Args:
          inputs: of the chunk.
          pieces: real ones among them; None: all.
        """
        self.pieces += self.chunk_pieces if pieces is None else pieces
        segment = jax.tree.map(lambda x: np.asarray(x)[None], inputs)
        self.carry = stream(
            self.model.params,
            self.carry,
            segment,
            program=self.program,
            encode=self.model.encode,
            prefix=self.prefix,
        )

    def ask(
        self,
        question: str,
        *,
        sampling: Sampling | None = None,
        key: Array | None = None,
        told: Callable[[str], None] | None = None,
    ) -> Reply:
        """Answer a question about everything fed so far; the stream goes on unchanged.

        Args:
          question: in the model's words.
          sampling: how tokens are drawn; None: greedily. `model.sampling` is the checkpoint's own.
          key: JAX key of the answer, with `sampling`.
          told: called with each new part of the text while it is written; the parts together are
            the text.

        Raises:
          ValueError: if the question has words that the model does not know, or there is `sampling`
            without a key.
        """
        model, ids = self.model, self.model.tokenize(question)
        self.flush()
        jax.block_until_ready(self.carry)
        begin = time.perf_counter()
        rows = asked_rows(model, self.program, ids, self.pieces)
        more = {"prefix": self.prefix, "sampling": sampling, "key": key}
        more["said"] = said_by(model, ids, sampling)
        if told is not None:
            growing = Growing(model.detokenize, told)
            words, first = write_answer(model, self.program, self.carry, rows, seen=growing, **more)
            return Reply(model.detokenize(words), time.perf_counter() - begin, first)
        more |= {"program": self.program, "max_new": model.max_new, "end": model.end}
        answer = ask(model.params, self.carry, rows, **more)
        words = np.asarray(answer.ids)[: int(answer.length)]
        seconds = time.perf_counter() - begin
        return Reply(model.detokenize(words), seconds, np.asarray(answer.first))

    def layers(self) -> list[State]:
        """Return each layer's slots and notes, for maps and reports."""
        return layers_of(self.program, self.carry)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the memory's state, which never change."""
        return nbytes(self.memory, self.spec)


class Packer:
    """Packs pieces into chunks, on whatever thread decodes.

    It remembers the sound before each chunk, and how many pieces came before it.
    """

    def __init__(self, model: Model, pieces: int):
        """Pack chunks of at most `pieces` pieces for `model`."""
        self.model, self.pieces = model, pieces
        self._past = np.zeros(model.media.past_samples, np.float32)
        self._start = 0

    def __call__(self, held: Sequence[PieceLike]) -> PyTree:
        """Return a chunk's inputs from consecutive pieces, the missing ones padded."""
        if not 0 < len(held) <= self.pieces:
            raise ValueError(f"a chunk takes 1 to {self.pieces} pieces, got {len(held)}.")
        frames = np.zeros((self.pieces, *held[0].frames.shape), held[0].frames.dtype)
        samples = np.zeros((self.pieces, *held[0].samples.shape), np.float32)
        for i, piece in enumerate(held):
            frames[i], samples[i] = piece.frames, piece.samples
        valid = np.arange(self.pieces) < len(held)
        inputs = self.model.pack(frames, samples, valid, self._past, self._start)
        self._start += len(held)
        heard = np.concatenate([self._past, samples[: len(held)].reshape(-1)])
        self._past = heard[len(heard) - len(self._past) :]
        return inputs
