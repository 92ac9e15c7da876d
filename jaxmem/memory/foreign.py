"""Memories in decoders that are not ours; JAX only.

`attend` stands where the attention of one block was, between its projections: it asks the memory
what the chunk may see, attends, reports what the memory requires, and writes. `attend_question`
reads without writing. Memories that compare layers, or follow each chunk with probes, need all
blocks at once: `attend_stack` and `ask_stack` run them, given a function that calls one block.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV, Modality
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.base import AnyMemory, Spec, State
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.foreign_blocks import Block, Blocks, of_decoder, of_one_block
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float, Hidden, Int, Num, Params, PyTree


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
    retention: Params | None = None,
    prefix: KV | None = None,
    bank: Bank | None = None,
) -> Any:
    """Return a block's attention output over [prefix | sinks | memory | chunk], and the new state.

    Args:
      memory: that sees one layer; streams side by side by `jax.vmap`.
      spec: of the decoder.
      state: of this layer, from `memory.init(spec, layer)`.
      q: queries before rotation, not scaled.
      k: keys before rotation.
      v: values.
      embeds: positions and modalities of the chunk's rows (`jaxmem.embeds`).
      clock: arrival number of its first row; `jaxmem.tick` returns that of the next chunk.
      rope: rotary embedding of width D, with scale and soft cap of the logits; None: `spec.rope`.
      hidden: the block's input, before its norm; needed by memories that require it (OmniMem).
      output: the block's output projection; needed by memories that require it (CriticalKV).
      retention: weights {"kernel": [G D, G], "a": [G]} of the block's score of values; needed by
        memories that require it (Retention).
      prefix: this layer's pinned tokens [P], `spec.prefix` of them.
      bank: of this layer alone, from `init_bank(memory, replace(spec, layers=1))`; needed by
        memories that evict to one (ReKV, WithBank).

    Returns:
      `(y [T, H, D], state)`, or `(y, state, bank)` where a bank was given.

    Raises:
      ValueError: for a memory that one block cannot serve by itself or that lacks what it requires,
        and for rows that contradict the spec.
    """
    block: Block = lambda layer, x, attend: attend(q, k, v, output=output, retention=retention)
    pinned = jax.tree.map(lambda x: x[None], prefix)
    blocks = Blocks(of_one_block(memory), spec, (state,), block, rope, pinned, bank)
    y, (state,), *kept = blocks.watch(hidden, embeds, clock)
    return y, state, *kept


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
    retention: Params | None = None,
    prefix: KV | None = None,
    bank: Bank | None = None,
) -> Float[Array, "Q H D"]:
    """Return a block's attention output [Q, H, D] for a question; the state is only read.

    The arguments and errors are those of `attend`, the rows those of the question.
    """
    block: Block = lambda layer, x, attend: attend(q, k, v, retention=retention)
    pinned = jax.tree.map(lambda x: x[None], prefix)
    return Blocks(of_one_block(memory), spec, (state,), block, rope, pinned, bank).ask(q, embeds)


def init_stack(memory: AnyMemory, spec: Spec) -> PyTree:
    """Return the empty state of all layers for `attend_stack`.

    Raises:
      ValueError: for a memory of features.
    """
    memory = of_decoder(memory)
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
) -> Any:
    """Pass a chunk through all blocks of a decoder, whatever the memory sees.

    Args:
      memory: any but one of features.
      spec: of the decoder.
      state: of all layers, from `init_stack`.
      block: (layer, its input [T, E], attend) -> its output [T, E]. It calls `attend(q, k, v)` once
        in place of its attention, with `output=` or `retention=` for memories that require it. It
        is called from Python, inside no transformation, so it may belong to any module system.
      x: the first block's input [T, E].
      embeds: positions and modalities of the chunk's rows.
      clock: as in `attend`.
      rope: as in `attend`.
      prefix: pinned tokens of all layers [L, P].
      probes: rows with a leading axis [n, Q, ...], for memories that require probes (HERMES).
      bank: of all layers, from `init_bank(memory, spec)`.

    Returns:
      `(y [T, E], state)`, or `(y, state, bank)` where a bank was given.

    Raises:
      ValueError: for a memory of features or one that lacks what it requires, for rows that
        contradict the spec, and for a block that does not call `attend` once.
    """
    blocks = Blocks(of_decoder(memory), spec, state, block, rope, prefix, bank)
    return blocks.watch(x, embeds, clock, probes)


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
) -> Hidden:
    """Pass a question through all blocks of a decoder, to the last one's output [Q, E].

    The arguments and errors are those of `attend_stack`; the state is only read.
    """
    return Blocks(of_decoder(memory), spec, state, block, rope, prefix, bank).ask(x, embeds)


__all__ = ["ask_stack", "attend", "attend_question", "attend_stack", "embeds", "init_stack"]
