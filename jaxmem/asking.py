"""Questions: `ask` answers from a stream's carry at once, `begin_answer` step by step.

A question is compiled once per bucket of lengths. The carry is only read. `ask_all` answers several
of the same moment for what their own rows cost: prefix and recalled keys are turned once for all.

    question = question_rows(params, ids, program=program)
    answer = ask(bound, carry, question, program=program)
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmem import kv as kvs
from jaxmem.bound import Bound, as_bound, check_ids, decoder_of
from jaxmem.compiled import Compiled
from jaxmem.decoder.answer import decode, prefill
from jaxmem.decoder.checks import check_carry
from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.generate import Generation, begin, came_again, end_ids, extend
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.sampling import Sampling
from jaxmem.finite import check_answer
from jaxmem.loop import FromCarry
from jaxmem.memory.base import Memory
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Array, Bool, Float, Int, Params, PyTree


class Answer(NamedTuple):
    """What a question was answered with."""

    ids: Int[Array, "M"]  # answer tokens; entries from `length` on are padding
    length: Int[Array, ""]  # tokens before an end token, at most M
    first: Float[Array, "V"]  # logits of the first answer token


def check_drawing(max_new: int, sampling: Sampling | None, key: Array | None) -> None:
    """Raise ValueError where an answer cannot be drawn so."""
    if max_new < 1 or max_new != int(max_new):
        raise ValueError(f"max_new is the number of answer tokens, at least 1, got {max_new}.")
    if key is not None and sampling is None:
        raise ValueError(
            "a key was given without sampling, so nothing would be drawn with it: give "
            "sampling=Sampling(...), or leave the key out for the likeliest answer."
        )
    if sampling is not None and not sampling.greedy and key is None:
        raise ValueError("sampling needs a key: give key=jax.random.key(seed).")


def _check_end(end: int | tuple[int, ...] | None, vocab: int) -> None:
    for one in () if end is None else (end,) if isinstance(end, int) else end:
        if not 0 <= one < vocab:
            raise ValueError(
                f"end={one} would end no answer: it is not in the vocabulary of {vocab} (0 to "
                f"{vocab - 1})."
            )


def _front(program: Program, bound: Bound | Params, carry: Carry) -> tuple[Params, dict[str, Any]]:
    """Return the decoder's weights, and what stands in front of a stream; refuse other carries."""
    check_carry(program, carry)
    params, prefix, _, states = as_bound(bound)
    return decoder_of(params), {"prefix": prefix, "states": states}


class _Checked(FromCarry):
    """`ask` or `ask_all`, with an error where the logits of a token are not finite."""

    def __call__(
        self,
        bound: Bound | Params,
        carry: Carry,
        question: Embeds,
        *,
        program: Program,
        **more: Any,
    ) -> Answer:
        answer = super().__call__(bound, carry, question, program=program, **more)
        if not isinstance(answer.ids, Tracer):
            ids = np.asarray(answer.ids)
            for i in np.ndindex(ids.shape[:-1]):  # of `ask` there is one
                one = jax.tree.map(lambda x, i=i: x[i], question) if i else question
                check_answer(ids[i], bound, carry, one, program=program)
        return answer


@partial(_Checked, static_argnames=("program", "max_new", "end", "stop_run", "sampling"))
def ask(
    bound: Bound | Params,
    carry: Carry,
    question: Embeds,
    *,
    program: Program,
    max_new: int = 1,
    end: int | tuple[int, ...] | None = None,
    stop_run: int = 0,
    sampling: Sampling | None = None,
    key: Array | None = None,
    repeated: Bool[Array, "V"] | None = None,
) -> Answer:
    """Answer a question from a stream's carry, which is only read.

    Args:
      bound: weights with prefix and probes (`bind`), or weights alone.
      carry: the stream so far.
      question: rows padded to a bucket (`question_rows`); one compilation per bucket.
      program: static description.
      max_new: M, the largest number of answer tokens.
      end: token id that ends an answer, or several; None: always M tokens.
      stop_run: the answer also ends where its last so many tokens are an earlier run of it.
      sampling: how tokens are drawn; None: greedily, always the likeliest.
      key: JAX key of the answer, with `sampling`; the same key gives the same answer.
      repeated: prompt tokens to which the repetition penalty applies (`penalised_ids`).

    Returns:
      The answer.

    Raises:
      ValueError: if `max_new` is less than 1, there is `sampling` without a key or a key without
        `sampling`, the bound prefix is not the program's, or logits are not finite.
    """
    check_drawing(max_new, sampling, key)
    _check_end(end, program.config.vocab)
    weights, front = _front(program, bound, carry)
    draw = {"sampling": sampling, "key": key}
    more = {"room": max_new, "repeated": repeated}
    begun = begin(weights, program, carry, question, **front, **more, **draw)
    ends = end_ids(end)
    stops = {"ends": ends, "stop_run": stop_run}
    ids, written, first, *_ = extend(weights, program, begun, **stops, **draw)
    ended = jnp.sum(jnp.isin(ids, ends) & (jnp.arange(max_new) < written), dtype=jnp.int32)
    return Answer(ids, written - ended, first)


