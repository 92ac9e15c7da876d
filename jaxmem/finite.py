"""Answers whose logits are not finite: an error that says where the numbers went.

A step that chooses a token marks it -1 where its logits are not finite (`decoder.generate`). Here
nothing is computed unless there is one: then every layer is looked at.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.bound import Bound, as_bound, decoder_of
from jaxmem.decoder.alone import States, alone
from jaxmem.decoder.decoder import DecoderConfig, embed
from jaxmem.decoder.program import Carry, Program, layers_of
from jaxmem.kv import EMPTY
from jaxmem.memory.base import FeatureMemory
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Int, Params, PyTree


class NotFiniteError(ValueError):
    """An answer cannot be given: its logits, or a state, are not finite."""


def check_answer(
    ids: Int[np.ndarray, "M"],
    bound: Bound | Params,
    carry: Carry,
    question: Embeds,
    *,
    program: Program,
) -> None:
    """Raise NotFiniteError if a token was chosen from logits that are not finite.

    Args:
      ids: tokens of the answer, on the host.
      bound: what it was asked with; `carry`, `question` and `program` likewise.
    """
    if (ids >= 0).all():
        return
    first = int(np.argmax(ids < 0))
    where = _layer(as_bound(bound), carry, _with(question, bound, ids[:first]), program)
    dtype = decoder_of(as_bound(bound).params)["embedding"]["embedding"].dtype
    largest = float(jnp.finfo(dtype).max)
    repair = "take bfloat16 or float32 (--dtype, the dtype of load), which hold larger ones"
    if largest > 1e38:
        repair = "look for weights of the checkpoint, or inputs, that are not finite"
    raise NotFiniteError(
        f"the logits of token {first + 1} of the answer are not finite: {where} "
        f"made numbers beyond those of {dtype} (up to {largest:.3g}); {repair}."
    )


def broken_state(carry: Carry, program: Program) -> tuple[int, str] | None:
    """Return the first chunk after which a state was not finite, and of which layer, in words.

    None: all states are finite, or no layer has one.
    """
    if carry.broken is None:
        return None
    chunk, layer = np.asarray(carry.broken).tolist()
    named = f"the state of decoder layer {layer + 1} of {program.config.layers}"
    return None if chunk < 0 else (chunk, named)


def _with(question: Embeds, bound: Bound | Params, ids: np.ndarray) -> Embeds:
    """Return a question's real rows and those of the tokens that were answered."""
    real = np.flatnonzero(np.asarray(question.modality) != EMPTY)
    index = np.append(real, np.repeat(real[-1], len(ids)))
    words = embed(decoder_of(as_bound(bound).params), jnp.asarray(ids, jnp.int32))
    x = jnp.concatenate([question.x[real], words.astype(question.x.dtype)])
    return question._replace(x=x, pos=question.pos[index], modality=question.modality[index])


def _layer(bound: Bound, carry: Carry, question: Embeds, program: Program) -> str:
    """Return in words which layer's output was the first that is not finite."""
    config = program.config
    # A stream that went on meanwhile took its carry over.
    if not (isinstance(program.memory, FeatureMemory) or carry.clock.is_deleted()):
        found = broken_state(carry, program)
        kept = _inputs(config, [_broken(state) for state in layers_of(program, carry)])
        if found is not None and carry.broken is not None:
            layer = int(carry.broken[1])
            if layer < min(kept, default=config.layers):  # no layer that attends knew it before
                more = " or a layer before it," if layer else ""
                return f"{found[1]}, while chunk {found[0] + 1} of the stream was read,{more}"
        if kept:
            return _named(config, kept, "while the stream was read")
    decoder = decoder_of(bound.params)
    q, kv, states = alone(decoder, program, question, bound.prefix, bound.states)
    bad = _inputs(config, [_broken([x[i] for x in (q, kv.k, kv.v)]) for i in range(len(q))])
    return _named(config, [*bad, *_states(config, states)], "in the answer")


def _inputs(config: DecoderConfig, broken: list[bool]) -> list[int]:
    """Return how many layers come before each that attends, of those whose input is broken."""
    return [n for n, bad in zip(config.numbers(None), broken, strict=True) if bad]


def _states(config: DecoderConfig, states: States) -> list[int]:
    """Return how many layers there are up to each with a state, of those whose state is broken."""
    stacks = zip(config.stacks, states, strict=True)
    each = [(n + 1, i, stack) for m, stack in stacks for i, n in enumerate(config.numbers(m))]
    return [n for n, i, stack in each if _broken(jax.tree.map(lambda x, i=i: x[i], stack))]


def _named(config: DecoderConfig, broken: list[int], when: str) -> str:
    """Return in words the first layer whose output is broken, or up to which one it is.

    Args:
      config: of the decoder.
      broken: numbers of first layers that one with a broken output is among.
      when: it was, in words.
    """
    last = min(broken, default=config.layers)
    # What reached the layers that attend before was finite.
    first = max((n + 1 for n in config.numbers(None) if n < last), default=0)
    if last < 2 and not first:
        return f"the embedding or layer 1, {when},"
    bound = " or one before it" if first < last else ""
    return f"decoder layer {last} of {config.layers}{bound}, {when},"


def _broken(tree: PyTree) -> bool:
    """Return whether a tree holds NaN; infinite scores may be meant."""
    floats = (x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating))
    return any(bool(jnp.any(jnp.isnan(x))) for x in floats)
