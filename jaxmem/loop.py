"""The streaming loop: `stream` advances a carry over chunks, `ask` answers from it.

Both are pure and jitted once: a stream of any length runs through one compiled program per
segment length, a question through one per question bucket. The carry is a value: it can be saved,
restored, branched (`branch`) and moved between machines.

    program = make_program(config, memory, spec)
    carry = init_carry(program)
    carry = stream(params, carry, chunks, program=program)      # chunks: Rows with a leading axis
    answer = ask(params, carry, question, program=program)      # carry comes out untouched
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.decoder.decoder import embed
from jaxmem.decoder.generate import Generation, begin, end_ids, extend
from jaxmem.decoder.program import Carry, Program, init_carry, make_program, spec_of
from jaxmem.decoder.sampling import Sampling
from jaxmem.decoder.step import chunk_step
from jaxmem.kv import KV
from jaxmem.memory.base import Embeds
from jaxmem.typing import Array, Bool, Float, Int, Params, PyTree

Encode = Callable[[Params, PyTree], Embeds]
"""Turns one chunk of inputs (pixels, log-mel, ids) into rows; called inside the scan."""


def as_rows(params: Params, rows: Embeds) -> Embeds:
    """Return rows that are already embedded: the default `encode`."""
    del params
    return rows


@partial(jax.jit, static_argnames=("program", "encode"), donate_argnames=("carry",))
def stream(
    params: Params,
    carry: Carry,
    chunks: PyTree,
    *,
    program: Program,
    encode: Encode = as_rows,
    prefix: KV | None = None,
    probes: Embeds | None = None,
) -> Carry:
    """Advance a stream over K chunks.

    Args:
      params: weights; `params["decoder"]` if there is such a key (encoders beside it), else the
        decoder's own.
      carry: the stream so far; donated.
      chunks: K chunks of whatever `encode` takes, stacked on a leading axis. A chunk may be padding
        altogether: feeding segments of one length K compiles once.
      program: static description.
      encode: `(params, chunk) -> Rows`.
      prefix: pinned tokens [L, P], or None.
      probes: n probes as rows with a leading axis, for memories that read them.

    Returns:
      The carry after the last chunk.
    """

    def body(carry: Carry, chunk: PyTree) -> tuple[Carry, None]:
        rows = encode(params, chunk)
        return chunk_step(decoder_of(params), program, carry, rows, prefix, probes)[0], None

    return jax.lax.scan(body, carry, chunks)[0]


def decoder_of(params: Params) -> Params:
    """Return the decoder's weights among a model's."""
    return params.get("decoder", params)


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
    steps: np.ndarray | None = None,
    after: np.ndarray | None = None,
) -> Embeds:
    """Return a text question as rows, padded to its bucket.

    Text advances the position axes by `Spec.step` per token.

    Args:
      params: weights.
      ids: token ids [Q].
      program: static description.
      size: padded length; the question's bucket if None.
      steps: how many times `Spec.step` each token advances [Q]; None: once.
      after: where the question begins [A], see `Embeds.after`.
    """
    ids = np.asarray(ids, np.int32)
    n, size = len(ids), bucket(len(ids)) if size is None else size
    step, pos_dtype = np.asarray(program.spec.step), program.spec.pos_dtype
    padded, ends = np.zeros(size, np.int32), np.arange(1, size + 1)
    padded[:n] = ids
    if steps is not None:
        ends[:n] = np.cumsum(steps)
    kind = np.where(np.arange(size) < n, tk.TEXT, tk.EMPTY).astype(np.int8)
    rel = np.concatenate([[0], ends[:-1]])[:, None] * step
    return Embeds(
        x=_embed(decoder_of(params), jnp.asarray(padded)),
        pos=jnp.asarray(rel, pos_dtype),
        modality=jnp.asarray(kind),
        advance=jnp.asarray(ends[n - 1] * step, pos_dtype),
        start=None if after is None else jnp.asarray(after, pos_dtype),
    )


_embed = jax.jit(embed)


def probe_rows(params: Params, prompts: Sequence[Sequence[int]], *, program: Program) -> Embeds:
    """Return text probes [n, Q, ...] for `stream(probes=...)`, padded to one length.

    Args:
      params: weights.
      prompts: token ids of each probe; in the order that the memory documents.
      program: static description.
    """
    size = max(bucket(len(ids)) for ids in prompts)
    rows = [question_rows(params, ids, program=program, size=size) for ids in prompts]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


@partial(jax.jit, static_argnames=("program", "max_new", "end", "sampling"))
def ask(
    params: Params,
    carry: Carry,
    question: Embeds,
    *,
    program: Program,
    max_new: int = 1,
    end: int | tuple[int, ...] | None = None,
    prefix: KV | None = None,
    sampling: Sampling | None = None,
    key: Array | None = None,
    said: Bool[Array, "V"] | None = None,
) -> Answer:
    """Answer a question from a stream's carry, which is only read.

    Args:
      params: weights.
      carry: the stream so far.
      question: rows padded to a bucket (`question_rows`); one compilation per bucket.
      program: static description.
      max_new: M, the largest number of answer tokens.
      end: token id that ends an answer, or several; None: always M tokens.
      prefix: pinned tokens [L, P], or None.
      sampling: how tokens are drawn; None: greedily, always the likeliest.
      key: JAX key of the answer, with `sampling`; the same key gives the same answer.
      said: tokens that a penalty of repetition counts from the begin (`models.base.said_by`).

    Returns:
      The answer.

    Raises:
      ValueError: if there is `sampling` without a key.
    """
    weights, draw = decoder_of(params), {"sampling": sampling, "key": key}
    begun = begin(weights, program, carry, question, room=max_new, prefix=prefix, said=said, **draw)
    ends = end_ids(end)
    ids, written, first, *_ = extend(weights, program, begun, ends=ends, **draw)
    ended = jnp.sum(jnp.isin(ids, ends) & (jnp.arange(max_new) < written), dtype=jnp.int32)
    return Answer(ids, written - ended, first)


@partial(jax.jit, static_argnames=("program", "max_new", "sampling"))
def begin_answer(
    params: Params,
    carry: Carry,
    question: Embeds,
    *,
    program: Program,
    max_new: int = 1,
    prefix: KV | None = None,
    sampling: Sampling | None = None,
    key: Array | None = None,
    said: Bool[Array, "V"] | None = None,
) -> Generation:
    """Return an answer with its first token, to be continued; the arguments are those of `ask`."""
    draw, weights = {"sampling": sampling, "key": key, "said": said}, decoder_of(params)
    return begin(weights, program, carry, question, room=max_new, prefix=prefix, **draw)


@partial(
    jax.jit,
    static_argnames=("program", "steps", "end", "sampling"),
    donate_argnames=("generation",),
)
def continue_answer(
    params: Params,
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
      params: weights.
      generation: an answer so far (`begin_answer`); donated.
      program: static description.
      steps: tokens to add at most; shapes stay, one compilation per bucket of questions.
      end: as in `ask`.
      sampling: as in `ask`.
      key: as in `ask`.

    Returns:
      The answer to be continued; `so_far` reads it.
    """
    draw = {"sampling": sampling, "key": key}
    ends = end_ids(end)
    return extend(decoder_of(params), program, generation, ends=ends, most=steps, **draw)


def so_far(
    generation: Generation, end: int | tuple[int, ...] | None = None
) -> tuple[Int[np.ndarray, "m"], bool]:
    """Return the tokens of an answer up to now, without an end token, and whether it is over."""
    ids = np.array(generation.ids)[: int(generation.written)]
    ended = bool(np.isin(ids[-1], -1 if end is None else end))
    return ids[: len(ids) - ended], ended or len(ids) == len(generation.ids)


def branch(carry: Carry) -> Carry:
    """Return a copy with its own buffers: two futures of one past stay independent.

    `stream` donates the carry it is given, so keep a branch of what you want to come back to.
    """
    return jax.tree.map(lambda x: jnp.array(x, copy=True), carry)


__all__ = [
    "Answer",
    "Carry",
    "Encode",
    "Generation",
    "Program",
    "Sampling",
    "as_rows",
    "ask",
    "begin_answer",
    "branch",
    "bucket",
    "continue_answer",
    "decoder_of",
    "init_carry",
    "make_program",
    "probe_rows",
    "question_rows",
    "so_far",
    "spec_of",
    "stream",
]