@partial(_Checked, static_argnames=("program", "max_new", "end", "stop_run", "sampling"))
def ask_all(
    bound: Bound | Params,
    carry: Carry,
    questions: Embeds,
    *,
    program: Program,
    key: Array | None = None,
    repeated: Bool[Array, "n V"] | None = None,
    **more: Any,
) -> Answer:
    """Answer n questions of one moment together, each as `ask` does alone.

    One more costs its own rows: the weights are read once for all rows, prefix and recalled keys
    are turned once. A memory that recalls by the question does so for each; one with a bank in host
    memory is asked one question after the other.

    Args:
      bound: weights with prefix and probes (`bind`), or weights alone.
      carry: the stream so far; only read.
      questions: rows of each, padded to one bucket (`question_rows` with `size`), stacked on a
        leading axis.
      program: static description.
      key: JAX keys [n] of the answers, with `sampling`.
      repeated: see `ask`, for each question.
      **more: options of `ask`: `max_new`, `end`, `stop_run`, `sampling`.

    Returns:
      The answers, on a leading axis.

    Raises:
      ValueError: as `ask`.
    """

    def one(question: Embeds, key: Array | None, repeated: Array | None) -> Answer:
        own = {"key": key, "repeated": repeated}
        return ask(bound, carry, question, program=program, **own, **more)

    memory = program.memory
    bank = memory.bank(program.spec) if isinstance(memory, Memory) else None
    given = (questions, key, repeated)
    if bank is not None and bank.space == "host":  # one pick at a time
        return jax.lax.map(lambda each: one(*each), given)
    return jax.vmap(one)(*given)


def log_prob(
    bound: Bound | Params,
    carry: Carry,
    question: Embeds,
    answer: Int[Array, "M"],
    *,
    program: Program,
) -> Float[Array, "M"]:
    """Return the log-probability of each token of a given answer, after those before it.

    Args:
      bound: weights with prefix and probes (`bind`), or weights alone.
      carry: the stream so far; only read.
      question: rows padded to a bucket (`question_rows`).
      answer: token ids.
      program: static description.

    Raises:
      ValueError: if the answer is empty or holds an id that is none, or the bound prefix is not
        the program's.
    """
    if not answer.shape[0]:
        raise ValueError("the answer is empty; give at least one token.")
    if not isinstance(answer, Tracer):
        check_ids(np.asarray(answer), program.config.vocab, "answer")
    return _log_prob(bound, carry, question, jnp.asarray(answer), program=program)


@partial(FromCarry, static_argnames=("program",))
def _log_prob(
    bound: Bound | Params,
    carry: Carry,
    question: Embeds,
    answer: Int[Array, "M"],
    *,
    program: Program,
) -> Float[Array, "M"]:
    """`log_prob` of ids that were checked."""
    weights, front = _front(program, bound, carry)
    dialogue, h = prefill(weights, program, carry, question, room=answer.shape[0], **front)
    last = jnp.maximum(jnp.sum(question.modality != kvs.EMPTY, dtype=jnp.int32) - 1, 0)

    def step(held: PyTree, token: Array) -> tuple[PyTree, Array]:
        dialogue, out = held
        score = jax.nn.log_softmax(logits(weights, program.config, out).astype(jnp.float32))
        return decode(weights, program, dialogue, embed(weights, token)), score[token]

    return jax.lax.scan(step, (dialogue, h[last]), answer)[1]


@partial(FromCarry, static_argnames=("program", "max_new", "sampling"))
def begin_answer(
    bound: Bound | Params,
    carry: Carry,
    question: Embeds,
    *,
    program: Program,
    max_new: int = 1,
    sampling: Sampling | None = None,
    key: Array | None = None,
    repeated: Bool[Array, "V"] | None = None,
) -> Generation:
    """Return an answer with its first token, to be continued; the arguments are those of `ask`."""
    check_drawing(max_new, sampling, key)
    weights, front = _front(program, bound, carry)
    more = {"sampling": sampling, "key": key, "repeated": repeated}
    return begin(weights, program, carry, question, room=max_new, **front, **more)


@partial(
    Compiled,
    static_argnames=("program", "steps", "end", "stop_run", "sampling"),
    donate_argnames=("generation",),
)
def continue_answer(
    bound: Bound | Params,
    generation: Generation,
    *,
    program: Program,
    steps: int,
    end: int | tuple[int, ...] | None = None,
    stop_run: int = 0,
    sampling: Sampling | None = None,
    key: Array | None = None,
) -> Generation:
    """Write up to `steps` more tokens; in the end the tokens are those of `ask`.

    Args:
      bound: as in `ask`.
      generation: an answer so far (`begin_answer`); donated.
      program: static description.
      steps: tokens to add at most; shapes stay, one compilation per bucket of questions.
      end: as in `ask`.
      stop_run: as in `ask`.
      sampling: as in `ask`.
      key: as in `ask`.

    Returns:
      The answer to be continued; `so_far` reads it.
    """
    _check_end(end, program.config.vocab)
    weights, draw = decoder_of(as_bound(bound).params), {"sampling": sampling, "key": key}
    stops = {"ends": end_ids(end), "stop_run": stop_run}
    return extend(weights, program, generation, **stops, most=steps, **draw)


def so_far(
    generation: Generation, end: int | tuple[int, ...] | None = None, stop_run: int = 0
) -> tuple[Int[np.ndarray, "m"], bool]:
    """Return the tokens of an answer up to now, without an end token, and whether it is over.

    A last token of -1 was chosen from logits that are not finite (`finite.check_answer`).
    """
    ids = np.array(generation.ids)[: int(generation.written)]
    ended = ids[-1] >= 0 and bool(np.isin(ids[-1], -1 if end is None else end))
    over = ended or ids[-1] < 0 or len(ids) == len(generation.ids)
    return ids[: len(ids) - ended], over or bool(came_again(ids, np.int32(len(ids)), stop_run))
