"""ReKV (arXiv 2503.00540): a sliding window for encoding, a bank of everything, recall by query."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Requires, Spec, State, View
from jaxmem.memory.parts import positions as places
from jaxmem.typing import Array, Float, Int, Num


class Notes(NamedTuple):
    """What is not in the window."""

    capacity: Int[Array, ""]
    start: Num[Array, "A"]  # where the stream began, behind the prefix
    next_pos: Num[Array, "A"]  # where the next chunk begins
    total: Int[Array, ""]  # tokens written
    sink: KV  # [n_init], the first tokens of the stream
    blocks: Float[Array, "n G D"]  # mean key of every block of the bank, before rotation


def rekv(
    window: int = 15_000,
    *,
    block: int = 196,
    topk: int = 64,
    chunk_blocks: int = 1,
    sinks: int = 4,
    positions: places.Rule = "contiguous",
) -> Memory:
    """Return ReKV; `Spec.bank` says how many tokens of every layer the bank holds.

    While the stream is watched a row sees the last `window` tokens, and the sinks from one fixed
    distance. Everything behind the sinks goes to the bank. For a question every layer scores the
    blocks by q . mean key (not normalised), q the mean query of the question's rows before
    rotation, and reads the sinks and the `topk` best blocks in the order of time.

    The released code first passes the question alone and then question and template over what
    that pass recalled; here both are one pass. Attention needs a window of at least a chunk. All
    kinds share the blocks: nothing is evicted before the bank is full, and then the newest is lost.

    Args:
      window: n_local, tokens of every layer on the device that rows see, and that answers see.
      block: tokens of a block; a frame in the released code.
      topk: blocks recalled by each layer.
      chunk_blocks: neighbouring blocks that are scored, by their mean, and recalled together.
      sinks: n_init, tokens from the start of the stream; the system prompt in the released code.
      positions: recalled tokens are numbered without gaps as published, or "keep" theirs.

    Raises:
      ValueError: if a size is not positive, or `chunk_blocks` is more than `topk`.
    """
    if min(window, block, topk, chunk_blocks, sinks) < 1 or chunk_blocks > topk:
        raise ValueError(
            f"rekv needs positive sizes and chunk_blocks <= topk, got window={window}, block="
            f"{block}, topk={topk}, chunk_blocks={chunk_blocks}, sinks={sinks}."
        )
    if positions not in ("keep", "contiguous"):
        raise ValueError(f'positions must be "keep" or "contiguous", got {positions!r}.')

    def init(spec: Spec) -> State:
        means = jnp.zeros((max(1, spec.bank // block), spec.kv_heads, spec.head_dim), jnp.float32)
        room, zero = jnp.asarray(window, jnp.int32), jnp.zeros((), jnp.int32)
        start = places.start(spec)
        return State(spec.empty(window), Notes(room, start, start, zero, spec.empty(sinks), means))

    def view(state: State, bank: Bank | None, rows: Embeds) -> View:
        del bank
        notes = state.aux
        after = notes.total + jnp.sum(rows.modality != tk.EMPTY, dtype=jnp.int32)
        # In the piece in which a sink leaves the window early rows see it twice, as released.
        far = _far(notes.sink, jnp.maximum(after - window, 0))
        return View(state.slots, notes.next_pos, far=far, far_pos=_far_pos(notes.next_pos))

    def _far_pos(like: Array) -> Num[Array, "A"]:
        return jnp.full(like.shape, window - 1, like.dtype)

    def write(state: State, seen: Chunk) -> tuple[State, KV]:
        held, notes, fresh = state.slots, state.aux, seen.tokens
        rows = jnp.sum(fresh.modality[:, 0] != tk.EMPTY, dtype=jnp.int32)
        first, row = tk.count(notes.sink), jnp.arange(fresh.modality.shape[0], dtype=jnp.int32)
        sink = tk.stretch(tk.append(notes.sink, fresh, first), 0, first + rows, sinks)
        skip = jnp.minimum(sinks - first, rows)
        spill = tk.take(fresh, row + skip, row + skip < rows)
        # A block's mean grows with its tokens; it is read once the block is complete.
        at = jnp.maximum(notes.total - sinks, 0) + row
        at = jnp.where(row + skip < rows, at // block, notes.blocks.shape[0])
        keys = jax.lax.stop_gradient(spill.k).astype(jnp.float32)  # means only rank blocks
        means = notes.blocks.at[at].add(keys / block, mode="drop")

        n, slots = tk.count(held), held.modality.shape[0]
        many = jnp.minimum(n + rows, notes.capacity)
        held = tk.stretch(tk.append(held, fresh, n), n + rows - many, many, slots)
        end = places.keep(seen).astype(notes.next_pos.dtype)
        notes = notes._replace(next_pos=end, total=notes.total + rows, sink=sink, blocks=means)
        return State(held, notes), spill

    def recall(state: State, bank: Bank | None, query: Question | None) -> View:
        if bank is None or query is None:
            raise ValueError("rekv recalls from a bank by a question's queries: set Spec.bank.")
        notes = state.aux
        many = jnp.minimum(jnp.maximum(notes.total - sinks, 0) // block, notes.blocks.shape[0])
        index, keep = blocks.best(blocks.scores(notes.blocks, query), many, topk, chunk_blocks)
        tokens = blocks.read(notes.sink, bank, index, keep, block)
        base = notes.next_pos
        if positions == "contiguous":
            tokens, base = places.numbered(tokens, notes.start)
        return View(tokens, base, far=_far(notes.sink, sinks), far_pos=_far_pos(base))

    def spill(spec: Spec) -> KV:
        return spec.empty(spec.chunk)

    reads = Requires(window=window, ask="layer")
    return Memory(init, view, write, recall, reads, name="rekv", spill=spill)


def _far(sink: KV, count: int | Array) -> KV:
    """Return the first `count` sinks, not rotated."""
    row = jnp.arange(sink.modality.shape[0], dtype=jnp.int32)
    return tk.take(sink, row, row < count)._replace(pos=jnp.zeros_like(sink.pos))
