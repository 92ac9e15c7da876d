"""`WithBank`: any memory, with a bank for what it evicts, and recall of blocks by question.

The memory decides what the stream is watched with, as before. What it drops is put together into
blocks, in the order in which it was dropped; a full block goes to the bank of the loop (in host
memory, unless `space` says otherwise) and leaves a summary on the device. A question scores the
summaries and reads the best blocks beside what the memory itself recalls.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxmem.kv import KV
from jaxmem.memory.bank import retrieval
from jaxmem.memory.bank.bank import Bank, Blocks, of_layer
from jaxmem.memory.bank.block_table import (
    BlockTable,
    empty_table,
    evicted,
    file_away,
    opened,
    recalled,
    together,
)
from jaxmem.memory.bank.host_memory import Space
from jaxmem.memory.bank.rules import RULES, Full
from jaxmem.memory.base import Memory, Spec, State, at_layer, kv_of
from jaxmem.memory.exchange import BankSpec, Chunk, Question, Requires, View
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.memory.transforms.around import Around
from jaxmem.typing import Array, Int, Num, PyTree


class Aux(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]
    next_pos: Num[Array, "A"]
    inner: PyTree  # the memory's own numbers
    start: Num[Array, "A"]  # where the stream began, after the prefix
    table: BlockTable


@dataclass(frozen=True)
class WithBank(Around):
    """A memory with a bank of `capacity` tokens per layer for what it evicts.

    A token is evicted when its arrival number is held no more; it goes to the bank as it was held
    or, if it never was, as it came. Where tokens are merged the parts whose numbers vanish are
    evicted like others, and what a memory writes itself (SUMMARY) is not banked: the bank has its
    parts. Evicted tokens wait in an open block, which every question reads. No token is lost before
    the bank is full; from then on `Bank.dropped` counts those displaced or turned away.

    Chunks are watched with the memory alone. A question needs its queries, per layer or, where the
    memory sees the whole stack, from a first pass, and reads [recalled blocks | open block | what
    the memory recalls] in the order of arrival. On the device a layer holds, beside the memory, one
    block and the summaries of the others. Where heads hold different numbers of tokens (`AdaKV`)
    each has blocks of its own, of which a question reads the best `topk`; `Bank.count` and
    `Bank.dropped` then add up the heads.

    Attributes:
      memory: of keys and values, without a bank of its own.
      capacity: tokens of a layer that the bank holds; a last part of a block is not used.
      block: tokens of a block.
      topk: blocks that a question reads in every layer.
      recall_by: what a block is known by and how a question scores it: its mean key ("mean"), the
        attention to mean keys ("attention"), the best of four parts ("parts"); in Python also a
        `retrieval.Recall`, such as `ByParts(8)`.
      evict: the block that goes when the bank is full: "oldest" (first in, first out), "newest"
        (what came first stays), "uniform" (what stays is evenly spaced over all blocks so far).
      reindex: number all that is read without gaps, for memories that renumber what they hold;
        False: recalled tokens keep the positions that they were held at.
      space: memory of the bank, "host" or "device".

    Raises:
      ValueError: if a size is not positive or an option unknown, the memory has a bank of its own,
        keeps features, or looks at a sliding window.
    """

    capacity: int
    _: KW_ONLY
    block: int = 32
    topk: int = 8
    recall_by: retrieval.RecallName | retrieval.Recall = "mean"
    evict: Full = "oldest"
    reindex: bool = False
    space: Space = "host"

    def __post_init__(self):
        super().__post_init__()
        at_least(self.name, 1, block=self.block, topk=self.topk)
        at_least(self.name, self.block, capacity=self.capacity)
        one_of(self.name, RULES, evict=self.evict)
        if not isinstance(self.recall_by, retrieval.Recall):
            one_of(self.name, tuple(retrieval.RULES), recall_by=self.recall_by)
        one_of(self.name, get_args(Space), space=self.space)
        # What comes out of a bank has no number of its own for its logits.
        inside = _innermost(self.memory)  # options are not those of a wrapper
        adds = (self.memory.requires.retention == "logits", getattr(inside, "count", False))
        if any(adds):
            off = "logits=False" if adds[0] else f"count={False if adds[1] is True else 0}"
            raise ValueError(
                f"memory {self.memory.name} adds numbers to the logits of what it holds: WithBank "
                f"takes it with {off}."
            )
        has_bank = type(inside).bank is not Memory.bank
        if has_bank or self.memory.requires.window is not None:
            raise ValueError(
                f"memory {self.memory.name} has"
                + (" a bank of its own" if has_bank else " a sliding window")
                + ": WithBank takes what a memory of keys and values evicts; pass one without."
            )

    @property
    def name(self) -> str:
        return f"{self.memory.name}_bank"

    @property
    def requires(self) -> Requires:
        asked = self.memory.requires.question
        return self.memory.requires._replace(
            question=asked or ("pass" if self.stacked else "layer")
        )

    @property
    def stacked(self) -> bool:
        """Return whether the memory sees the whole stack."""
        return self.memory.per == "stack"

    @property
    def reader(self) -> retrieval.Recall:
        """Return the rule of recall."""
        rule = self.recall_by
        return retrieval.RULES[rule] if isinstance(rule, str) else rule

    @property
    def blocks(self) -> int:
        """Return how many blocks the bank holds."""
        return self.capacity // self.block

    def bank(self, spec: Spec) -> BankSpec:
        zero, none = jnp.zeros((), jnp.int32), jnp.zeros((1,), jnp.int32)
        like = self._empty_block(spec)
        if like.modality.ndim == 2:
            like = jax.tree.map(lambda x: x[None], like)
        one = Blocks(like, none, none, zero, zero, zero)
        return BankSpec(self.blocks * self.block, one, self.space)

    def _empty_block(self, spec: Spec) -> KV:
        """Return an empty block [block], or [G, block] where heads hold unlike numbers.

        Such heads lie one after the other in the state's slots, and side by side in `Memory.kv`.
        """
        state = jax.eval_shape(lambda: self.memory.init(spec))
        kv = jax.eval_shape(self.memory.kv, state)
        if kv_of(state.slots).k.shape[-2] == kv.k.shape[-2]:
            return spec.empty(self.block, kv.modality.shape[-1])
        one = replace(spec, kv_heads=1).empty(self.block)
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (spec.kv_heads, *x.shape)), one)

    def init(self, spec: Spec, layer: int = 0) -> State:
        state = self.memory.init(spec, layer)
        table = empty_table(self._empty_block(spec), self.blocks, self.reader)
        if self.stacked:
            layers = (spec.layers,)
            table = jax.tree.map(lambda x: jnp.broadcast_to(x[None], layers + x.shape), table)
        aux = state.aux
        return State(state.slots, Aux(aux.capacity, aux.next_pos, aux, places.start(spec), table))

    def view(self, spec: Spec, state: State, embeds: PyTree, bank: PyTree = None) -> View:
        return self.memory.view(spec, self.inner(state), embeds)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, Blocks]:
        before = self.memory.kv(self.inner(state))
        after, _ = self.memory.write(spec, self.inner(state), chunk)

        def layer(item: tuple[BlockTable, KV, KV, KV]) -> tuple[BlockTable, Blocks]:
            table, *kv = item
            return file_away(table, evicted(*kv), self.evict, self.reader)

        item = (state.aux.table, before, chunk.kv, self.memory.kv(after))
        # One layer at a time: all pools side by side would be several copies of the memory.
        table, blocks = jax.lax.map(layer, item) if self.stacked else layer(item)
        aux = state.aux._replace(inner=after.aux, next_pos=after.aux.next_pos, table=table)
        return State(after.slots, aux), blocks

    def recall(
        self, spec: Spec, state: State, question: Question | None, bank: Bank | None = None
    ) -> View:
        if bank is None or question is None:
            raise ValueError(
                f"{self.memory.name} with a bank recalls from the loop's bank by a question's "
                "queries: call it through jaxmem.ask, or pass both."
            )
        near = self.memory.recall(spec, self.inner(state), question)
        if not self.stacked:
            return self._read(state.aux.table, state.aux.start, bank, question, near)

        def one(l: Array) -> View:
            own = Question(question.q[l], question.valid, at_layer(question.prefix, l))
            mine = of_layer(bank, l)
            assert mine is not None
            table = at_layer(state.aux.table, l)
            return self._read(table, state.aux.start, mine, own, at_layer(near, l))

        return jax.lax.map(one, jnp.arange(question.q.shape[0], dtype=jnp.int32))

    def _read(
        self,
        table: BlockTable,
        start: Num[Array, "A"],
        bank: Bank,
        question: Question,
        near: View,
    ) -> View:
        """Return what one layer reads: recalled blocks, the open block, and the memory's own."""
        blocks = recalled(table, bank, question, self.reader, self.topk)
        kv = together(blocks, opened(table), near.kv)
        if not self.reindex:
            return near._replace(kv=kv)
        return near._replace(**dict(zip(("kv", "base"), places.numbered(kv, start), strict=True)))


def _innermost(memory: Memory) -> Memory:
    """Return the memory inside wrappers that have no bank themselves."""
    while isinstance(memory, Around) and type(memory).bank is Around.bank:
        memory = memory.memory
    return memory
