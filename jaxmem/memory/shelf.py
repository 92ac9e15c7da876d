"""A layer's shelf: evicted tokens become blocks, blocks get a place in the bank, and come back.

One layer of `jaxmem.memory.banked.bank`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import tokens as tk
from jaxmem.memory import blocks, evict
from jaxmem.memory.bank import Bank, Blocks
from jaxmem.memory.base import Query, at_layer
from jaxmem.memory.keep import LAST, NONE, Priority
from jaxmem.tokens import SUMMARY, Tokens
from jaxmem.typing import Array, Bool, Int, PyTree, UInt

NEVER = np.int32(2**31 - 1)  # behind every arrival number


class Shelf(NamedTuple):
    """What one layer knows of its part of the bank: M blocks."""

    open: Tokens  # [block], the block that is not full yet
    written: UInt[Array, ""]  # blocks that became full so far
    used: Int[Array, ""]  # blocks in the bank
    priority: UInt[Array, "M"]  # of each, the largest goes first; NONE: the place is free
    summary: PyTree  # [M, ...], what each is known by


def empty_shelf(open: Tokens, places: int, reader: blocks.Recall) -> Shelf:
    """Return the shelf of a bank of `places` blocks, each as long as the empty block `open`."""
    summary = jax.eval_shape(reader.summary, open)
    return Shelf(
        open=open,
        written=jnp.zeros((), jnp.uint32),
        used=jnp.zeros((), jnp.int32),
        priority=jnp.full((places,), NONE, jnp.uint32),
        summary=jax.tree.map(lambda x: jnp.zeros((places, *x.shape), x.dtype), summary),
    )


def evicted(before: Tokens, fresh: Tokens, after: Tokens) -> Tokens:
    """Return the tokens [S + T] of memory [S] and chunk [T] that are held no more, oldest first.

    They are told apart by their arrival numbers, in every KV head by itself; heads evict equally
    many. Summary tokens of the memory's own are left out.
    """
    pool = tk.append(before, fresh, tk.count(before))

    def dropped(order: Array, kind: Array, kept: Array) -> Bool[Array, "N"]:
        at = jnp.minimum(jnp.searchsorted(kept, order), kept.shape[0] - 1)
        return (kept[at] != order) & (kind != tk.EMPTY) & (kind != SUMMARY)

    kept = jnp.where(tk.valid(after), after.order, NEVER)
    gone = jax.vmap(dropped, in_axes=1)(pool.order, pool.kind, kept)
    index = jnp.argsort(~gone, axis=1, stable=True).astype(jnp.int32)
    return evict.take(pool, index, jnp.take_along_axis(gone, index, axis=1))


def shelve(
    shelf: Shelf, gone: Tokens, rule: Priority, reader: blocks.Recall
) -> tuple[Shelf, Blocks]:
    """Put evicted tokens [N] into the open block, and say where each block that gets full goes.

    A place that is free is taken first. Then the block of largest priority is displaced, if the new
    one's is smaller; otherwise the new one is turned away.
    """
    block, places = shelf.open.kind.shape[0], shelf.priority.shape[0]
    held = tk.count(shelf.open)
    rows = tk.append(shelf.open, gone, held)
    n, most = held + tk.count(gone), (rows.kind.shape[0] - 1) // block
    stacks = jax.tree.map(lambda x: x[: most * block].reshape(most, block, *x.shape[1:]), rows)
    full = n // block

    def one(i: Array, loop: tuple[Shelf, Blocks]) -> tuple[Shelf, Blocks]:
        shelf, plan = loop
        mine = jnp.minimum(rule(shelf.written[None], None)[0], LAST)
        place = jnp.argmax(shelf.priority).astype(jnp.int32)  # free ones have the largest
        there = shelf.priority[place]
        enters, free = mine < there, there == NONE
        put = jnp.where(enters, place, places)
        known = reader.summary(at_layer(stacks, i))
        shelf = shelf._replace(
            written=shelf.written + jnp.uint32(1),
            used=shelf.used + free,
            priority=shelf.priority.at[put].set(mine, mode="drop"),
            summary=jax.tree.map(
                lambda x, new: x.at[put].set(new, mode="drop"), shelf.summary, known
            ),
        )
        step = jnp.where(enters, plan.many, most)
        return shelf, plan._replace(
            source=plan.source.at[step].set(i, mode="drop"),
            at=plan.at.at[step].set(place * block, mode="drop"),
            many=plan.many + enters,
            lost=plan.lost + jnp.where(free, 0, block),
        )

    none, zero = jnp.zeros((most,), jnp.int32), jnp.zeros((), jnp.int32)
    plan = Blocks(stacks, none, none, zero, zero, zero)
    shelf, plan = jax.lax.fori_loop(0, full, one, (shelf, plan))
    rest = tk.stretch(rows, full * block, n - full * block, block)
    return shelf._replace(open=rest), plan._replace(count=shelf.used * block)


def recalled(shelf: Shelf, bank: Bank, query: Query, reader: blocks.Recall, topk: int) -> Tokens:
    """Return the `topk` best blocks of one layer, each where the bank has it."""
    places = shelf.priority.shape[0]
    there = jnp.arange(places, dtype=jnp.int32) < shelf.used
    score = reader.score(shelf.summary, there, query)
    index, keep = blocks.best(score, shelf.used, min(topk, places), 1)
    return blocks.stored(bank, index, keep, shelf.open.kind.shape[0])


def together(*parts: Tokens) -> Tokens:
    """Return the tokens of all parts in the order of arrival, in every KV head; empty ones last."""
    tokens = jax.tree.map(lambda *x: jnp.concatenate([a.astype(x[-1].dtype) for a in x]), *parts)
    number = jnp.where(tk.valid(tokens), tokens.order, NEVER).T
    index = jnp.argsort(number, axis=1, stable=True).astype(jnp.int32)
    return evict.take(tokens, index, jnp.take_along_axis(number, index, axis=1) < NEVER)
