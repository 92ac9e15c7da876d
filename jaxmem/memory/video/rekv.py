"""ReKV (arXiv 2503.00540): watching through a window, a bank of everything, recall by question."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.bank import retrieval
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.bank.bank import read as read_bank
from jaxmem.memory.bank.host_memory import Space
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.exchange import BankSpec, Chunk, Embeds, Question, Requires, Sinks, View
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.memory.parts.positions import numbered, start
from jaxmem.typing import Array, Float, Int, Num, PyTree

BLOCK = 196
"""Tokens of a frame of LLaVA-OneVision, which the released code takes for a block."""
MANY = 2**30
"""Tokens are counted up to here; by then every bank is full, and only the window moves."""


class Aux(NamedTuple):
    """What is not in the window."""

    capacity: Int[Array, ""]  # tokens of the window
    next_pos: Num[Array, "A"]  # where the next chunk begins
    total: Int[Array, ""]  # tokens written, at most `MANY`
    sinks: KV  # [n_init], the first tokens of the stream
    means: Float[Array, "n G D"]  # mean key of every block of the bank, before rotation


@dataclass(frozen=True)
class ReKV(Memory):
    """ReKV: nothing is dropped; the stream is watched through a window, a question fetches blocks.

    While the stream is watched a row sees the last `budget` tokens, and the sinks from one fixed
    distance. Everything after the sinks goes to the bank. For a question every layer scores the
    blocks by q . mean key (not normalised), q the mean query of the question's rows before
    rotation, and reads the sinks, the best blocks in the order of time, and the block that is not
    complete yet.

    The released code first passes the question alone and then question and template over what that
    pass recalled; here both are one pass. All modalities share the blocks. A full bank keeps the
    oldest tokens and drops those that come.

    Attributes:
      budget: n_local, tokens of every layer on the device that rows see, and that answers see; at
        least a chunk. 15,000 as published.
      block: tokens of a block; None: a frame (196 where the model does not say what that is).
      topk: blocks recalled by each layer; None: as many as the window holds. What lies further back
        than the window is not seen, so give a small window None.
      chunk_blocks: neighbouring blocks that are scored, by their mean, and recalled together.
      sinks: n_init, tokens held from the start of the stream; the system prompt in the released
        code.
      capacity: tokens of every layer that the bank holds, at least a block.
      space: the memory that the bank lies in, "host" or "device" (gradients need "device").
      reindex: recalled tokens are numbered without gaps as published; False: they keep their
        positions.
      open_block: a question also reads the tokens after the last complete block, which the released
        code never shows (False).

    Raises:
      ValueError: if a size is not positive, `chunk_blocks` is more than `topk`, or the window is
        shorter than a chunk.
    """

    sized_by_options: ClassVar[bool] = True

    budget: int = 15_000
    _: KW_ONLY
    block: int | None = None
    topk: int | None = 64
    chunk_blocks: int = 1
    sinks: int = 4
    capacity: int = 65_536
    space: Space = "host"
    reindex: bool = True
    open_block: bool = True

    def __post_init__(self):
        at_least(self.name, 1, budget=self.budget, block=self.block, topk=self.topk)
        at_least(self.name, 1, chunk_blocks=self.chunk_blocks, sinks=self.sinks)
        at_least(self.name, 1, capacity=self.capacity)
        one_of(self.name, get_args(Space), space=self.space)
        if self.topk is not None and self.chunk_blocks > self.topk:
            raise ValueError(
                f"{self.name} recalls chunk_blocks={self.chunk_blocks} blocks at a time, which is "
                f"more than topk={self.topk}: lower it, or raise topk."
            )

    @staticmethod
    def smallest(spec: Spec) -> int:
        """Return the fewest slots that the window may have: those of a chunk."""
        return spec.chunk

    @property
    def requires(self) -> Requires:
        return Requires(window=self.budget, question="layer")

    def block_of(self, spec: Spec) -> int:
        """Return the tokens of a block."""
        if self.block is not None:
            return self.block
        return BLOCK if spec.frame is None else spec.frame[0] * spec.frame[1]

    def topk_of(self, spec: Spec) -> int:
        """Return the blocks that a layer recalls: as many as are wanted and can be there."""
        block, topk = self.block_of(spec), self.topk
        if topk is None:
            topk = (self.budget - self.open_block * block) // block
        return max(self.chunk_blocks, min(topk, self._entries(spec) // block))

    def _entries(self, spec: Spec) -> int:
        return max(self.capacity, self.block_of(spec))

    def bank(self, spec: Spec) -> BankSpec:
        return BankSpec(self._entries(spec), spec.empty(spec.chunk), self.space)

    def init(self, spec: Spec, layer: int = 0) -> State:
        if spec.chunk > self.budget:
            raise ValueError(
                f"{self.name} watches through a window of budget={self.budget} tokens, which is "
                f"shorter than a chunk (Spec.chunk={spec.chunk}): give it a budget of at least "
                f"{spec.chunk}, or write shorter chunks."
            )
        blocks = self._entries(spec) // self.block_of(spec)
        aux = Aux(
            capacity=jnp.asarray(self.budget, jnp.int32),
            next_pos=start(spec),
            total=jnp.zeros((), jnp.int32),
            sinks=spec.empty(self.sinks),
            means=jnp.zeros((blocks, spec.kv_heads, spec.head_dim), jnp.float32),
        )
        return State(spec.empty(self.budget), aux)

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        aux, rows = state.aux, 0
        if embeds is not None:
            rows = jnp.sum(embeds.modality != kvs.EMPTY, dtype=jnp.int32)
        # In the piece in which a sink leaves the window early rows see it twice, as released.
        gone = jnp.maximum(aux.total + rows - self.budget, 0)
        return View(state.slots, aux.next_pos, self._far(aux, gone))

    def _far(self, aux: Aux, count: int | Array) -> Sinks:
        """Return the first `count` sinks, not rotated, as seen from the end of the window."""
        row = jnp.arange(self.sinks, dtype=jnp.int32)
        kv = kvs.take(aux.sinks, row, row < count)
        place = jnp.full(aux.next_pos.shape, self.budget - 1, aux.next_pos.dtype)
        return Sinks(kv._replace(pos=jnp.zeros_like(kv.pos)), place)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, KV]:
        held, aux, fresh = state.slots, state.aux, chunk.kv
        row = jnp.arange(fresh.modality.shape[0], dtype=jnp.int32)
        rows, first = kvs.count(fresh), kvs.count(aux.sinks)
        sinks = kvs.stretch(kvs.append(aux.sinks, fresh, first), 0, first + rows, self.sinks)
        skip = jnp.minimum(self.sinks - first, rows)
        evicted = kvs.take(fresh, row + skip, row + skip < rows)

        n = kvs.count(held)
        many = jnp.minimum(n + rows, aux.capacity)
        window = kvs.stretch(
            kvs.append(held, fresh, n), n + rows - many, many, held.modality.shape[0]
        )
        aux = aux._replace(
            next_pos=chunk.next_pos.astype(aux.next_pos.dtype),
            total=jnp.minimum(aux.total + rows, MANY),
            sinks=sinks,
            means=self._means(spec, aux, evicted),
        )
        return State(window, aux), evicted

    def _means(self, spec: Spec, aux: Aux, evicted: KV) -> Float[Array, "n G D"]:
        """Return the mean keys with those of evicted tokens added.

        A block's mean grows with its tokens; it is read once the block is complete.
        """
        block, row = self.block_of(spec), jnp.arange(evicted.modality.shape[0], dtype=jnp.int32)
        at = (jnp.maximum(aux.total - self.sinks, 0) + row) // block
        at = jnp.where(kvs.valid(evicted)[:, 0], at, aux.means.shape[0])
        keys = jax.lax.stop_gradient(evicted.k).astype(jnp.float32)  # means only rank blocks
        return aux.means.at[at].add(keys / block, mode="drop")

    def recall(
        self, spec: Spec, state: State, question: Question | None, bank: Bank | None = None
    ) -> View:
        if bank is None or question is None:
            raise ValueError(
                f"{self.name} recalls from the loop's bank by a question's queries: ask through "
                "jaxmem.ask or a Session, or pass both."
            )
        aux, block = state.aux, self.block_of(spec)
        stored = jnp.maximum(aux.total - self.sinks, 0)
        complete = jnp.minimum(stored // block, aux.means.shape[0])
        score = retrieval.scores(aux.means, question)
        index, keep = retrieval.best(score, complete, self.topk_of(spec), self.chunk_blocks)
        kv = retrieval.read(aux.sinks, bank, index, keep, block)
        if self.open_block:
            rest = self._rest(spec, state, bank, complete * block, stored)
            kv = kvs.append(kv, rest, kvs.count(kv))
        base = aux.next_pos
        if self.reindex:
            kv, base = numbered(kv, start(spec))
        return View(kv, base, self._far(aux, self.sinks))

    def _rest(
        self, spec: Spec, state: State, bank: Bank, first: Int[Array, ""], stored: Int[Array, ""]
    ) -> KV:
        """Return the tokens after the last complete block, the newest block of them at most.

        The window has them; the bank, if it is not full, where the window is shorter than a block.
        Complete blocks take the `first` entries of the bank, which `stored` tokens went to.
        """
        block = self.block_of(spec)
        if block <= self.budget:
            held, rest = kvs.count(state.slots), jnp.minimum(stored - first, block)
            return kvs.stretch(state.slots, held - rest, rest, block)
        # A stretch that would leave the bank is read from further ahead.
        begin = jnp.minimum(first, self._entries(spec) + spec.chunk - block)
        rows = read_bank(bank, begin[None], block)
        return kvs.stretch(rows, first - begin, bank.count - first, block)
