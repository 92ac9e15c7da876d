"""`bank`: any memory, with a bank behind it for what it evicts, and recall of blocks by question.

The memory decides what the stream is watched with, as before. What it drops is put together into
blocks, in the order in which it was dropped; a full block goes to the bank of the loop (in host
memory, if `Spec.bank_space` says so) and leaves a summary on the device. A question scores the
summaries and reads the best blocks beside what the memory itself recalls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxmem.kv import KV
from jaxmem.memory import base
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.bank.bank import Bank, Blocks, of_layer
from jaxmem.memory.bank.block_table import (
    Shelf,
    empty_shelf,
    evicted,
    opened,
    recalled,
    shelve,
    together,
)
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State, View, at_layer, kv_of
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts.prioritized import Priority, newest
from jaxmem.memory.uniform import weyl
from jaxmem.typing import Array, Int, Num, PyTree

Full = Literal["oldest", "newest", "uniform"]
"""Which block goes when the bank is full."""
RULES: dict[str, Priority] = {
    "oldest": newest,
    "newest": lambda number, seed=None: number,
    "uniform": weyl,
}


class Notes(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]
    inner: PyTree  # the memory's own notes
    start: Num[Array, "A"]  # where the stream began, behind the prefix
    shelf: Shelf


def bank(
    memory: Memory,
    capacity: int,
    *,
    block: int = 32,
    topk: int = 8,
    recall: blocks.Recall | None = None,
    evict: Full | Priority = "oldest",
    positions: places.Rule = "keep",
) -> Memory:
    """Return the memory with a bank of `capacity` tokens per layer behind it.

    A token is evicted when its arrival number is held no more; it goes to the bank as it was held
    or, if it never was, as it came. Where tokens are merged the parts whose numbers vanish are
    evicted like others, and what a memory writes itself (kind SUMMARY) is not banked: the bank has
    its parts. Evicted tokens wait in an open block, which every question reads. No token is lost
    before the bank is full; from then on `Bank.lost` counts those displaced or turned away.

    Chunks are watched with the memory alone. A question needs its queries, per layer (scope
    "layer") or from a first pass (scope "stack"), and reads [recalled blocks | open block | what
    the memory recalls] in the order of arrival. On the device a layer holds, beside the memory, one
    block and the summaries of the others. Where heads hold different numbers of tokens (`adakv`)
    each has blocks of its own, of which a question reads the best `topk`; `Bank.count` and `lost`
    then add up the heads.

    Args:
      memory: of scope "layer" or "stack", without a bank of its own.
      capacity: tokens of a layer that the bank holds; a last part of a block is not used.
      block: tokens of a block.
      topk: blocks that a question reads in every layer.
      recall: what blocks are known by, and how a question scores them; `blocks.by_mean()` if None.
      evict: the block that goes when the bank is full: "oldest" (first in, first out), "newest"
        (what came first stays), "uniform" (what stays is evenly spaced over all blocks so far), or
        block numbers -> priorities (see `keep.Priority`), the smallest kept.
      positions: recalled tokens "keep" the positions that they were held at; "contiguous" numbers
        all that is read without gaps, for memories that renumber what they hold.

    Raises:
      ValueError: if a size is not positive or an option unknown, the memory has a bank of its own,
        scope "feature" or a sliding window.
    """
    _check(memory, capacity, block, topk, evict, positions)
    rule = RULES[evict] if isinstance(evict, str) else evict
    reader = blocks.by_mean() if recall is None else recall
    many, stacked = capacity // block, memory.scope == "stack"

    def inner(state: State) -> State:
        return State(state.slots, state.aux.inner)

    def init(spec: Spec) -> State:
        state = memory.init(spec)
        shelf = empty_shelf(_empty_block(memory, spec, block), many, reader)
        if stacked:
            layers = (spec.layers,)
            shelf = jax.tree.map(lambda x: jnp.broadcast_to(x[None], layers + x.shape), shelf)
        return State(state.slots, Notes(state.aux.capacity, state.aux, places.start(spec), shelf))

    def view(state: State, bank: PyTree, rows: Embeds) -> View:
        del bank
        return memory.view(inner(state), None, rows)

    def write(state: State, seen: Chunk) -> tuple[State, Blocks]:
        before = base.held(memory, inner(state))
        after, _ = memory.write(inner(state), seen)

        def layer(item: tuple[Shelf, KV, KV, KV]) -> tuple[Shelf, Blocks]:
            shelf, *tokens = item
            return shelve(shelf, evicted(*tokens), rule, reader)

        item = (state.aux.shelf, before, seen.tokens, base.held(memory, after))
        # One layer at a time: all pools side by side would be several copies of the memory.
        shelf, spill = jax.lax.map(layer, item) if stacked else layer(item)
        notes = state.aux._replace(inner=after.aux, shelf=shelf)
        return State(after.slots, notes), spill

    def read(state: State, bank: Bank | None, query: Question | None) -> View:
        if bank is None or query is None:
            raise ValueError(
                f"{memory.name} with a bank recalls from the loop's bank by a question's queries: "
                "call it through jaxmem.loop, or pass both."
            )
        near, notes = memory.recall(inner(state), None, query), state.aux

        def layer(shelf: Shelf, bank: Bank, query: Question, near: View) -> View:
            tokens = together(
                recalled(shelf, bank, query, reader, topk), opened(shelf), near.tokens
            )
            if positions == "contiguous":
                tokens, end = places.numbered(tokens, notes.start)
                near = near._replace(base=end)
            return near._replace(tokens=tokens)

        if not stacked:
            return layer(notes.shelf, bank, query, near)

        def one(l: Array) -> View:
            own = Question(query.q[l], query.valid, at_layer(query.prefix, l))
            mine = of_layer(bank, l)
            assert mine is not None
            return layer(at_layer(notes.shelf, l), mine, own, at_layer(near, l))

        return jax.lax.map(one, jnp.arange(query.q.shape[0], dtype=jnp.int32))

    def spill(spec: Spec) -> Blocks:
        zero, none = jnp.zeros((), jnp.int32), jnp.zeros((1,), jnp.int32)
        like = _empty_block(memory, spec, block)
        if like.modality.ndim == 2:
            like = jax.tree.map(lambda x: x[None], like)
        return Blocks(like, none, none, zero, zero, zero)

    ask = memory.requires.ask or ("pass" if stacked else "layer")
    return Memory(
        init, view, write, read, memory.requires._replace(ask=ask), memory.scope,
        f"{memory.name}_bank", spill, many * block,
        lambda state: base.held(memory, inner(state)),
    )  # fmt: skip


def _empty_block(memory: Memory, spec: Spec, block: int) -> KV:
    """Return an empty block [block], or one of each head [G, block] if they hold different numbers.

    Such heads lie one behind the other in the state's slots, and side by side in `base.held`.
    """
    state = jax.eval_shape(lambda: memory.init(spec))
    tokens = jax.eval_shape(lambda s: base.held(memory, s), state)
    if kv_of(state.slots).k.shape[-2] == tokens.k.shape[-2]:
        return spec.empty(block, tokens.modality.shape[-1])
    one = replace(spec, kv_heads=1).empty(block)
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (spec.kv_heads, *x.shape)), one)


def _check(
    memory: Memory, capacity: int, block: int, topk: int, evict: object, positions: str
) -> None:
    if min(capacity, block, topk) < 1 or capacity < block:
        raise ValueError(
            "a bank needs positive sizes and room for a block, got "
            f"capacity={capacity}, block={block}, topk={topk}."
        )
    if isinstance(evict, str) and evict not in RULES:
        raise ValueError(f"evict must be one of {get_args(Full)} or a function, got {evict!r}.")
    if positions not in get_args(places.Rule):
        raise ValueError(f'positions must be "keep" or "contiguous", got {positions!r}.')
    if memory.scope == "feature" or memory.spill is not None or memory.requires.window is not None:
        raise ValueError(
            f"memory {memory.name!r} has scope {memory.scope!r}"
            + (", a bank of its own" if memory.spill is not None else "")
            + (", a sliding window" if memory.requires.window is not None else "")
            + ": a bank takes what a memory of keys and values evicts; pass one without these."
        )
