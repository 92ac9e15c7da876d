"""A layer's block table: evicted tokens become blocks, get a place in the bank, and come back.

One layer of `jaxmem.memory.bank.bank`. Where heads hold, and evict, different numbers of tokens,
every KV head has a table of its own (leading axis G), and its own stretch of the layer's entries.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.kv import KV, SUMMARY
from jaxmem.memory.bank import retrieval, rules
from jaxmem.memory.bank.bank import Bank, Blocks
from jaxmem.memory.bank.epochs import today
from jaxmem.memory.base import at_layer
from jaxmem.memory.exchange import Question
from jaxmem.memory.parts import scored
from jaxmem.memory.parts.prioritized import NONE
from jaxmem.memory.parts.units import Number, zero
from jaxmem.typing import Array, Bool, Int, PyTree, UInt

NEVER = np.int32(2**31 - 1)  # after every arrival number


class BlockTable(NamedTuple):
    """What one layer knows of its part of the bank: M blocks."""

    open: KV  # [block], the block that is not full yet
    written: Number  # blocks that became full so far
    used: Int[Array, ""]  # blocks in the bank
    priority: UInt[Array, "M"]  # of each, the largest goes first; NONE: the place is free
    summary: PyTree  # [M, ...], what each is known by
    epoch: Int[Array, ""]  # how often the clock has moved back (`memory.clock`)
    epochs: Int[Array, "M"]  # and how often it had, when each block was written


def empty_table(open: KV, places: int, reader: retrieval.Recall) -> BlockTable:
    """Return the table of a bank of `places` blocks, each as long as the empty block `open`.

    Leaves of `open` with a leading axis G make a table for every head.
    """
    if open.modality.ndim == 3:
        return jax.vmap(lambda one: empty_table(one, places, reader))(open)
    summary = jax.eval_shape(reader.summary, open)
    return BlockTable(
        open=open,
        written=zero(),
        used=jnp.zeros((), jnp.int32),
        priority=jnp.full((places,), NONE, jnp.uint32),
        summary=jax.tree.map(lambda x: jnp.zeros((places, *x.shape), x.dtype), summary),
        epoch=jnp.zeros((), jnp.int32),
        epochs=jnp.zeros((places,), jnp.int32),
    )


def evicted(before: KV, fresh: KV, after: KV) -> KV:
    """Return the tokens [S + T] of memory [S] and chunk [T] that are held no more, oldest first.

    They are told apart by their arrival numbers, in every KV head by itself. Summary tokens of the
    memory's own are left out.
    """
    pool = jax.tree.map(lambda x, new: jnp.concatenate([x, new.astype(x.dtype)]), before, fresh)

    def gone_from(number: Array, modality: Array, kept: Array) -> Bool[Array, "N"]:
        at = jnp.minimum(jnp.searchsorted(kept, number), kept.shape[0] - 1)
        return (kept[at] != number) & (modality != kvs.EMPTY) & (modality != SUMMARY)

    kept = jnp.where(kvs.valid(after), after.index, NEVER)
    gone = jax.vmap(gone_from, in_axes=1)(pool.index, pool.modality, kept)
    index = jnp.argsort(~gone, axis=1, stable=True).astype(jnp.int32)
    return scored.take(pool, index, jnp.take_along_axis(gone, index, axis=1))


def file_away(
    table: BlockTable, gone: KV, full: rules.Full, reader: retrieval.Recall
) -> tuple[BlockTable, Blocks]:
    """Put evicted tokens [N] into the open block, and say where each block that gets full goes.

    A place that is free is taken first. Then the block of largest priority is displaced, if the new
    one's is smaller; otherwise the new one is turned away.
    """
    if table.open.modality.ndim == 3:
        one_head = lambda item: file_away(item[0], item[1], full, reader)
        table, plans = jax.lax.map(one_head, (table, _by_head(gone)))
        return table, _joined(plans, table.priority.shape[1] * table.open.modality.shape[1])
    block, places = table.open.modality.shape[0], table.priority.shape[0]
    held = kvs.count(table.open)
    rows = kvs.append(table.open, gone, held)
    n, most = held + kvs.count(gone), (rows.modality.shape[0] - 1) // block
    stacks = jax.tree.map(lambda x: x[: most * block].reshape(most, block, *x.shape[1:]), rows)
    many = n // block
    # A loop whose length is data has no gradient: tokens stay outside, summaries only rank blocks.
    seen, summary = jax.lax.stop_gradient((stacks, table.summary))

    def one(i: Array, loop: tuple[BlockTable, Blocks]) -> tuple[BlockTable, Blocks]:
        table, plan = loop
        mine = rules.priority(full, table.written)
        place = jnp.argmax(table.priority).astype(jnp.int32)  # free ones have the largest
        there = table.priority[place]
        enters, free = mine < there, there == NONE
        put = jnp.where(enters, place, places)
        known = reader.summary(at_layer(seen, i))
        table = table._replace(
            written=table.written.plus(jnp.uint32(1)),
            used=table.used + free,
            priority=table.priority.at[put].set(mine, mode="drop"),
            epochs=table.epochs.at[put].set(table.epoch, mode="drop"),
            summary=jax.tree.map(
                lambda x, new: x.at[put].set(new, mode="drop"), table.summary, known
            ),
        )
        step = jnp.where(enters, plan.many, most)
        return table, plan._replace(
            source=plan.source.at[step].set(i, mode="drop"),
            at=plan.at.at[step].set(place * block, mode="drop"),
            many=plan.many + enters,
            dropped=plan.dropped + jnp.where(free, 0, block),
        )

    none, nothing = jnp.zeros((most,), jnp.int32), jnp.zeros((), jnp.int32)
    written, priority = rules.rebased(full, table.written, table.priority)
    begun = table._replace(open=None, written=written, priority=priority, summary=summary)
    plan = Blocks(None, none, none, nothing, nothing, nothing)
    table, plan = jax.lax.fori_loop(0, many, one, (begun, plan))
    rest = kvs.stretch(rows, many * block, n - many * block, block)
    return table._replace(open=rest), plan._replace(kv=stacks, count=table.used * block)


def _joined(plans: Blocks, entries: int) -> Blocks:
    """Return the blocks of all heads as those of one layer; head g's entries begin at g * entries.

    All plans have a leading axis G, and a head has `entries` of its own.
    """
    heads, most = plans.source.shape
    head = jnp.arange(heads, dtype=jnp.int32)[:, None]
    written = jnp.arange(most, dtype=jnp.int32)[None] < plans.many[:, None]
    first = jnp.argsort(~written.reshape(-1), stable=True)
    total = lambda x: jnp.sum(x, dtype=jnp.int32)
    return Blocks(
        kv=jax.tree.map(lambda x: x.reshape(heads * most, *x.shape[2:]), plans.kv),
        source=(plans.source + most * head).reshape(-1)[first],
        at=(plans.at + entries * head).reshape(-1)[first],
        many=total(plans.many),
        count=total(plans.count),
        dropped=total(plans.dropped),
    )


def _by_head(tokens: KV) -> KV:
    """Return tokens [N, G, ...] as those of every head by itself [G, N, 1, ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], tokens)


