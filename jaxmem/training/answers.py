"""The loss of answers after a stream through a memory: what fine-tuning of every kind minimises.

What is trained is what is run: chunks pass `chunk_step`, questions `answer_logits`. Between them
the stream's carry goes from chunk to chunk; the backward pass computes every chunk again from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.bound import Bound, bind, decoder_of, ids_as_rows
from jaxmem.decoder.answer import answer_logits
from jaxmem.decoder.gradient import Gradient
from jaxmem.decoder.program import Carry, Program, init_carry
from jaxmem.decoder.step import chunk_step
from jaxmem.memory.base import AnyMemory, Memory
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.layout import layout_of
from jaxmem.training.differentiable import Mode, Selection, check_differentiable, choosing
from jaxmem.training.remat import timed
from jaxmem.typing import Array, Float, Int, Num, Params, PyTree


class Example(NamedTuple):
    """One stream in M parts of K chunks, and n questions after each part; more: [B, ...].

    Rows of a question are followed by those of its answer without the last; a target is the token
    that is to follow a row.
    """

    inputs: PyTree  # [M, K, ...], what `program.encode` takes, or its rows (`Embeds`)
    ids: Int[Any, "M n Q"]  # -1 after the words
    target: Int[Any, "M n Q"]  # -1: any
    aux: PyTree = None  # `State.aux` of a smaller budget (`numbers_of`); None: the program's own
    steps: Int[Any, "M n Q"] | None = None  # see `ids_as_rows`
    start: Num[Any, "M A"] | None = None  # `Embeds.start` of the questions of a moment


class Metrics(NamedTuple):
    """What a batch says."""

    loss: Array  # of a token of an answer, nats
    accuracy: Array  # share of these tokens that were the likeliest


Objective = Callable[[Params, Example], tuple[Array, Metrics]]


def objective(
    program: Program,
    *,
    mode: Mode = "through",
    selection: Selection = "hard",
    segments: int | None = None,
    weights: Callable[[Params], Params] = lambda trained: trained,
) -> Objective:
    """Return the loss of a batch of streams [B, ...], a function of (trained, batch).

    Encoders are frozen: rows are constants, made inside the chunk or given. Budgets are data
    (`Example.aux`): one compilation serves all that a program holds.

    Args:
      program: static description; its memory holds keys and values as numbers, on the device.
      mode: where gradients go. "through": everywhere, back to the first chunk. "read": the stream
        is a constant, questions alone are differentiated. "published": OmniMem's cut. In the layers
        below the middle every input is a constant, so that keys and values that are kept train
        what they were projected with, and nothing earlier; the layers above have a gradient in the
        last chunk before a question only.
      selection: what a memory chooses has no gradient ("hard"), or has one by its scores ("soft",
        see `choosing`); the loss is the same.
      segments: checkpoint so many segments of chunks, too, between two moments; None: chunks alone.
      weights: makes a model's weights of what is trained (adapters, a change of dtype); called once
        for a chunk, so that what it converts is never held twice.

    Raises:
      ValueError: if there is no such mode, or what is between a stream and its answers has no
        derivative (`check_differentiable`, `choosing`).
    """
    check_differentiable(program, mode)
    program = choosing(program, selection, mode)

    def batch_loss(trained: Params, batch: Example) -> tuple[Array, Metrics]:
        bound = bind(program, weights(trained))

        def one(example: Example) -> tuple[Array, Array, Array]:
            carry = started(program, bound, example.aux)
            more = {"program": program, "mode": mode, "segments": segments, "weights": weights}
            return stream_loss(trained, bound, carry, example, **more)

        lost, right, many = jax.tree.map(jnp.sum, jax.vmap(one)(batch))
        loss = lost / jnp.maximum(many, 1)
        return loss, Metrics(loss, right / jnp.maximum(many, 1))

    return batch_loss


def started(program: Program, bound: Bound, aux: PyTree = None) -> Carry:
    """Return the carry of a stream that has not begun, within a smaller budget where `aux` is."""
    carry = init_carry(program, bound.states)
    return carry if aux is None else carry._replace(state=carry.state._replace(aux=aux))


def stream_loss(
    trained: Params,
    bound: Bound,
    carry: Carry,
    example: Example,
    *,
    program: Program,
    mode: Mode = "through",
    segments: int | None = None,
    weights: Callable[[Params], Params] = lambda trained: trained,
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Return the summed loss of the answers about one stream, how many were right, and of how many.

    Args:
      trained: what the gradient is by.
      bound: of `weights(trained)`, for prefix and probes.
      carry: of the stream before it begins.
      example: the stream.
      program: static description.
      mode: see `objective`.
      segments: see `objective`.
      weights: see `objective`.
    """
    middle = program.config.layers // 2 if mode == "published" else 0
    stop = jax.lax.stop_gradient if mode == "read" else lambda tree: tree

    def chunk(trained: Params, x: PyTree, carry: Carry, *, last: bool) -> tuple[Array, Carry]:
        inputs = jax.tree.map(lambda x: x[0], x)
        params = weights(trained)
        rows = inputs if isinstance(inputs, Embeds) else program.encode(params, inputs)
        rows, gradient = jax.lax.stop_gradient(rows), Gradient(middle=middle, last=last)
        more = {"prefix": stop(bound.prefix), "probes": stop(bound.probes), "gradient": gradient}
        return jnp.zeros(()), chunk_step(decoder_of(params), program, carry, rows, **more)[0]

    def watch(inputs: PyTree, carry: Carry, segments: int | None, last: bool = True) -> Carry:
        more = {"nested": segments is not None, "segments": segments, "keep": Gradient().keep}
        run = timed(partial(chunk, last=last), chunk=1, **more)
        return run(stop(trained), inputs, carry)[1]

    def ask(trained: Params, carry: Carry, asked: tuple[PyTree, ...]) -> tuple[Array, ...]:
        return _asked(weights(trained), bound, carry, program, *asked)

    def moment(carry: Carry, given: tuple[PyTree, ...]) -> tuple[Carry, tuple[Array, ...]]:
        inputs, asked = given
        cut = jax.tree.leaves(inputs)[0].shape[0] - 1 if middle else 0
        if cut:  # a program of its own, without what no gradient needs
            early = jax.tree.map(lambda x: x[:cut], inputs)
            carry = watch(early, carry, segments and _divisor(cut, segments), last=False)
        late = jax.tree.map(lambda x: x[cut:], inputs)
        carry = stop(watch(late, carry, None if middle else segments))
        return carry, jax.checkpoint(ask, prevent_cse=False)(trained, carry, asked)

    asked = example.ids, example.target, example.steps, example.start
    given = example.inputs, asked
    if len(example.ids) == 1:  # as a loop of one, XLA would hold a copy of the weights beside them
        _, found = moment(stop(carry), jax.tree.map(lambda x: x[0], given))
    else:
        _, found = jax.lax.scan(moment, stop(carry), given)
    lost, right, many = jax.tree.map(jnp.sum, found)
    return lost, right, many


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most so large."""
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def _asked(
    params: Params,
    bound: Bound,
    carry: Carry,
    program: Program,
    ids: Int[Array, "n Q"],
    target: Int[Array, "n Q"],
    steps: Int[Array, "n Q"] | None,
    start: Num[Array, "A"] | None,
) -> tuple[Float[Array, "n"], Int[Array, "n"], Int[Array, "n"]]:
    """Return loss, right tokens and tokens of every question; the carry is only read."""
    more = {"prefix": bound.prefix, "states": bound.states}

    def one(ids: Array, target: Array, steps: Array | None) -> tuple[Array, Array, Array]:
        rows = ids_as_rows(params, ids, program=program, steps=steps, start=start)
        counts = target >= 0
        own = jnp.argmax(counts).astype(jnp.int32) + 1
        score = answer_logits(decoder_of(params), program, carry, rows, asked=own, **more)
        each = token_log_probs(score, target)
        right = counts & (jnp.argmax(score, axis=-1) == target)
        add = lambda x: jnp.sum(x, dtype=jnp.int32)
        return -jnp.sum(jnp.where(counts, each, 0.0)), add(right), add(counts)

    return jax.vmap(one)(ids, target, steps)


def token_log_probs(score: Float[Array, "Q V"], target: Int[Array, "Q"]) -> Float[Array, "Q"]:
    """Return log p of the token that follows every row; of any, where the target is -1, of 0."""
    chosen = jnp.take_along_axis(score, jnp.maximum(target, 0)[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(score, axis=-1)


def taught(
    asked: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], size: int | None = None
) -> tuple[Int[np.ndarray, "M n Q"], Int[np.ndarray, "M n Q"]]:
    """Return `Example.ids` and `Example.target` of questions with their answers, as token ids.

    Args:
      asked: at every moment n pairs of a question and its answer.
      size: Q, rows of a question with its answer; None: as many as the longest needs.

    Raises:
      ValueError: if a question or an answer is empty, or one with the other needs more rows.
    """
    pairs = [(tuple(q), tuple(a)) for moment in asked for q, a in moment]
    longest = max(len(q) + len(a) - 1 for q, a in pairs)
    size = longest if size is None else size
    if longest > size or not all(q and a for q, a in pairs):
        raise ValueError(
            f"questions and answers have at least a token each and {size} rows together, got "
            f"{longest} rows, {min(len(a) for _, a in pairs)} tokens in the shortest answer."
        )
    ids = np.full((len(pairs), size), -1, np.int32)
    target = ids.copy()
    for i, (q, a) in enumerate(pairs):
        ids[i, : len(q) + len(a) - 1] = q + a[:-1]
        target[i, len(q) - 1 : len(q) + len(a) - 1] = a
    return tuple(x.reshape(len(asked), -1, size) for x in (ids, target))  # type: ignore[return-value]


def encoded(program: Program, params: Params, inputs: PyTree) -> Embeds:
    """Return the rows of streams [B, M, K, ...], once for several gradients; one chunk at a time.

    Args:
      program: static description.
      params: weights of the model, the encoders' among them.
      inputs: of the streams.
    """
    lead = jax.tree.leaves(inputs)[0].shape[:3]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), inputs)
    rows = jax.lax.map(lambda chunk: program.encode(params, chunk), flat)
    return jax.lax.stop_gradient(jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), rows))


def numbers_of(program: Program, memory: AnyMemory) -> PyTree:
    """Return `State.aux` of a smaller budget, by which streams of the program keep within it.

    Args:
      program: whose memory has the largest budget.
      memory: the same with fewer slots.

    Raises:
      ValueError: if a budget of the memory is more than numbers in its state.
    """
    numbers = lambda program: init_carry(program).state.aux
    small = replace(program, memory=memory, layout=None)
    if program.layout is not None:
        assert isinstance(memory, Memory)
        small = replace(small, layout=layout_of(memory, program.spec))
    mine, theirs = (jax.eval_shape(partial(numbers, p)) for p in (program, small))
    if memory.sized_by_options or mine != theirs:
        raise ValueError(
            f"memory {memory.name} knows its budget by more than the numbers in its state: train "
            "it at one budget, or with a program for each."
        )
    return jax.jit(partial(numbers, small))()
