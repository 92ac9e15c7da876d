"""A layer's shelf: evicted tokens become blocks, blocks get a place in the bank, and come back.

One layer of `jaxmem.memory.bank.bank`. Where heads hold, and evict, different numbers of tokens,
every KV head has a shelf of its own (leading axis G), and its own stretch of the layer's entries.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.kv import KV, SUMMARY
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.bank.bank import Bank, Blocks
from jaxmem.memory.base import Question, at_layer
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts.prioritized import LAST, NONE, Priority
from jaxmem.typing import Array, Bool, Int, PyTree, UInt

NEVER = np.int32(2**31 - 1)  # behind every arrival number


class Shelf(NamedTuple):
    """What one layer knows of its part of the bank: M blocks."""

    open: KV  # [block], the block that is not full yet
    written: UInt[Array, ""]  # blocks that became full so far
    used: Int[Array, ""]  # blocks in the bank
    priority: UInt[Array, "M"]  # of each, the largest goes first; NONE: the place is free
    summary: PyTree  # [M, ...], what each is known by


def empty_shelf(open: KV, places: int, reader: blocks.Recall) -> Shelf:
    """Return the shelf of a bank of `places` blocks, each as long as the empty block `open`.

    Leaves of `open` with a leading axis G make a shelf for every head.
    """
    if open.modality.ndim == 3:
        return jax.vmap(lambda one: empty_shelf(one, places, reader))(open)
    summary = jax.eval_shape(reader.summary, open)
    return Shelf(
        open=open,
        written=jnp.zeros((), jnp.uint32),
        used=jnp.zeros((), jnp.int32),
        priority=jnp.full((places,), NONE, jnp.uint32),
        summary=jax.tree.map(lambda x: jnp.zeros((places, *x.shape), x.dtype), summary),
    )


def evicted(before: KV, fresh: KV, after: KV) -> KV:
    """Return the tokens [S + T] of memory [S] and chunk [T] that are held no more, oldest first.

    They are told apart by their arrival numbers, in every KV head by itself. Summary tokens of the
    memory's own are left out.
    """
    pool = jax.tree.map(lambda x, new: jnp.concatenate([x, new.astype(x.dtype)]), before, fresh)

    def dropped(order: Array, kind: Array, kept: Array) -> Bool[Array, "N"]:
        at = jnp.minimum(jnp.searchsorted(kept, order), kept.shape[0] - 1)
        return (kept[at] != order) & (kind != tk.EMPTY) & (kind != SUMMARY)

    kept = jnp.where(tk.valid(after), after.index, NEVER)
    gone = jax.vmap(dropped, in_axes=1)(pool.index, pool.modality, kept)
    index = jnp.argsort(~gone, axis=1, stable=True).astype(jnp.int32)
    return evict.take(pool, index, jnp.take_along_axis(gone, index, axis=1))


def shelve(shelf: Shelf, gone: KV, rule: Priority, reader: blocks.Recall) -> tuple[Shelf, Blocks]:
    """Put evicted tokens [N] into the open block, and say where each block that gets full goes.

    A place that is free is taken first. Then the block of largest priority is displaced, if the new
    one's is smaller; otherwise the new one is turned away.
    """
    if shelf.open.modality.ndim == 3:
        one_head = lambda item: shelve(item[0], item[1], rule, reader)
        shelf, plans = jax.lax.map(one_head, (shelf, _by_head(gone)))
        return shelf, _joined(plans, shelf.priority.shape[1] * shelf.open.modality.shape[1])
    block, places = shelf.open.modality.shape[0], shelf.priority.shape[0]
    held = tk.count(shelf.open)
    rows = tk.append(shelf.open, gone, held)
    n, most = held + tk.count(gone), (rows.modality.shape[0] - 1) // block
    stacks = jax.tree.map(lambda x: x[: most * block].reshape(most, block, *x.shape[1:]), rows)
    full = n // block
    # A loop whose length is data has no gradient: tokens stay outside, summaries only rank blocks.
    seen, summary = jax.lax.stop_gradient((stacks, shelf.summary))

    def one(i: Array, loop: tuple[Shelf, Blocks]) -> tuple[Shelf, Blocks]:
        shelf, plan = loop
        mine = jnp.minimum(rule(shelf.written[None], None)[0], LAST)
        place = jnp.argmax(shelf.priority).astype(jnp.int32)  # free ones have the largest
        there = shelf.priority[place]
        enters, free = mine < there, there == NONE
        put = jnp.where(enters, place, places)
        known = reader.summary(at_layer(seen, i))
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
    begun = shelf._replace(open=None, summary=summary), Blocks(None, none, none, zero, zero, zero)
    shelf, plan = jax.lax.fori_loop(0, full, one, begun)
    rest = tk.stretch(rows, full * block, n - full * block, block)
    return shelf._replace(open=rest), plan._replace(tokens=stacks, count=shelf.used * block)


def _joined(plans: Blocks, entries: int) -> Blocks:
    """Return the blocks of all heads as those of one layer; head g's entries begin at g * entries.

    Args:
      plans: leading axis G everywhere.
      entries: of every head.
    """
    heads, most = plans.source.shape
    head = jnp.arange(heads, dtype=jnp.int32)[:, None]
    written = jnp.arange(most, dtype=jnp.int32)[None] < plans.many[:, None]
    first = jnp.argsort(~written.reshape(-1), stable=True)
    total = lambda x: jnp.sum(x, dtype=jnp.int32)
    return Blocks(
        tokens=jax.tree.map(lambda x: x.reshape(heads * most, *x.shape[2:]), plans.tokens),
        source=(plans.source + most * head).reshape(-1)[first],
        at=(plans.at + entries * head).reshape(-1)[first],
        many=total(plans.many),
        count=total(plans.count),
        lost=total(plans.lost),
    )


def _by_head(tokens: KV) -> KV:
    """Return tokens [N, G, ...] as those of every head by itself [G, N, 1, ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], tokens)


