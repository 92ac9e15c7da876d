"""Memories in decoders that are not ours: JAX only, one function per attention block.

`attend` replaces the attention of one block, between its projections: it asks the memory what the
chunk may see, attends, reports what the memory requires, and writes. `attend_question` reads
without writing. Memories that see the whole stack, or follow each chunk with probes, need all
blocks at once: `attend_stack` and `ask_stack` run them, given a function that calls one block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV, Modality
from jaxmem.memory.attention import attend_probe, attend_view, begin_of
from jaxmem.memory.bank import bank as banks
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.base import (
    AnyMemory,
    Embeds,
    FeatureMemory,
    Memory,
    Probed,
    Question,
    Requires,
    Spec,
    State,
    View,
    at_layer,
)
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float, Hidden, Int, Num, PyTree


def embeds(
    x: Float[Array, "T E"],
    modality: int | Int[Array, "T"] = Modality.VISION,
    *,
    pos: Num[Array, "T A"] | None = None,
    advance: Num[Array, "A"] | None = None,
    axes: int = 1,
) -> Embeds:
    """Return rows as a chunk or a question.

    Args:
      x: embeddings; padding rows last.
      modality: of all rows, or of each; `Modality.EMPTY` is padding.
      pos: positions relative to the first row; None: one row after the other, on every axis.
      advance: how far the rows advance the position; None: one more than the largest `pos` of rows
        that are not padding.
      axes: A, where `pos` is None.
    """
    rows = x.shape[0]
    modality = jnp.broadcast_to(jnp.asarray(modality, jnp.int8), (rows,))
    if pos is None:
        pos = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], (rows, axes))
    if advance is None:
        real = (modality != kvs.EMPTY)[:, None]
        last = jnp.max(jnp.where(real, pos, -1), axis=0)
        advance = (jnp.floor(last) if jnp.issubdtype(pos.dtype, jnp.floating) else last) + 1
    return Embeds(x, pos, modality, advance)


def attend(
    memory: AnyMemory,
    spec: Spec,
    state: State,
    q: Float[Array, "T H D"],
    k: Float[Array, "T G D"],
    v: Float[Array, "T G D"],
    embeds: Embeds,
    clock: Int[Array, ""] | int,
    *,
    rope: Rope | None = None,
    hidden: Hidden | None = None,
    output: Float[Array, "H D E"] | None = None,
    prefix: KV | None = None,
    bank: Bank | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Any:
    """Return a block's attention output over [prefix | sinks | memory | chunk], and the new state.

    Args:
      memory: that sees one layer; streams side by side by `jax.vmap`.
      spec: of the decoder.
      state: of this layer, from `memory.init(spec, layer)`.
      q: queries before rotation.
      k: keys before rotation.
      v: values.
      embeds: positions and modalities of the chunk's rows (`jaxmem.embeds`).
      clock: arrival number of its first row; the next chunk's is `clock + T + 1`.
      rope: rotary embedding of width D; None: `spec.rope`.
      hidden: the block's input, before its norm; needed by memories that require it (OmniMem).
      output: the block's output projection; needed by memories that require it (CriticalKV).
      prefix: this layer's pinned tokens [P], `spec.prefix` of them.
      bank: of this layer alone, from `init_bank(memory, replace(spec, layers=1))`; needed by
        memories that evict to one (ReKV, WithBank).
      scale: of the logits; None: 1 / sqrt(D).
      softcap: logits become softcap * tanh(logits / softcap); None: they stay.

    Returns:
      `(y [T, H, D], state)`, or `(y, state, bank)` where a bank was given.

    Raises:
      ValueError: for a memory that does not see one layer by itself, or lacks what it requires.
    """
    _check_layer(memory)
    assert isinstance(memory, Memory)
    rope = _rope(spec, rope, softcap)
    _check_given(memory, spec, hidden=hidden, output=output, bank=bank)
    view = memory.view(spec, state, embeds, banks.of_layer(bank, jnp.int32(0)))
    more = {"prefix": prefix, "hidden": hidden, "output": output}
    clock = jnp.asarray(clock, jnp.int32)
    q = _scaled(q, scale)
    y, chunk = attend_view(memory.requires, rope, view, q, k, v, embeds, clock, **more)
    state, evicted = memory.write(spec, state, chunk)
    if bank is None:
        return y, state
    return y, state, banks.append(bank, jnp.int32(0), evicted)


def attend_question(
    memory: AnyMemory,
    spec: Spec,
    state: State,
    q: Float[Array, "Q H D"],
    k: Float[Array, "Q G D"],
    v: Float[Array, "Q G D"],
    embeds: Embeds,
    *,
    rope: Rope | None = None,
    prefix: KV | None = None,
    bank: Bank | None = None,
    question: Question | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "Q H D"]:
    """Return a block's attention output for a question; the state is only read.

    Args:
      memory: that sees one layer.
      spec: of the decoder.
      state: of this layer.
      q: queries before rotation.
      k: keys before rotation.
      v: values.
      embeds: positions and modalities of the question's rows.
      rope: as in `attend`.
      prefix: as in `attend`.
      bank: as in `attend`.
      question: queries of a pass over [prefix | question], for memories that recall by them
        (`requires.question` "pass").
      scale: as in `attend`.
      softcap: as in `attend`.

    Raises:
      ValueError: as in `attend`.
    """
    _check_layer(memory)
    assert isinstance(memory, Memory)
    _check_given(memory, spec, hidden=q, output=q, bank=bank)
    rope, q = _rope(spec, rope, softcap), _scaled(q, scale)
    if memory.requires.question == "layer":
        question = Question(q, embeds.modality != kvs.EMPTY, prefix)
    view = memory.recall(spec, state, question, banks.of_layer(bank, jnp.int32(0)))
    return _read(memory, rope, view, q, k, v, embeds, prefix)


class Attend(Protocol):
    """What a block calls in place of its attention."""

    def __call__(
        self, q: Array, k: Array, v: Array, *, output: Array | None = None
    ) -> Float[Array, "T H D"]: ...


Block = Callable[[int, Hidden, Attend], Hidden]
"""(layer, the layer's input [T, E], attend) -> its output [T, E]."""


def init_stack(memory: AnyMemory, spec: Spec) -> PyTree:
    """Return the empty state of all layers for `attend_stack`.

    Raises:
      ValueError: for a memory of features.
    """
    _refuse_features(memory)
    assert isinstance(memory, Memory)
    if memory.per == "stack":
        return memory.init(spec)
    return tuple(memory.init(spec, layer) for layer in range(spec.layers))


def attend_stack(
    memory: AnyMemory,
    spec: Spec,
    state: PyTree,
    block: Block,
    x: Hidden,
    embeds: Embeds,
    clock: Int[Array, ""] | int,
    *,
    rope: Rope | None = None,
    prefix: KV | None = None,
    probes: Embeds | None = None,
    bank: Bank | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Any:
    """Pass a chunk through all blocks of a decoder, whatever the memory sees.

    Args:
      memory: any but one of features.
      spec: of the decoder.
      state: of all layers, from `init_stack`.
      block: calls one block of the decoder.
      x: the first block's input [T, E].
      embeds: positions and modalities of the chunk's rows.
      clock: as in `attend`.
      rope: as in `attend`.
      prefix: pinned tokens of all layers [L, P].
      probes: rows with a leading axis [n, Q, ...], for memories that require probes (HERMES).
      bank: of all layers, from `init_bank(memory, spec)`.
      scale: as in `attend`.
      softcap: as in `attend`.

    Returns:
      `(y [T, E], state)`, or `(y, state, bank)` where a bank was given.

    Raises:
      ValueError: for a memory of features, or one that lacks what it requires.
    """
    _refuse_features(memory)
    assert isinstance(memory, Memory)
    _check_given(memory, spec, hidden=x, output=x, bank=bank, probes=probes)
    rope, clock = _rope(spec, rope, softcap), jnp.asarray(clock, jnp.int32)
    stacked = memory.per == "stack"
    views = memory.view(spec, state, embeds, bank) if stacked else None
    chunks, states, after = [], [], None if probes is None else probes.x
    for layer in range(spec.layers):
        of_layer = banks.of_layer(bank, jnp.int32(layer))
        view = (
            at_layer(views, layer) if stacked
            else memory.view(spec, state[layer], embeds, of_layer)
        )  # fmt: skip
        pinned = at_layer(prefix, layer)
        more = {"embeds": embeds, "clock": clock, "prefix": pinned, "hidden": x}
        x, chunk = _through(
            block, layer, x, scale, partial(attend_view, memory.requires, rope, view, **more)
        )
        if probes is not None and after is not None:
            probes = probes._replace(x=after)
            args = (memory.requires, rope, view, embeds.advance, chunk.kv, pinned, scale)
            after, probed = _probed(block, layer, probes, *args)
            chunk = chunk._replace(probed=probed)
        if stacked:
            chunks.append(chunk)
            continue
        new, evicted = memory.write(spec, state[layer], chunk)
        states.append(new)
        bank = banks.append(bank, jnp.int32(layer), evicted)
    if stacked:
        whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chunks)
        state, evicted = memory.write(spec, state, whole)
        for layer in range(spec.layers) if evicted is not None else ():
            bank = banks.append(bank, jnp.int32(layer), at_layer(evicted, layer))
    else:
        state = tuple(states)
    return (x, state) if bank is None else (x, state, bank)


def ask_stack(
    memory: AnyMemory,
    spec: Spec,
    state: PyTree,
    block: Block,
    x: Hidden,
    embeds: Embeds,
    *,
    rope: Rope | None = None,
    prefix: KV | None = None,
    bank: Bank | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Hidden:
    """Pass a question through all blocks of a decoder; the state is only read.

    The arguments and errors are those of `attend_stack`.

    Returns:
      The last block's output [Q, E].
    """
    _refuse_features(memory)
    assert isinstance(memory, Memory)
    rope, real = _rope(spec, rope, softcap), embeds.modality != kvs.EMPTY
    question = None
    if memory.requires.question == "pass":
        queries = _first_pass(spec, rope, block, x, embeds, prefix, scale)
        question = Question(queries, real, prefix)
    stacked = memory.per == "stack"
    views = memory.recall(spec, state, question, bank) if stacked else None

    def recalled(layer: int, q: Array, pinned: KV | None) -> View:
        if stacked:
            return at_layer(views, layer)
        own = None
        if memory.requires.question == "layer":
            own = Question(q, real, pinned)
        elif question is not None:
            own = Question(question.q[layer], real, pinned)
        return memory.recall(spec, state[layer], own, banks.of_layer(bank, jnp.int32(layer)))

    def reading(
        q: Array, k: Array, v: Array, output: Array | None, *, layer: int
    ) -> tuple[Array, None]:
        del output
        pinned = at_layer(prefix, layer)
        view = recalled(layer, q, pinned)
        return _read(memory, rope, view, q, k, v, embeds, pinned), None

    for layer in range(spec.layers):
        x, _ = _through(block, layer, x, scale, partial(reading, layer=layer))
    return x


def _read(
    memory: Memory,
    rope: Rope,
    view: View,
    q: Array,
    k: Array,
    v: Array,
    embeds: Embeds,
    prefix: KV | None,
) -> Float[Array, "Q H D"]:
    view = view._replace(base=begin_of(view.base, embeds))
    requires = Requires(window=memory.requires.window)
    clock = jnp.zeros((), jnp.int32)
    return attend_view(requires, rope, view, q, k, v, embeds, clock, prefix=prefix)[0]


def _probed(
    block: Block,
    layer: int,
    probes: Embeds,
    requires: Requires,
    rope: Rope,
    view: View,
    advance: Num[Array, "A"],
    fresh: KV,
    prefix: KV | None,
    scale: float | None,
) -> tuple[Float[Array, "n Q E"], Probed]:
    """Return the probes' input of the next layer, and the attention that they gave."""
    asked = requires.probes
    assert asked is not None
    outs, received = [], []
    for i in range(asked.count):
        probe = jax.tree.map(lambda leaf, i=i: leaf[i], probes)
        passes = jnp.bool_(True) if view.probing is None else view.probing[i]
        passing = partial(attend_probe, asked.form, rope, view, fresh, advance, probe)
        own = lambda q, k, v, output, passing=passing: passing(q, k, v, prefix)
        out, given = _through(block, layer, probe.x, scale, own)
        moves = passes & (asked.form == "causal")
        outs.append(jnp.where(moves, out, probe.x))
        received.append(jax.tree.map(lambda x, p=passes: jnp.where(p, x, 0.0), given))
    rows = jnp.sum(probes.modality != kvs.EMPTY, axis=1, dtype=jnp.int32)
    return jnp.stack(outs), Probed(jax.tree.map(lambda *x: jnp.stack(x), *received), rows)


def _first_pass(
    spec: Spec,
    rope: Rope,
    block: Block,
    x: Hidden,
    embeds: Embeds,
    prefix: KV | None,
    scale: float | None,
) -> Float[Array, "L Q H D"]:
    """Return every layer's queries of a question that sees only [prefix | itself]."""
    queries, zero = [], jnp.zeros((), jnp.int32)
    begin = jnp.full((spec.axes,), spec.prefix, spec.pos_dtype)
    for layer in range(spec.layers):
        view, pinned = View(spec.empty(1), begin), at_layer(prefix, layer)

        more = {"embeds": embeds, "clock": zero, "prefix": pinned}
        alone = partial(attend_view, Requires(queries=True), rope, view, **more)
        x, chunk = _through(block, layer, x, scale, alone)
        queries.append(chunk.queries)
    return jnp.stack(queries)


def _through(
    block: Block,
    layer: int,
    x: Hidden,
    scale: float | None,
    attention: Callable[..., tuple[Array, Any]],
) -> tuple[Hidden, Any]:
    """Return the output of one block, and what `attention` reported when it was called there."""
    reports: list[Any] = []

    def mine(q: Array, k: Array, v: Array, *, output: Array | None = None) -> Array:
        y, report = attention(_scaled(q, scale), k, v, output=output)
        reports.append(report)
        return y

    y = block(layer, x, mine)
    (report,) = reports
    return y, report


def _rope(spec: Spec, rope: Rope | None, softcap: float | None) -> Rope:
    if rope is None and spec.rope is None:
        raise ValueError("attention needs a rotary embedding: give rope=, or a Spec with a rope.")
    found = spec.rope if rope is None else rope
    assert found is not None
    return found if softcap is None else replace(found, softcap=softcap)


def _scaled(q: Array, scale: float | None) -> Array:
    """Return queries for logits of q k * scale, where attention takes q k / sqrt(D)."""
    if scale is None:
        return q
    return (q.astype(jnp.float32) * (scale * q.shape[-1] ** 0.5)).astype(q.dtype)


def _refuse_features(memory: AnyMemory) -> None:
    if isinstance(memory, FeatureMemory):
        raise ValueError(
            f"{memory.name} keeps encoder features before the decoder and has no place in its "
            "attention: call memory.write on each chunk's embeddings, and prefill memory.read in "
            "front of a question."
        )


def _check_layer(memory: AnyMemory) -> None:
    _refuse_features(memory)
    assert isinstance(memory, Memory)
    if memory.per == "stack":
        raise ValueError(
            f"{memory.name} compares all layers, so one block cannot write by itself: use "
            "attend_stack and ask_stack, which run all blocks."
        )
    if memory.requires.probes is not None:
        raise ValueError(
            f"{memory.name} scores by probes that pass through all blocks: use attend_stack, with "
            "probes=."
        )


def _check_given(memory: Memory, spec: Spec, **given: Any) -> None:
    """Refuse to go on without something that the memory requires."""
    requires = memory.requires
    asked = {
        "hidden": requires.hidden,
        "output": requires.output,
        "probes": requires.probes is not None and "probes" in given,
        "bank": memory.bank(spec) is not None,
    }
    for name, needed in asked.items():
        if needed and given.get(name) is None:
            raise ValueError(f"{memory.name} requires {name}: give {name}= as described there.")


__all__ = [
    "Attend",
    "Block",
    "ask_stack",
    "attend",
    "attend_question",
    "attend_stack",
    "embeds",
    "init_stack",
]
