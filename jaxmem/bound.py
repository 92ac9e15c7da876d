"""A program's arrays: weights, the prefix in front of its streams, and text as rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.compiled import Compiled
from jaxmem.decoder.decoder import DecoderConfig, embed
from jaxmem.decoder.placing import placed
from jaxmem.decoder.program import Program, Text
from jaxmem.decoder.step import prefix_and_states
from jaxmem.kv import KV
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Array, Int, Num, Params, PyTree


class Bound(NamedTuple):
    """A program's arrays: weights, the keys and values of its prefix, and its probes."""

    params: Params  # `params["decoder"]` if there is such a key, else the decoder's own
    prefix: KV | None = None  # pinned tokens [L, P]
    probes: Embeds | None = None  # rows with a leading axis
    states: tuple[PyTree, ...] = ()  # of the layers with a state, after the prefix


def as_bound(bound: Bound | Params) -> Bound:
    """Return arrays that may be weights alone."""
    return bound if isinstance(bound, Bound) else Bound(bound)


def decoder_of(params: Params) -> Params:
    """Return the decoder's weights among a model's."""
    return params.get("decoder", params)


def bind(program: Program, params: Params, probes: Sequence[Text] | None = None) -> Bound:
    """Return a program's arrays: weights, prefix KV and probes, on its devices.

    Args:
      program: static description.
      params: weights.
      probes: texts of the probes; None: those of the program.
    """
    params = placed(program.mesh, params)
    prefix, states = (None, ()) if program.prefix is None else _prefix_of(program, params)
    texts = program.probes if probes is None else tuple(probes)
    rows = probe_rows(params, texts, program=program) if texts else None
    return placed(program.mesh, Bound(params, prefix, rows, states), program.config.stacks)


def _prefix_of(program: Program, params: Params) -> tuple[KV, tuple[PyTree, ...]]:
    """Return keys and values of the text in front of every stream, and the states after it."""
    assert program.prefix is not None
    spec, (ids, steps) = program.spec, program.prefix
    rows = question_rows(params, ids, program=program, size=len(ids), steps=steps)
    # The stream begins at position P, whatever its prefix advances: the prefix ends right there.
    rows = rows._replace(pos=rows.pos + (spec.prefix - rows.advance)[None])
    more = {"axes": spec.axes, "dtype": spec.dtype, "pos_dtype": spec.pos_dtype}
    return _after_prefix(decoder_of(params), rows, program.config, tuple(more.items()))


@partial(Compiled, static_argnums=(2, 3))
def _after_prefix(
    decoder: Params, rows: Embeds, config: DecoderConfig, spec: tuple[tuple[str, Any], ...]
) -> tuple[KV, tuple[PyTree, ...]]:
    return prefix_and_states(decoder, config, rows, **dict(spec))


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


def ids_as_rows(
    params: Params,
    ids: Int[Array, "Q"],
    *,
    program: Program,
    steps: Int[Array, "Q"] | None = None,
    start: Num[Array, "A"] | None = None,
) -> Embeds:
    """Return a question as `question_rows` does, inside `jit`, `grad` and `vmap`.

    Args:
      params: weights.
      ids: token ids, -1 after them.
      program: static description.
      steps: see `question_rows`, 0 for padding; None: one each.
      start: see `Embeds.start`.
    """
    step, real = jnp.asarray(program.spec.step, program.spec.pos_dtype), ids >= 0
    ends = jnp.cumsum(real if steps is None else steps, dtype=step.dtype)[:, None] * step[None]
    return Embeds(
        x=embed(decoder_of(params), jnp.maximum(ids, 0)),
        pos=jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]]),
        modality=jnp.where(real, kvs.TEXT, kvs.EMPTY).astype(jnp.int8),
        advance=ends[-1],
        start=start,
    )


def check_ids(ids: np.ndarray, vocab: int, what: str = "question") -> None:
    """Raise ValueError where ids are no list of tokens of a vocabulary."""
    if not ids.size:
        raise ValueError(f"the {what} is empty; ask at least one token.")
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