def _side_by_side(tokens: KV) -> KV:
    """Return what `_by_head` took apart."""
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), tokens)


def opened(shelf: Shelf) -> KV:
    """Return the open block [block] of a layer."""
    return shelf.open if shelf.open.modality.ndim == 2 else _side_by_side(shelf.open)


def recalled(
    shelf: Shelf,
    bank: Bank,
    query: Question,
    reader: blocks.Recall,
    topk: int,
    first: int | Array = 0,
) -> KV:
    """Return the `topk` best blocks of one layer, each where the bank has it.

    Where heads have shelves of their own, each is asked by the queries that it serves, and `topk`
    blocks of each are read.

    Args:
      shelf: what the layer knows of its part of the bank.
      bank: that part.
      query: the question's queries.
      reader: the rule.
      topk: blocks that are read.
      first: where the shelf's blocks begin in the bank, counted in blocks.
    """
    if shelf.open.modality.ndim == 3:
        heads, places = shelf.priority.shape
        split = query.q.reshape(query.q.shape[0], heads, -1, query.q.shape[-1])

        def one_head(item: tuple[Shelf, Array, Array]) -> KV:
            own, q, head = item
            asked = Question(q, query.valid, None)
            return recalled(own, bank, asked, reader, topk, head * places)

        each = (shelf, jnp.moveaxis(split, 1, 0), jnp.arange(heads, dtype=jnp.int32))
        return _side_by_side(jax.lax.map(one_head, each))
    places = shelf.priority.shape[0]
    there = jnp.arange(places, dtype=jnp.int32) < shelf.used
    score = reader.score(shelf.summary, there, query)
    index, keep = blocks.best(score, shelf.used, min(topk, places), 1)
    return blocks.stored(bank, index + first, keep, shelf.open.modality.shape[0])


def together(*parts: KV) -> KV:
    """Return the tokens of all parts in the order of arrival, in every KV head; empty ones last."""
    tokens = jax.tree.map(lambda *x: jnp.concatenate([a.astype(x[-1].dtype) for a in x]), *parts)
    number = jnp.where(tk.valid(tokens), tokens.index, NEVER).T
    index = jnp.argsort(number, axis=1, stable=True).astype(jnp.int32)
    return evict.take(tokens, index, jnp.take_along_axis(number, index, axis=1) < NEVER)