def _side_by_side(tokens: KV) -> KV:
    """Return what `_by_head` took apart."""
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), tokens)


def opened(table: BlockTable) -> KV:
    """Return the open block [block] of a layer."""
    return table.open if table.open.modality.ndim == 2 else _side_by_side(table.open)


def recalled(
    table: BlockTable,
    bank: Bank,
    question: Question,
    reader: retrieval.Recall,
    topk: int,
    first: int | Array = 0,
) -> KV:
    """Return the `topk` best blocks of one layer, each where the bank has it.

    Where heads have tables of their own, each is asked by the queries that it serves, and `topk`
    blocks of each are read. The table's blocks begin in the bank at block `first`.
    """
    if table.open.modality.ndim == 3:
        heads, places = table.priority.shape
        split = question.q.reshape(question.q.shape[0], heads, -1, question.q.shape[-1])

        def one_head(item: tuple[BlockTable, Array, Array]) -> KV:
            own, q, head = item
            asked = Question(q, question.valid, None)
            return recalled(own, bank, asked, reader, topk, head * places)

        each = (table, jnp.moveaxis(split, 1, 0), jnp.arange(heads, dtype=jnp.int32))
        return _side_by_side(jax.lax.map(one_head, each))
    places = table.priority.shape[0]
    there = jnp.arange(places, dtype=jnp.int32) < table.used
    score = reader.score(table.summary, there, question)
    index, keep = retrieval.best(score, table.used, min(topk, places), 1)
    size = table.open.modality.shape[0]
    kv = retrieval.stored(bank, index + first, keep, size)
    moves = jnp.repeat(table.epoch - table.epochs[index], size)
    held = kvs.valid(kv)
    return kv._replace(index=jnp.where(held, today(kv.index, moves), kv.index))


def together(*parts: KV) -> KV:
    """Return the tokens of all parts in the order of arrival, in every KV head; empty ones last."""
    tokens = jax.tree.map(lambda *x: jnp.concatenate([a.astype(x[-1].dtype) for a in x]), *parts)
    number = jnp.where(kvs.valid(tokens), tokens.index, NEVER).T
    index = jnp.argsort(number, axis=1, stable=True).astype(jnp.int32)
    return scored.take(tokens, index, jnp.take_along_axis(number, index, axis=1) < NEVER)
