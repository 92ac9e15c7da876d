"""A memory in blocks of a decoder that are called one by one; what `jaxmem.memory.foreign` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.attention import attend_probe, attend_view, begin_of
from jaxmem.memory.bank import bank as banks
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.base import AnyMemory, FeatureMemory, Memory, Spec, at_layer
from jaxmem.memory.exchange import Chunk, Embeds, Probed, Question, Requires, View
from jaxmem.rope import Rope, scaled
from jaxmem.typing import Array, Float, Hidden, Int, Params, PyTree

Block = Callable[[int, Hidden, Callable[..., Array]], Hidden]
"""(layer, the layer's input [T, E], attend) -> its output [T, E]."""

QKV = tuple[Array, Array, Array]
"""Queries [T, H, D], which carry the scale of the logits, keys and values [T, G, D]."""


class Own(NamedTuple):
    """What a block gives of its weights, for memories that require it."""

    output: Float[Array, "H D E"] | None
    scorer: Params | None


@dataclass
class Blocks:
    """Blocks of a decoder (one, or all L), how they attend, and the memory in them."""

    memory: Memory
    spec: Spec
    state: PyTree  # of the stack, or a tuple with that of each block
    block: Block
    rope: Rope | None
    prefix: KV | None  # [L, P]
    bank: Bank | None

    def __post_init__(self):
        spec, memory = self.spec, self.memory
        rope = spec.rope if self.rope is None else self.rope
        if rope is None:
            raise ValueError("attention needs a rotary embedding: give rope=, or Spec(rope=...).")
        pinned = 0 if self.prefix is None else self.prefix.modality.shape[1]
        if pinned != spec.prefix:
            raise ValueError(f"the prefix has {pinned} tokens but Spec.prefix is {spec.prefix}.")
        self._need("bank", memory.bank(spec) is not None, self.bank)
        self.turn, self.spec = rope, replace(spec, rope=rope)  # the memory measures as they attend
        self.layers = range(spec.layers if memory.per == "stack" else len(self.state))

    def watch(
        self,
        x: Hidden | None,
        embeds: Embeds,
        clock: Int[Array, ""] | int,
        probes: Embeds | None = None,
    ) -> tuple[Any, ...]:
        """Pass a chunk; return the last block's output, the state, and the bank if there is one."""
        requires, rows = self.memory.requires, embeds.modality.shape[0]
        if rows > self.spec.chunk:
            raise ValueError(f"a chunk has {rows} rows but Spec.chunk is {self.spec.chunk}.")
        self._need("probes", requires.probes is not None, probes)
        clock, views = jnp.asarray(clock, jnp.int32), self._views(embeds)

        def attention(layer: int, x: Hidden, qkv: QKV, own: Own):
            self._need("hidden", requires.hidden, x)
            self._need("output", requires.output, own.output)
            self._need("retention", requires.retention is not None, own.scorer)
            more = {"prefix": at_layer(self.prefix, layer), "hidden": x, **own._asdict()}
            given = requires, self.turn, views[layer], *qkv, embeds, clock
            return attend_view(*given, **more)[:2]

        y, chunks = self._run(x, embeds, attention)
        if requires.probes is not None and probes is not None:
            chunks = self._probed(views, chunks, embeds, probes)
        state, bank = self._written(chunks, self._rows(x, embeds))
        return (y, state) if bank is None else (y, state, bank)

    def ask(self, x: Hidden, embeds: Embeds) -> Hidden:
        """Pass a question; return the last block's output."""
        memory, real, whole = self.memory, embeds.modality != kvs.EMPTY, None
        asks, window = memory.requires.question, memory.requires.window
        scores = memory.requires.retention == "logits"
        queries = self._first_pass(x, embeds) if asks == "pass" else None
        if memory.per == "stack":
            anew, question = self._anew(), None
            if queries is not None or anew is not None:
                asked = jnp.zeros((0,), x.dtype) if queries is None else queries
                question = Question(asked, real, self.prefix, anew)
            whole = memory.recall(self.spec, self.state, question, self.bank)

        def attention(layer: int, x: Hidden, qkv: QKV, own: Own):
            if whole is not None:
                return self._read(layer, at_layer(whole, layer), qkv, embeds, window), None
            self._need("retention", scores, own.scorer)
            asked = qkv[0] if queries is None else queries[layer]
            mine = None if asks is None else Question(asked, real, at_layer(self.prefix, layer))
            view = memory.recall(self.spec, self.state[layer], mine, self._bank_of(layer))
            return self._read(layer, view, qkv, embeds, window, own.scorer), None

        return self._run(x, embeds, attention)[0]

    def _run(
        self,
        x: Any,
        embeds: Embeds,
        attention: Callable[..., tuple[Array, Any]],
        moves: Sequence[Array] | None = None,
    ) -> tuple[Hidden, list[Any]]:
        """Return the output of rows and the reports of all blocks; `moves` false keeps an input."""
        reports: list[Any] = []
        for layer in self.layers:

            def mine(
                q: Array, k: Array, v: Array, *, output: Any = None, retention: Any = None,
                layer: Any = layer, x: Any = x,
            ) -> Array:  # fmt: skip
                _check_rows(self.spec, q, k, v, embeds)
                own = Own(output, retention)
                y, report = attention(layer, x, (scaled(q, self.turn), k, v), own)
                reports.append(report)
                return y

            y = self.block(layer, x, mine)
            if len(reports) != layer + 1:
                raise ValueError(f"block {layer} must call attend exactly once.")
            x = y if moves is None else jnp.where(moves[layer], y, x)
        return x, reports

    def _read(
        self,
        layer: int,
        view: View,
        qkv: QKV,
        embeds: Embeds,
        window: int | None,
        scorer: Params | None = None,
    ) -> Float[Array, "Q H D"]:
        """Attend rows that are not written to [prefix | view | themselves]."""
        view, pinned = view._replace(base=begin_of(view.base, embeds)), at_layer(self.prefix, layer)
        asked = Requires(window=window, retention=self.memory.requires.retention)
        more = {"prefix": pinned, "scorer": scorer}
        return attend_view(asked, self.turn, view, *qkv, embeds, jnp.int32(0), **more)[0]

    def _first_pass(self, x: Hidden, embeds: Embeds) -> Float[Array, "L Q H D"]:
        """Return every layer's queries of a question that sees only [prefix | itself]."""
        return jnp.stack([q for q, _, _ in self._alone(x, embeds)])

    def _alone(self, x: Hidden, embeds: Embeds) -> list[QKV]:
        """Return what every layer makes of rows that see only [prefix | themselves]."""
        nothing, embeds = View(self.spec.empty(1), self._begin), embeds._replace(start=None)

        def attention(layer: int, x: Hidden, qkv: QKV, own: Own):
            return self._read(layer, nothing, qkv, embeds, None), qkv

        return self._run(x, embeds, attention)[1]

    @property
    def _begin(self) -> Array:
        """Return where positions begin."""
        return jnp.full((self.spec.axes,), self.spec.prefix, self.spec.pos_dtype)

    def _rows(self, x: Hidden | None, embeds: Embeds) -> Embeds | None:
        """Return a chunk's rows where the memory takes them."""
        self._need("x", self.memory.requires.rows, x)
        return embeds._replace(x=x) if self.memory.requires.rows and x is not None else None

    def _anew(self) -> KV | None:
        """Return the tokens of the rows that are encoded at every question [L, R]."""
        if not self.memory.requires.rows:
            return None
        rows = self.memory.anew(self.spec, self.state)
        _, k, v = zip(*self._alone(rows.x, rows), strict=True)
        each = lambda x: jnp.broadcast_to(x[None], (len(k), *x.shape))
        row = jnp.arange(rows.modality.shape[0], dtype=jnp.int32)[:, None]
        pos = (self._begin[None] + rows.pos.astype(self._begin.dtype))[:, None]
        return KV(jnp.stack(k), jnp.stack(v), each(pos), each(row), each(rows.modality[:, None]))

    def _bank_of(self, layer: int) -> Bank | None:
        return banks.of_layer(self.bank, jnp.int32(layer))

    def _views(self, embeds: Embeds) -> list[View]:
        """Return what every layer shows to a chunk."""
        spec, state, view = self.spec, self.state, self.memory.view
        if self.memory.per == "stack":
            whole = view(spec, state, embeds, self.bank)
            return [at_layer(whole, l) for l in self.layers]
        return [view(spec, state[l], embeds, self._bank_of(l)) for l in self.layers]

    def _written(self, chunks: list[Chunk], rows: Embeds | None) -> tuple[PyTree, Bank | None]:
        """Return the state and the bank after a chunk."""
        write, bank = self.memory.write, self.bank
        if self.memory.per == "stack":
            state, evicted = write(self.spec, self.state, _stacked(chunks)._replace(rows=rows))
            gone = [at_layer(evicted, l) for l in self.layers]
        else:
            written = [write(self.spec, s, c) for s, c in zip(self.state, chunks, strict=True)]
            state, gone = zip(*written, strict=True)
        for layer, evicted in enumerate(gone):
            bank = banks.append(bank, jnp.int32(layer), evicted)
        return state, bank

    def _probed(
        self, views: list[View], chunks: list[Chunk], embeds: Embeds, probes: Embeds
    ) -> list[Chunk]:
        """Return the chunks with the attention that the probes gave, each in a pass of its own."""
        asked = self.memory.requires.probes
        assert asked is not None
        if len(probes.modality) != asked.count:
            raise ValueError(
                f"{self.memory.name} scores by {asked.count} probes, got {len(probes.modality)}: "
                "embed the texts of memory.prompts(), padded to one length."
            )
        given = []
        for i in range(asked.count):
            probe = at_layer(probes, i)
            passes = [jnp.bool_(True) if v.probing is None else v.probing[i] for v in views]

            def attention(layer: int, x: Hidden, qkv: QKV, own: Own, probe: Any = probe):
                args = (views[layer], chunks[layer].kv, embeds.advance, probe, *qkv)
                return attend_probe(asked.form, self.turn, *args, at_layer(self.prefix, layer))

            moves = [p & (asked.form == "causal") for p in passes]
            _, received = self._run(probe.x, probe, attention, moves)
            given.append([_where(p, r) for p, r in zip(passes, received, strict=True)])
        rows = jnp.sum(probes.modality != kvs.EMPTY, axis=1, dtype=jnp.int32)
        by_layer = zip(chunks, zip(*given, strict=True), strict=True)
        return [chunk._replace(probed=Probed(_stacked(one), rows)) for chunk, one in by_layer]

    def _need(self, what: str, needed: bool, given: Any) -> None:
        if needed and given is None:
            name = self.memory.name
            raise ValueError(f"{name} requires {what}: give {what}=, as jaxmem.attend describes.")


def _check_rows(spec: Spec, q: Array, k: Array, v: Array, embeds: Embeds) -> None:
    """Refuse projections and positions that are not those of one stream of this spec."""
    rows, axes = embeds.pos.shape
    if axes != spec.axes:
        raise ValueError(f"rows have {axes} position axes but Spec.axes is {spec.axes}.")
    for name, x, heads in (("q", q, q.shape[-2]), ("k", k, spec.kv_heads), ("v", v, spec.kv_heads)):
        if x.shape != (rows, heads, spec.head_dim):
            raise ValueError(
                f"{name} is {x.shape} but rows and Spec say {(rows, heads, spec.head_dim)}: give "
                "one stream; several go through jax.vmap."
            )


def of_decoder(memory: AnyMemory) -> Memory:
    """Return a memory that has a place in attention; refuse one of features."""
    if isinstance(memory, FeatureMemory):
        raise ValueError(
            f"{memory.name} keeps encoder features before the decoder and has no place in its "
            "attention: call memory.write on each chunk's embeddings, and prefill memory.read in "
            "front of a question."
        )
    return memory


def of_one_block(memory: AnyMemory) -> Memory:
    """Return a memory that one block can show and write by itself; refuse others."""
    memory = of_decoder(memory)
    requires = memory.requires
    if memory.per == "stack" or requires.probes is not None or requires.question == "pass":
        raise ValueError(
            f"{memory.name} compares layers, or has passes of its own through all blocks: use "
            "attend_stack and ask_stack, which run all of them."
        )
    return memory


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _where(passes: Array, received: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(passes, x, 0.0), received)


__all__ = ["Block", "Blocks", "of_decoder", "of_one_block"]
