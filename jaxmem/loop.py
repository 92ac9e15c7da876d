"""The streaming loop: `stream` advances a carry over chunks, `ask` answers from it.

Both are pure and jitted once: a stream of any length runs through one compiled program per segment
length, a question through one per question bucket. The carry is a value: it can be saved, restored,
branched (`branch`) and moved between machines.

    program = compile(model, memory)                            # or make_program(config, ...)
    bound = bind(program, model.params)                         # weights, prefix, probes
    carry = start(program)
    carry = stream(bound, carry, chunks, program=program)       # chunks: a leading axis
    answer = ask(bound, carry, question, program=program)       # the carry comes out untouched
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmem import kv as kvs
from jaxmem.decoder.answer import decode, prefill
from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.generate import Generation, begin, end_ids, extend
from jaxmem.decoder.program import (
    Carry,
    Encode,
    Program,
    Text,
    as_embeds,
    init_carry,
    make_program,
    spec_of,
)
from jaxmem.decoder.sampling import Sampling
from jaxmem.decoder.step import check_carry, chunk_step, prefix_and_states
from jaxmem.kv import KV
from jaxmem.memory.base import Embeds
from jaxmem.typing import Array, Bool, Float, Int, Params, PyTree


class Bound(NamedTuple):
    """A program's arrays: weights, the keys and values of its prefix, and its probes."""

    params: Params  # `params["decoder"]` if there is such a key, else the decoder's own
    prefix: KV | None = None  # pinned tokens [L, P]
    probes: Embeds | None = None  # rows with a leading axis
    states: tuple[PyTree, ...] = ()  # of the layers with a state, after the prefix


def _bound(bound: Bound | Params) -> Bound:
    return bound if isinstance(bound, Bound) else Bound(bound)


def decoder_of(params: Params) -> Params:
    """Return the decoder's weights among a model's."""
    return params.get("decoder", params)


def bind(program: Program, params: Params, probes: Sequence[Text] | None = None) -> Bound:
    """Return a program's arrays: weights, prefix KV and probes.

    Args:
      program: static description.
      params: weights.
      probes: texts of the probes; None: those of the program.
    """
    prefix, states = (None, ()) if program.prefix is None else _prefix_of(program, params)
    texts = program.probes if probes is None else tuple(probes)
    rows = probe_rows(params, texts, program=program) if texts else None
    return Bound(params, prefix, rows, states)


def start(program: Program, bound: Bound | Params | None = None) -> Carry:
    """Return the carry of a stream that has not begun.

    Args:
      program: static description.
      bound: its arrays, for a decoder that has layers with a state and a prefix in front of the
        stream: the states begin after it.

    Raises:
      ValueError: if states are needed and not given.
    """
    states = bound.states if isinstance(bound, Bound) else ()
    if program.config.stacks and program.prefix is not None and not states:
        raise ValueError(
            "this decoder has layers with a state, which have seen the prefix: give "
            "start(program, bound) with bound = bind(program, params)."
        )
    return init_carry(program, states)


def _prefix_of(program: Program, params: Params) -> tuple[KV, tuple[PyTree, ...]]:
    """Return keys and values of the text in front of every stream, and the states after it."""
    assert program.prefix is not None
    spec, (ids, steps) = program.spec, program.prefix
    rows = question_rows(params, ids, program=program, size=len(ids), steps=steps)
    # The stream begins at position P, whatever its prefix advances: the prefix ends right there.
    rows = rows._replace(pos=rows.pos + (spec.prefix - rows.advance)[None])
    more = {"axes": spec.axes, "dtype": spec.dtype, "pos_dtype": spec.pos_dtype}
    return prefix_and_states(decoder_of(params), program.config, rows, **more)


class FromCarry:
    """A compiled function of (bound, carry, ...) that says so where the carry is gone."""

    def __init__(self, compiled: Any):
        """Wrap a function that `jax.jit` returned."""
        self.compiled = compiled
        update_wrapper(self, compiled)

    def __call__(self, bound: Bound | Params, carry: Carry, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Raises:
          ValueError: if the carry was taken over by `advance`.
        """
        clock = carry.clock
        real = isinstance(clock, jax.Array) and not isinstance(clock, Tracer)
        if real and clock.is_deleted():
            raise ValueError(
                "this carry is gone: `advance` took it over, as a Session does with every chunk. "
                "Go on with what that returned; keep `branch(carry)` of what you want to come back "
                "to."
            )
        return self.compiled(bound, carry, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return what the compiled function has, such as `lower`."""
        return getattr(self.compiled, name)


def _stream(
    bound: Bound | Params,
    carry: Carry,
    chunks: PyTree,
    *,
    program: Program,
    remat: bool = False,
) -> Carry:
    """Advance a stream over K chunks.

    Args:
      bound: weights with prefix and probes (`bind`); weights alone where the program has neither.
      carry: the stream so far; it stays usable.
      chunks: K chunks of whatever `program.encode` takes, stacked on a leading axis. A chunk may be
        padding altogether: feeding segments of one length K compiles once.
      program: static description.
      remat: recompute the inside of each chunk in a gradient instead of storing it.

    Returns:
      The carry after the last chunk.

    Raises:
      ValueError: if rows, prefix or probes contradict the program.
    """
    params, prefix, probes, _ = _bound(bound)
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(chunks)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"chunks are stacked on one leading axis, got leaves with {sorted(sizes)}: for one "
            "chunk give jax.tree.map(lambda x: x[None], chunk)."
        )
    check_carry(program, carry)

    def body(carry: Carry, chunk: PyTree) -> tuple[Carry, None]:
        rows = program.encode(params, chunk)
        return chunk_step(decoder_of(params), program, carry, rows, prefix, probes)[0], None

    step = jax.checkpoint(body, prevent_cse=False) if remat else body  # type: ignore[attr-defined]
    return jax.lax.scan(step, carry, chunks)[0]


