"""FlexMem (arXiv 2603.29252, CVPR 2026): a short memory to watch with, a long one to answer from.

From the attention of its own pass every layer keeps two subsets of a chunk: a small *context
memory* that the next chunks see, and a larger *local memory* that goes to the bank. A full chunk is
a clip; shorter ones in succession make one together. A question is answered from the local memories
of the few clips that are most relevant to it.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory import layout
from jaxmem.memory.bank import retrieval
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.bank.host_memory import Space
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.exchange import (
    Attention,
    BankSpec,
    Chunk,
    Embeds,
    Probes,
    Prompt,
    Question,
    Requires,
    View,
)
from jaxmem.memory.flexmem import clips, memindex
from jaxmem.memory.flexmem.ledger import MOST, Entry
from jaxmem.memory.flexmem.memindex import Encoding, MemIndex
from jaxmem.memory.flexmem.state import Aux, Sizes, empty_aux, shares_of, sizes_of
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.typing import Array, Float, Int, PyTree


@dataclass(frozen=True)
class FlexMem(Memory):
    """FlexMem; the defaults are those of the released standard profile (not in the paper).

    The released "fast" profile is `local_ratio=4, topk=32`. With the reader `Encoding` the question
    must be known while watching; with `MemIndex` it is asked afterwards.

    Attributes:
      clip: n_v, rows of a full clip, at least those of a chunk; None: those of a chunk. Shorter
        chunks in succession make one clip together, as long as they fit.
      window: B, clips whose context memory is held.
      context_ratio: 1 / alpha_c: a clip of n rows keeps floor(n / ratio) of them as context.
      local_ratio: 1 / alpha_s, likewise of its local memory; every chunk keeps at least a token.
      topk: n_a, clips recalled for an answer.
      long_term: from clip B + 1 on, see the newest B // 2 contexts and, in the place of the others,
        the local memories M_l of the most relevant older clips. None: if the reader is `Encoding`.
      reader: what a clip's relevance is: what `MemIndex` says, or the mass that the question's rows
        give it in its own pass (equation 9, `Encoding`).
      index: keys kept beside the reader `Encoding`, to fit a MemIndex to it; None: none.
      shallow: the first layers take evenly spaced rows and have no say in relevance; 3 as released,
        0 scores everywhere. Models with fewer layers keep one that scores.
      history: what the row mass of equation 7 is summed over: context and M_l ("all", released),
        or context only ("context", published).
      own_audio: audio keeps its own part of a clip; False as published.
      capacity: entries of each layer's bank. Clips that find it full are seen as context but cannot
        be recalled, and are counted.
      space: memory of the bank, "host" or "device".
      reindex: every pass numbers what it sees without gaps as released; False: tokens keep their
        positions.

    Raises:
      ValueError: if a size is not positive, options exclude each other, or, when the stream begins,
        the sizes do not fit the model.
    """

    sized_by_options: ClassVar[bool] = True
    per: ClassVar[Literal["layer", "stack"]] = "stack"
    sized: ClassVar[tuple[str, ...]] = ("window",)
    """What `resized` decides."""

    clip: int | None = None
    _: KW_ONLY
    window: int = 12
    context_ratio: int = 4
    local_ratio: int = 2
    topk: int = 16
    long_term: bool | None = None
    reader: MemIndex | Encoding = field(default=MemIndex())
    index: MemIndex | None = None
    shallow: int = 3
    history: Literal["all", "context"] = "all"
    own_audio: bool = True
    capacity: int = 65_536
    space: Space = "host"
    reindex: bool = True

    def __post_init__(self):
        at_least(self.name, 1, clip=self.clip, window=self.window, topk=self.topk)
        at_least(self.name, 1, context_ratio=self.context_ratio, local_ratio=self.local_ratio)
        at_least(self.name, 1, capacity=self.capacity)
        at_least(self.name, 0, shallow=self.shallow)
        one_of(self.name, ("all", "context"), history=self.history)
        if not isinstance(self.reader, MemIndex | Encoding):
            raise ValueError(f"reader must be a MemIndex or an Encoding, got {self.reader!r}.")
        if isinstance(self.reader, MemIndex) and (self.long_term or self.index is not None):
            raise ValueError(
                "long_term memories are chosen by a question that is known while watching, and "
                'index= is for fitting: both go with reader=Encoding("the question").'
            )

    @property
    def sees_local(self) -> bool:
        """Return whether the next clip sees local memories of older ones, too."""
        return self.encoding if self.long_term is None else self.long_term

    @property
    def encoding(self) -> bool:
        """Return whether the question is known while the stream is watched."""
        return isinstance(self.reader, Encoding)

    @property
    def keyed(self) -> MemIndex | None:
        """Return the index whose keys are kept; None: no keys are."""
        return self.reader if isinstance(self.reader, MemIndex) else self.index

    @property
    def requires(self) -> Requires:
        received = Requires(attention=Attention("softmax"), given=True)
        if self.encoding:
            return received._replace(probes=Probes(1, "causal"))
        return received._replace(question="pass")

    def prompts(self, dialogue: tuple[str, str] | None = None) -> tuple[Prompt, ...]:
        return (Prompt(self.reader.question),) if isinstance(self.reader, Encoding) else ()

    def resized(self, slots: int, spec: Spec) -> FlexMem:
        """Return the same memory with as many clips of context as the slots hold.

        It has at least those whose older half has the room of one local memory, if that is seen.
        """
        rows = spec.chunk if self.clip is None else self.clip
        context, local = shares_of(self, rows)
        least = 2 * -(-local // context) - 1 if self.sees_local else 1
        return replace(self, window=max(least, slots // context))

    def sizes(self, spec: Spec) -> Sizes:
        """Return the slots of a stream."""
        return sizes_of(self, spec)

    def even(self, spec: Spec) -> int:
        """Return how many first layers take evenly spaced rows; one at least scores."""
        return min(self.shallow, spec.layers - 1)

    def bank(self, spec: Spec) -> BankSpec:
        return BankSpec(self.capacity, spec.empty(self.sizes(spec).local), self.space)

    def init(self, spec: Spec, layer: int = 0) -> State:
        sizes = self.sizes(spec)
        if self.keyed is not None:
            self.keyed.measured_against(spec)
        aux = empty_aux(spec, sizes, self.window, self.keyed)
        return State(_of_all(spec.empty(sizes.held), spec.layers), aux)

    def view(
        self, spec: Spec, state: State, embeds: Embeds | None, bank: Bank | None = None
    ) -> View:
        sizes = self.sizes(spec)
        if not sizes.longs:
            return self._placed(state.slots, state.aux)
        return self._with_long_term(sizes, state, _need(bank))

    def _placed(self, kv: KV, aux: Aux) -> View:
        if self.reindex:
            return View(*jax.vmap(places.numbered, in_axes=(0, None))(kv, aux.start))
        return View(kv, _of_all(aux.next_pos, kv.modality.shape[0]))

    def _with_long_term(self, sizes: Sizes, state: State, bank: Bank) -> View:
        """Return the newest contexts after the local memories of the most relevant older clips."""
        held, aux, half = state.slots, state.aux, self.window // 2
        # The released code changes its schedule one clip after the window is full.
        late = aux.ledger.count > self.window
        older = jnp.clip(aux.ledger.count - half, 0, aux.ledger.noted)
        best, keep = retrieval.best(aux.relevance, older, sizes.longs, 1)
        slots = sizes.longs * sizes.local
        long = clips.read(bank.slots, aux.ledger, best, keep & late, slots)
        n, far = (jax.vmap(kvs.count)(part)[0] for part in (held, long))
        newest = jnp.where(late, jnp.sum(aux.recent[self.window - half :]), n)
        near = clips.stretch(held, n - newest, newest)
        pool = jax.vmap(kvs.append, in_axes=(0, 0, None))(long, near, far)
        view = self._placed(jax.tree.map(lambda x: x[:, : sizes.view], pool), aux)
        if self.history == "context":
            counted = jnp.arange(sizes.view, dtype=jnp.int32) >= far
            view = view._replace(counted=_of_all(counted, held.modality.shape[0]))
        return view

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, KV]:
        sizes, aux, modality = self.sizes(spec), state.aux, chunk.kv.modality[0, :, 0]
        even = np.arange(spec.layers) < self.even(spec)
        received, aggregated = pathways(chunk)
        quotas = clips.shares(modality, self.local_ratio, self.own_audio)
        local = clips.picks(received, even, modality, quotas, sizes.local)
        entry = aux.ledger.entry(
            jnp.sum(modality != kvs.EMPTY, dtype=jnp.int32),
            jnp.sum(quotas),
            clip=sizes.clip,
            local=sizes.local,
            room=self.capacity,
        )
        quotas = self._context_quotas(aux, modality, entry)
        context = clips.picks(aggregated, even, modality, quotas, sizes.context)
        gone = jnp.where(entry.begins, aux.recent[0], 0)

        def layer(held: KV, given: tuple[Any, ...]) -> tuple[KV, KV]:
            fresh, local, context = given
            pool = kvs.append(held, kvs.take(fresh, *context), kvs.count(held))
            row = jnp.arange(sizes.held, dtype=jnp.int32) + gone
            return kvs.take(pool, row, row < kvs.count(pool)), kvs.take(fresh, *local)

        held, evicted = layout.rewrite(state.slots, layer, (chunk.kv, local, context))
        aux = self._indexed(spec, aux, chunk, entry, received)
        return State(held, self._noted(aux, chunk, entry, jnp.sum(quotas))), evicted

    def _context_quotas(self, aux: Aux, modality: Array, entry: Entry) -> Int[Array, "C"]:
        """Return how many rows of a chunk become context, so that its clip keeps its share."""
        before = jnp.where(entry.joins, aux.ledger.open_rows, 0)
        kept = jnp.where(entry.joins, aux.recent[-1], 0)
        return clips.shares(modality, self.context_ratio, self.own_audio, before, kept)

    def _indexed(
        self, spec: Spec, aux: Aux, chunk: Chunk, entry: Entry, received: Float[Array, "L T"]
    ) -> Aux:
        """Return the numbers with what questions will find the chunk's clip by."""
        book, index = aux.ledger, self.keyed
        if self.encoding:
            g = memindex.of_probe(chunk, self.even(spec))
            aux = aux._replace(relevance=book.add(aux.relevance, g, entry))
        if index is None or aux.keys is None or aux.worth is None:
            return aux
        read, line = np.asarray(index.read_layers(spec.layers)), book.line(entry)
        has = jnp.minimum(jnp.where(entry.joins, book.open_rows, 0), index.keys)
        old = jnp.where(has > 0, aux.keys[jnp.minimum(line, book.capacity - 1)], 0)
        keys, worth = memindex.best_keys(
            (old, aux.worth, has),
            (chunk.kv.k[read], received[read], chunk.kv.modality[0, :, 0]),
            read < self.even(spec),
        )
        keys = aux.keys.at[line].set(keys.astype(aux.keys.dtype), mode="drop")
        return aux._replace(keys=keys, worth=jnp.where(entry.rows > 0, worth, aux.worth))

    def _noted(self, aux: Aux, chunk: Chunk, entry: Entry, context: Int[Array, ""]) -> Aux:
        """Return the numbers after a chunk of which `context` rows became context memory."""
        shifted = jnp.concatenate([aux.recent[1:], jnp.zeros((1,), jnp.int32)])
        recent = jnp.where(entry.begins, shifted, aux.recent)
        lost = entry.many - entry.stored
        return aux._replace(
            next_pos=aux.next_pos if self.reindex else chunk.next_pos[0].astype(aux.next_pos.dtype),
            recent=recent.at[-1].add(context),
            ledger=aux.ledger.record(entry),
            dropped=aux.dropped + jnp.minimum(lost, MOST - aux.dropped),
        )

    def recall(
        self, spec: Spec, state: State, question: Question | None, bank: Bank | None = None
    ) -> View:
        aux, sizes, score = state.aux, self.sizes(spec), state.aux.relevance
        if isinstance(self.reader, MemIndex):
            if question is None:
                raise ValueError("flexmem recalls by a question's queries: pass a Question.")
            many = jnp.minimum(aux.ledger.rows, self.reader.keys)
            score = memindex.scores(self.reader, spec, aux.keys, many, question)
        most = min(self.topk, score.shape[0])
        best, keep = retrieval.best(score, aux.ledger.noted, most, 1)
        kv = clips.read(_need(bank).slots, aux.ledger, best, keep, most * sizes.local)
        return self._placed(kv, aux)


def _of_all(tree: PyTree, layers: int) -> PyTree:
    """Return the same for every layer."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (layers, *x.shape)), tree)


def pathways(chunk: Chunk) -> tuple[Float[Array, "L T"], Float[Array, "L T"]]:
    """Return the scores for local memory (equation 8) and context memory (equation 7).

    s_hat_j: what token j receives from the clip's rows, mean over heads. s_j: that, and what row j
    gives to the history. Early rows of a clip are seen by more rows; nothing corrects for it.
    """
    if chunk.received is None or chunk.given is None:
        raise ValueError("flexmem scores by attention; pass its chunks through a decoder.")
    received = chunk.received.chunk[:, 0]
    return received, chunk.given + received


def _need(bank: Bank | None) -> Bank:
    if bank is None:
        raise ValueError(
            "flexmem answers from a bank: give the one that init_bank(memory, spec) makes."
        )
    return bank
