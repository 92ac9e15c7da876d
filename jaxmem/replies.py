"""Questions about a live stream, and the replies: what `Session` asks with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.asking import ask, ask_all, begin_answer, continue_answer, so_far
from jaxmem.bound import Bound, bucket, probe_rows
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.sampling import Sampling
from jaxmem.feeding import Feeding
from jaxmem.finite import NotFiniteError, check_answer
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import Model, penalised_ids
from jaxmem.models.text_streamer import TextStreamer
from jaxmem.programs import asked_rows, probes_of
from jaxmem.typing import Array, Float

TOKENS_AT_ONCE = 4
"""Written between two looks at a growing answer: about a few words."""


def stops_of(model: Model) -> dict[str, Any]:
    """Return what ends an answer of a model, as arguments of `ask` and `continue_answer`."""
    return {"end": model.end, "stop_run": model.stop_run}


@dataclass(frozen=True)
class Reply:
    """An answer with what it cost.

    Attributes:
      text: the answer's words.
      seconds: from the question to the answer's last token, in seconds.
      logits: float32 [V] of the first answer token.
      first_seconds: from the question to the answer's first token, in seconds.
    """

    text: str
    seconds: float
    logits: Float[np.ndarray, "V"]
    first_seconds: float


class Asking(Feeding):
    """A stream that is fed, and asked at any moment."""

    def ask(
        self, question: str, *, sampling: Sampling | None = None, key: Array | None = None
    ) -> Reply:
        """Answer a question about everything fed so far; the stream stays as it was, bit by bit.

        Pieces of a chunk that is not full yet are written to a branch, which is asked.

        Args:
          question: in the model's words.
          sampling: how tokens are drawn; None: as the session says. `model.sampling` is the
            checkpoint's own.
          key: JAX key of the answer, with `sampling`.

        Raises:
          ValueError: if the question has words that the model does not know, there is `sampling`
            without a key, or a state is not finite.
        """
        model, ids = self.model, self.model.tokenize(question)
        draw = self._drawing(sampling, key)
        with self._lock:
            asked, more = self._asked(ids, draw)
            begin = time.perf_counter()
            answer = ask(*asked, **stops_of(model), **more)
        words = np.asarray(answer.ids)[: int(answer.length)]
        seconds, text = time.perf_counter() - begin, model.detokenize(words)
        self._note(question, text)
        return Reply(text, seconds, np.asarray(answer.first), seconds)

    def ask_all(
        self,
        questions: Sequence[str],
        *,
        sampling: Sampling | None = None,
        key: Array | None = None,
    ) -> list[Reply]:
        """Answer several questions about the same moment together, each as `ask` would.

        One more costs little more than its own rows: weights, prefix and what is remembered are
        read once for all. The times of every reply are those of all.

        Args:
          questions: in the model's words.
          sampling: as in `ask`.
          key: JAX key of the first answer; the i-th takes `jax.random.fold_in(key, i)`. Where it
            comes from the session, every answer is the one that `ask` would give in turn.

        Raises:
          ValueError: as `ask`, and if there is no question.
        """
        if isinstance(questions, str) or not questions:
            raise ValueError(f"ask_all takes a list of questions, at least one, got {questions!r}.")
        model = self.model
        many = [model.tokenize(question) for question in questions]
        size = max(bucket(len(ids)) for ids in many)
        draw = self._drawing(sampling, key)
        keys = self._keys(len(many), key) if draw["key"] is not None else None
        with self._lock:
            program, bound, carry = self._ready()
            rows = [asked_rows(model, program, ids, self.pieces, size) for ids in many]
            repeated = [penalised_ids(model, ids, draw["sampling"]) for ids in many]
            each = jax.tree.map(lambda *x: jnp.stack(x), *zip(rows, repeated, strict=True))
            jax.block_until_ready(each)
            more = {"sampling": draw["sampling"], "key": keys, "repeated": each[1]}
            more |= {"program": program, "max_new": model.max_new}
            begin = time.perf_counter()
            answer = ask_all(bound, carry, each[0], **stops_of(model), **more)
        ids, lengths, firsts = (np.asarray(x) for x in answer)
        seconds = time.perf_counter() - begin
        texts = [model.detokenize(x[:n]) for x, n in zip(ids, lengths, strict=True)]
        for question, text in zip(questions, texts, strict=True):
            self._note(question, text)
        return [Reply(x, seconds, first, seconds) for x, first in zip(texts, firsts, strict=True)]

    def answer(
        self, question: str, *, sampling: Sampling | None = None, key: Array | None = None
    ) -> Iterator[str]:
        """Yield an answer's text as it is written; the parts together are `ask(...).text`.

        The stream may go on meanwhile: the answer is about what was fed when it began. The
        generator returns the `Reply`. The arguments and errors are those of `ask`.
        """
        model, ids = self.model, self.model.tokenize(question)
        draw = self._drawing(sampling, key)
        return self._written(question, model, ids, draw)

    def _written(self, question: str, model: Model, ids: np.ndarray, draw: dict[Any, Any]) -> Any:
        with self._lock:
            asked, more = self._asked(ids, draw)
            bound, program = asked[0], more["program"]
            begin = time.perf_counter()
            answer = begin_answer(*asked, **more)
        streamer, first = TextStreamer(model.detokenize), np.array(answer.first)
        stops = stops_of(model)
        words, done = so_far(answer, **stops)
        check_answer(words, *asked, program=program)
        first_seconds = time.perf_counter() - begin
        more = {"program": program, "steps": TOKENS_AT_ONCE} | stops | draw
        # Also where the first token ends the answer: whoever ran this once compiled both programs.
        answer = continue_answer(bound, answer, **more)
        yield from streamer.push(words, done)
        while not done:
            words, done = so_far(answer, **stops)
            check_answer(words, *asked, program=program)
            yield from streamer.push(words, done)
            answer = answer if done else continue_answer(bound, answer, **more)
        text = model.detokenize(words)
        self._note(question, text)
        return Reply(text, time.perf_counter() - begin, first, first_seconds)

    def _drawing(self, sampling: Sampling | None, key: Array | None) -> dict[str, Any]:
        if sampling is None and key is None and self.sampling is not None:
            sampling = self.sampling
            key = None if self.key is None else jax.random.fold_in(self.key, self._answers)
        return {"sampling": sampling, "key": key}

    def _keys(self, count: int, key: Array | None) -> Array:
        """Return the keys of so many answers: of a key that was given, or of the session's."""
        first, own = (self._answers, self.key) if key is None else (0, key)
        assert own is not None
        return jnp.stack([jax.random.fold_in(own, first + i) for i in range(count)])

    def _asked(
        self, ids: np.ndarray, draw: dict[str, Any]
    ) -> tuple[tuple[Bound, Carry, Embeds], dict[str, Any]]:
        """Return what an answer is asked with: arrays, carry and rows after all pieces; options."""
        model, (program, bound, carry) = self.model, self._ready()
        rows = asked_rows(model, program, ids, self.pieces)
        jax.block_until_ready(rows)
        repeated = penalised_ids(model, ids, draw["sampling"])
        more = {"program": program, "max_new": model.max_new, "repeated": repeated}
        return (bound, carry, rows), more | draw

    def _ready(self) -> tuple[Program, Bound, Carry]:
        """Return what a question about everything so far is asked with, once it is there."""
        (program, bound), carry = self._need(), self._peek()
        jax.block_until_ready(carry)
        if (broken := self._broken(carry)) is not None:
            raise NotFiniteError(
                f"{broken.message} No answer can be given: begin anew, with bfloat16 or float32 in "
                "place of float16 (--dtype, the dtype of load), or with weights that are finite."
            )
        return program, bound, carry

    def _note(self, question: str, text: str) -> None:
        """Remember the dialogue, for memories that guide what they keep by it."""
        with self._lock:
            self._answers += 1
            self.dialogue = (question, text)
            if not getattr(self.memory, "dialogue", False):
                return
            program, bound = self._need()
            texts = probes_of(self.model, self.memory, self.dialogue)
            rows = probe_rows(self.model.params, texts, program=program)
            self._opened = program, bound._replace(probes=rows)

    def buckets(self, question: str) -> int:
        """Return the padded length that a question is compiled for."""
        return bucket(len(self.model.tokenize(question)))

    def rehearse(self, question: str) -> None:
        """Compile what a question of this length will run; nothing is run."""
        model, draw = self.model, self._drawing(None, None)
        with self._lock:
            asked, more = self._asked(model.tokenize(question), draw)
        if model.max_new == 1:
            ask.lower(*asked, **stops_of(model), **more).compile()
            return
        begin_answer.lower(*asked, **more).compile()
        begun = jax.eval_shape(lambda *a: begin_answer(*a, **more), *asked)
        more = {"program": more["program"], "steps": TOKENS_AT_ONCE} | stops_of(model) | draw
        continue_answer.lower(asked[0], begun, **more).compile()