stream = FromCarry(jax.jit(_stream, static_argnames=("program", "remat")))
advance = FromCarry(
    jax.jit(_stream, static_argnames=("program", "remat"), donate_argnames=("carry",))
)
"""`stream` that takes the carry over: half the memory, and the carry that was given is gone."""


class Answer(NamedTuple):
    """What a question was answered with."""

    ids: Int[Array, "M"]  # answer tokens; entries from `length` on are padding
    length: Int[Array, ""]  # tokens before an end token, at most M
    first: Float[Array, "V"]  # logits of the first answer token


def bucket(length: int, smallest: int = 8) -> int:
    """Return the padded length of a question: the next power of two, at least `smallest`."""
    if length < 1:
        raise ValueError("the question is empty; ask at least one token.")
    return max(smallest, 1 << (length - 1).bit_length())


def question_rows(
    params: Params,
    ids: Sequence[int] | np.ndarray,
    *,
    program: Program,
    size: int | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> Embeds:
    """Return a text question as rows, padded to its bucket.

    Text advances the position axes by `Spec.step` per token.

    Args:
      params: weights.
      ids: token ids [Q].
      program: static description.
      size: padded length; the question's bucket if None.
      steps: how many times `Spec.step` each token advances [Q]; None: once.
      start: where the question begins [A], see `Embeds.start`.

    Raises:
      ValueError: if the question is empty, longer than `size`, or holds an id that is none, or
        `steps` or `start` do not fit it.
    """
    ids = np.asarray(ids)
    check_ids(ids, program.config.vocab)
    n = len(ids)
    size = bucket(n) if size is None else size
    if n > size:
        raise ValueError(
            f"the question has {n} tokens but size={size}; leave size out, or raise it."
        )
    _check_shape("steps", steps, (n,), "one for each token")
    _check_shape("start", start, (program.spec.axes,), "one for each position axis")
    step, pos_dtype = np.asarray(program.spec.step), program.spec.pos_dtype
    if start is not None and np.issubdtype(pos_dtype, np.integer) and np.any(start % 1):
        raise ValueError(f"the question starts at {start} but Spec.pos_dtype is {pos_dtype}.")
    padded, ends = np.zeros(size, np.int32), np.arange(1, size + 1)
    padded[:n] = ids
    if steps is not None:
        ends[:n] = np.cumsum(steps)
    modality = np.where(np.arange(size) < n, kvs.TEXT, kvs.EMPTY).astype(np.int8)
    pos = np.concatenate([[0], ends[:-1]])[:, None] * step
    return Embeds(
        x=_embed(decoder_of(params), jnp.asarray(padded)),
        pos=jnp.asarray(pos, pos_dtype),
        modality=jnp.asarray(modality),
        advance=jnp.asarray(ends[n - 1] * step, pos_dtype),
        start=None if start is None else jnp.asarray(start, pos_dtype),
    )


def check_ids(ids: np.ndarray, vocab: int, what: str = "question") -> None:
    """Raise ValueError where ids are no list of tokens of a vocabulary."""
    if not ids.size:
        raise ValueError(f"the {what} is empty; {NOT_EMPTY[what]}.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"the {what} must be a list of whole token ids, got {ids.dtype} of shape {ids.shape}."
        )
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if len(wrong):
        raise ValueError(
            f"token id {wrong[0]} is not in the vocabulary of {vocab} (0 to {vocab - 1}); tokenize "
            f"the {what} with this model's tokenizer."
        )


NOT_EMPTY = {"question": "ask at least one token", "answer": "give at least one token"}


def _check_shape(name: str, given: object, shape: tuple[int, ...], words: str) -> None:
    if given is not None and np.shape(given) != shape:  # type: ignore[arg-type]
        raise ValueError(f"{name} has shape {np.shape(given)}, expected {shape}, {words}.")  # type: ignore[arg-type]


_embed = jax.jit(embed)


def probe_rows(
    params: Params, prompts: Sequence[Text | Sequence[int]], *, program: Program
) -> Embeds:
    """Return text probes [n, Q, ...] for `Bound.probes`, padded to one length.

    Args:
      params: weights.
      prompts: token ids of each probe; in the order that the memory documents.
      program: static description.
    """
    texts = [p if isinstance(p, Text) else Text(tuple(p)) for p in prompts]
    size = max(bucket(len(text.ids)) for text in texts)
    more = {"program": program, "size": size}
    rows = [question_rows(params, t.ids, steps=t.steps, **more) for t in texts]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


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


@FromCarry
@partial(jax.jit, static_argnames=("program", "max_new", "end", "sampling"))
def ask(
    bound: Bound | Params,
    carry: Carry,
    question: Embeds,
    *,
    program: Program,
    max_new: int = 1,
    end: int | tuple[int, ...] | None = None,
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
      sampling: how tokens are drawn; None: greedily, always the likeliest.
      key: JAX key of the answer, with `sampling`; the same key gives the same answer.
      repeated: prompt tokens to which the repetition penalty applies (`penalised_ids`).

    Returns:
      The answer.

    Raises:
      ValueError: if `max_new` is less than 1, there is `sampling` without a key or a key without
        `sampling`, or the bound prefix is not the program's.
    """
    check_drawing(max_new, sampling, key)
    _check_end(end, program.config.vocab)
    params, prefix, _, states = _bound(bound)
    weights, draw = decoder_of(params), {"sampling": sampling, "key": key}
    more = {"room": max_new, "prefix": prefix, "states": states, "repeated": repeated}
    begun = begin(weights, program, carry, question, **more, **draw)
    ends = end_ids(end)
    ids, written, first, *_ = extend(weights, program, begun, ends=ends, **draw)
    ended = jnp.sum(jnp.isin(ids, ends) & (jnp.arange(max_new) < written), dtype=jnp.int32)
    return Answer(ids, written - ended, first)


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


@FromCarry
@partial(jax.jit, static_argnames=("program",))
def _log_prob(
    bound: Bound | Params,
    carry: Carry,
    question: Embeds,
    answer: Int[Array, "M"],
    *,
    program: Program,
) -> Float[Array, "M"]:
    """`log_prob` of ids that were checked."""
    params, prefix, _, states = _bound(bound)
    weights, more = decoder_of(params), {"prefix": prefix, "states": states}
    dialogue, h = prefill(weights, program, carry, question, room=answer.shape[0], **more)
    last = jnp.maximum(jnp.sum(question.modality != kvs.EMPTY, dtype=jnp.int32) - 1, 0)

    def step(held: PyTree, token: Array) -> tuple[PyTree, Array]:
        dialogue, out = held
        score = jax.nn.log_softmax(logits(weights, program.config, out).astype(jnp.float32))
        return decode(weights, program, dialogue, embed(weights, token)), score[token]

    return jax.lax.scan(step, (dialogue, h[last]), answer)[1]


@FromCarry
@partial(jax.jit, static_argnames=("program", "max_new", "sampling"))
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
    params, prefix, _, states = _bound(bound)
    more = {"sampling": sampling, "key": key, "repeated": repeated}
    more |= {"prefix": prefix, "states": states}
    return begin(decoder_of(params), program, carry, question, room=max_new, **more)


@partial(
    jax.jit,
    static_argnames=("program", "steps", "end", "sampling"),
    donate_argnames=("generation",),
)
def continue_answer(
    bound: Bound | Params,
    generation: Generation,
    *,
    program: Program,
    steps: int,
    end: int | tuple[int, ...] | None = None,
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
      sampling: as in `ask`.
      key: as in `ask`.

    Returns:
      The answer to be continued; `so_far` reads it.
    """
    _check_end(end, program.config.vocab)
    weights, draw = decoder_of(_bound(bound).params), {"sampling": sampling, "key": key}
    return extend(weights, program, generation, ends=end_ids(end), most=steps, **draw)


def so_far(
    generation: Generation, end: int | tuple[int, ...] | None = None
) -> tuple[Int[np.ndarray, "m"], bool]:
    """Return the tokens of an answer up to now, without an end token, and whether it is over."""
    ids = np.array(generation.ids)[: int(generation.written)]
    ended = bool(np.isin(ids[-1], -1 if end is None else end))
    return ids[: len(ids) - ended], ended or len(ids) == len(generation.ids)


def branch(carry: Carry) -> Carry:
    """Return a copy with its own buffers: two futures of one past stay independent.

    `stream` leaves the carry it is given as it is; `advance` takes it over, so keep a branch of
    what you want to come back to.
    """
    return jax.tree.map(lambda x: jnp.array(x, copy=True), carry)


__all__ = [
    "Answer",
    "Bound",
    "Carry",
    "Encode",
    "Generation",
    "Program",
    "Sampling",
    "Text",
    "advance",
    "as_embeds",
    "ask",
    "begin_answer",
    "bind",
    "branch",
    "bucket",
    "continue_answer",
    "decoder_of",
    "init_carry",
    "log_prob",
    "make_program",
    "probe_rows",
    "question_rows",
    "so_far",
    "spec_of",
    "start",
    "stream",
]
