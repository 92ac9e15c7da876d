"""One text through one memory: the loss of every token, and the facts in it asked for."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.bound import Bound, bucket, decoder_of, ids_as_rows
from jaxmem.compiled import Compiled
from jaxmem.data.text.facts import Asked, Planted
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.decoder import logits
from jaxmem.decoder.program import Carry, Program, layers_of
from jaxmem.decoder.step import chunk_step
from jaxmem.kv import EMPTY
from jaxmem.loop import start
from jaxmem.memory.base import Memory
from jaxmem.typing import Array, Bool, Float, Int, Params


class Ran(NamedTuple):
    """What a memory did on one text, and the stream at its end."""

    result: dict[str, Any]
    carry: Carry


def run_text(bound: Bound, program: Program, text: Planted) -> Ran:
    """Return what a memory does on one text.

    Returns:
      Plain data. `loss`: mean nats of a token in every chunk [K], of each token after all before
      it that the memory shows (the first token is not predicted). `nats`: mean nats of a token of
      every answer, after the right tokens before it; `right`: 1 where each of them is the
      likeliest. `seconds`: those of the text and of the questions, compilation excluded where it
      was before.
    """
    begin, chunk = time.perf_counter(), program.spec.chunk
    size = -(-len(text.ids) // chunk) * chunk
    ids = np.pad(text.ids, (0, size - len(text.ids)), constant_values=-1).reshape(-1, chunk)
    following = np.append(ids.ravel()[1:], -1).reshape(ids.shape)
    carry, nats = _watch(bound, start(program), ids, following, program=program)
    real = following >= 0
    loss = np.where(real, nats, 0).sum(1) / np.maximum(real.sum(1), 1)
    watched = time.perf_counter() - begin
    score, likeliest = ask_all(bound, carry, text.asked, program=program)
    result = {
        "loss": [round(float(x), 5) for x in loss],
        "nats": [round(float(x), 5) for x in score],
        "right": [int(x) for x in likeliest],
        "seconds": [round(watched, 2), round(time.perf_counter() - begin - watched, 2)],
    }
    return Ran(result, carry)


def kept_tokens(program: Program, carry: Carry) -> list[list[Int[np.ndarray, "n"]]]:
    """Return the numbers of the tokens that every layer's heads hold at the end of a text."""
    memory, out = program.memory, []
    assert isinstance(memory, Memory)  # `cells_of` refuses those of features
    for state in layers_of(program, carry):
        kv = memory.kv(state)
        real, index = np.asarray(kv.modality) != EMPTY, np.asarray(kv.index)
        numbers = index - index // (program.spec.chunk + 1)  # a chunk has one number to spare
        out.append([numbers[real[:, g], g] for g in range(real.shape[1])])
    return out


def alike(ours: list[list[np.ndarray]], theirs: Int[np.ndarray, "L G S"]) -> float:
    """Return the share of their tokens that we hold, mean over layers and heads."""
    heads = range(theirs.shape[1])
    found = [
        np.isin(them[g], mine[g if len(mine) > 1 else 0]).mean()
        for mine, them in zip(ours, theirs, strict=True)
        for g in heads
    ]
    return float(np.mean(found))


def ask_all(
    bound: Bound, carry: Carry, asked: Sequence[Asked], *, program: Program
) -> tuple[Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Return the mean nats of an answer's tokens, and whether all are the likeliest.

    Answers have equally many tokens.
    """
    lengths = {len(one.answer) for one in asked}
    if len(lengths) != 1:
        raise ValueError(f"answers must have equally many tokens, got {sorted(lengths)}.")
    size = bucket(max(len(one.question) + len(one.answer) for one in asked))
    both = [np.concatenate([one.question, one.answer]) for one in asked]
    ids = np.stack([np.pad(x, (0, size - len(x)), constant_values=-1) for x in both])
    begins = np.array([len(one.question) for one in asked], np.int32)
    answers = np.stack([one.answer for one in asked]).astype(np.int32)
    nats, right = _answers(bound, carry, ids.astype(np.int32), begins, answers, program=program)
    return np.asarray(nats).mean(1), np.asarray(np.asarray(right).all(1))


def _nats(
    params: Params, program: Program, h: Float[Array, "n E"], ids: Int[Array, "n"]
) -> tuple[Float[Array, "n"], Bool[Array, "n"]]:
    """Return the nats of ids after rows, and whether they are the likeliest."""
    found = logits(params, program.config, h).astype(jnp.float32)
    mine = jnp.take_along_axis(found, jnp.maximum(ids, 0)[:, None], 1)[:, 0]
    return jax.nn.logsumexp(found, axis=1) - mine, jnp.argmax(found, axis=1) == ids


@functools.partial(Compiled, static_argnames="program")
def _watch(
    bound: Bound,
    carry: Carry,
    ids: Int[Array, "K T"],
    following: Int[Array, "K T"],
    *,
    program: Program,
) -> tuple[Carry, Float[Array, "K T"]]:
    """Return the carry after a text, and the nats of the token after every row."""
    params = decoder_of(bound.params)

    def step(carry: Carry, both: tuple[Array, Array]) -> tuple[Carry, Array]:
        rows = program.encode(bound.params, both[0])
        carry, h = chunk_step(params, program, carry, rows, bound.prefix, bound.probes)
        return carry, _nats(params, program, h, both[1])[0]

    return jax.lax.scan(step, carry, (ids, following))


@functools.partial(Compiled, static_argnames="program")
def _answers(
    bound: Bound,
    carry: Carry,
    ids: Int[Array, "n Q"],
    begins: Int[Array, "n"],
    answers: Int[Array, "n m"],
    *,
    program: Program,
) -> tuple[Float[Array, "n m"], Bool[Array, "n m"]]:
    """Return the nats of answers' tokens, and whether they are the likeliest; one pass each."""
    params = decoder_of(bound.params)

    def one(ids: Array, begin: Array, answer: Array) -> tuple[Array, Array]:
        rows = ids_as_rows(bound.params, ids, program=program)
        more = {"prefix": bound.prefix, "states": bound.states, "asked": begin}
        _, h = prefill(params, program, carry, rows, room=0, **more)
        return _nats(params, program, h[begin - 1 + jnp.arange(answer.shape[0])], answer)

    return jax.vmap(one)(ids, begins, answers)
