"""How the layers of a decoder drive a memory: layer by layer, all at once, or not at all.

`chunk_step` and `prefill` are written against `Driver`; `driver_of` chooses.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.decoder.alone import States, alone, first_pass
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.stretches import Place, Stretch
from jaxmem.kv import EMPTY, KV
from jaxmem.memory import layout as layouts
from jaxmem.memory.bank import bank as banks
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.base import FeatureMemory, Memory, State, at_layer
from jaxmem.memory.exchange import Chunk, Embeds, Question, View
from jaxmem.memory.layout import Layout
from jaxmem.typing import Array, Bool, Float, Int, Params, PyTree


class Asking(NamedTuple):
    """A question while its layers recall."""

    carry: Carry
    rows: Embeds
    prefix: KV | None
    found: PyTree  # what all layers recall by, or what they read
    states: States  # of the layers with a state, where the question begins
    asked: Int[Array, ""] | None = None  # how many rows are the question's own; None: all

    @property
    def real(self) -> Bool[Array, "Q"]:
        """Which rows are no padding."""
        return self.rows.modality != EMPTY

    @property
    def recalls(self) -> Bool[Array, "Q"]:
        """Which rows recall: those of the question, not those of its answer."""
        if self.asked is None:
            return self.real
        return self.real & (jnp.arange(self.real.shape[0], dtype=jnp.int32) < self.asked)


class Aside(NamedTuple):
    """The side of a memory that is asked layer by layer, in the loop."""

    state: State
    bank: Bank | None
    waiting: tuple[Int[Array, ""], State] | None = None  # a layer, and what it keeps from now on


class Driver:
    """What the layer loop asks of a memory. The memory's side of the loop is `aside`."""

    def __init__(self, program: Program):
        self.program, self.spec = program, program.spec

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Return the layers that a chunk passes."""
        return self.program.stretches

    @property
    def memory(self) -> Memory:
        """Return the memory, which holds keys and values."""
        assert isinstance(self.program.memory, Memory)
        return self.program.memory

    def begin(self, carry: Carry, embeds: Embeds) -> PyTree:
        """Return `aside` before a chunk."""
        raise NotImplementedError

    def enter(self, aside: PyTree, stretch: Stretch) -> PyTree:
        """Return `aside` before the layers of a stretch."""
        del stretch
        return aside

    def leave(self, aside: PyTree) -> PyTree:
        """Return `aside` after the layers of a stretch."""
        return aside

    def open(self, aside: PyTree, place: Place) -> tuple[PyTree, PyTree]:
        """Return what a layer needs of the memory, and `aside` from here on."""
        raise NotImplementedError

    def view(self, mine: PyTree, embeds: Embeds) -> View:
        """Return what a layer attends to, from what `open` gave for it."""
        raise NotImplementedError

    def keep(self, mine: PyTree, chunk: Chunk) -> PyTree:
        """Return what a layer keeps of a chunk."""
        raise NotImplementedError

    def close(self, aside: PyTree, place: Place, kept: PyTree) -> tuple[PyTree, PyTree]:
        """Return `aside` after a layer, and what is collected of all layers."""
        raise NotImplementedError

    def end(self, carry: Carry, aside: PyTree, chunk: Chunk | None, embeds: Embeds) -> Carry:
        """Return the carry with state and bank after a chunk, of all layers."""
        raise NotImplementedError

    def ask(
        self,
        params: Params,
        carry: Carry,
        rows: Embeds,
        prefix: KV | None,
        states: States,
        asked: Int[Array, ""] | None = None,
    ) -> Asking:
        """Return a question before its first layer; `states` are those after the prefix.

        After the first `asked` rows come those of an answer, by which nothing is recalled.
        """
        raise NotImplementedError

    def recall(self, asking: Asking, place: Place, q: Float[Array, "Q H D"]) -> View:
        """Return what a question attends to in one layer.

        Args:
          asking: the question.
          place: the layer.
          q: its queries in this layer, before rotation.
        """
        raise NotImplementedError

    def _query(self, params: Params, rows: Embeds, prefix: KV | None, states: States) -> PyTree:
        """Return the queries of a first pass [L, Q, H, D] where the memory recalls by them."""
        if self.program.requires.question != "pass":
            return None
        return first_pass(params, self.program, rows, prefix, states)


class LayerDriver(Driver):
    """The memory is asked inside the loop: no [L, T] buffer of fresh KV ever exists.

    The loop carries the state and indexes it: as scan inputs and outputs the state would be held
    twice. What a layer keeps is put into the state when the next one begins. A read and a write of
    one layer that wait for nothing of each other would make XLA copy the slots of all layers.
    """

    @property
    def _layout(self) -> Layout:
        assert self.program.layout is not None
        return self.program.layout

    def _read(self, state: State, place: Place) -> State:
        return layouts.read(self._layout, state, place.layer, place.window)

    def begin(self, carry: Carry, embeds: Embeds) -> Aside:
        del embeds
        return Aside(carry.state, carry.bank)

    def enter(self, aside: Aside, stretch: Stretch) -> Aside:
        mine = [p for p in stretch.places(jnp.zeros((), jnp.int32)) if p.kind is None]
        if not mine:
            return aside
        layer = jnp.asarray(mine[0].layer, jnp.int32)
        return aside._replace(waiting=(layer, self._read(aside.state, mine[0])))

    def leave(self, aside: Aside) -> Aside:
        if aside.waiting is None:
            return aside
        layer, kept = aside.waiting
        return Aside(layouts.write(self._layout, aside.state, layer, kept), aside.bank)

    def open(self, aside: Aside, place: Place) -> tuple[tuple[State, Bank | None], Aside]:
        aside = self.leave(aside)
        bank = banks.of_layer(aside.bank, place.layer)
        return (self._read(aside.state, place), bank), aside

    def view(self, mine: tuple[State, Bank | None], embeds: Embeds) -> View:
        return self.memory.view(self.spec, mine[0], embeds, mine[1])

    def keep(self, mine: tuple[State, Bank | None], chunk: Chunk) -> tuple[State, PyTree]:
        kept, evicted = self.memory.write(self.spec, mine[0], chunk)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), kept, mine[0]), evicted

    def close(self, aside: Aside, place: Place, kept: tuple[State, PyTree]) -> tuple[Aside, None]:
        state, evicted = kept
        bank = banks.append(aside.bank, place.layer, evicted)
        return Aside(aside.state, bank, (jnp.asarray(place.layer, jnp.int32), state)), None

    def end(self, carry: Carry, aside: Aside, chunk: Chunk | None, embeds: Embeds) -> Carry:
        del chunk, embeds
        return carry._replace(state=aside.state, bank=aside.bank)

    def ask(
        self,
        params: Params,
        carry: Carry,
        rows: Embeds,
        prefix: KV | None,
        states: States,
        asked: Int[Array, ""] | None = None,
    ) -> Asking:
        query = self._query(params, rows, prefix, states)
        return Asking(carry, rows, prefix, query, carry.states, asked)

    def recall(self, asking: Asking, place: Place, q: Float[Array, "Q H D"]) -> View:
        asks, carry = self.program.requires.question, asking.carry
        question = None
        if asks is not None:
            queries = q if asks == "layer" else at_layer(asking.found, place.layer)
            question = Question(queries, asking.recalls, at_layer(asking.prefix, place.layer))
        bank = banks.of_layer(carry.bank, place.layer)
        return self.memory.recall(self.spec, self._read(carry.state, place), question, bank)


class StackDriver(Driver):
    """The memory shows before the loop and writes after it: it sees all layers at once."""

    def begin(self, carry: Carry, embeds: Embeds) -> View:
        return self.memory.view(self.spec, carry.state, embeds, carry.bank)

    def open(self, aside: View, place: Place) -> tuple[View, View]:
        return at_layer(aside, place.layer), aside

    def view(self, mine: View, embeds: Embeds) -> View:
        del embeds
        return mine

    def keep(self, mine: View, chunk: Chunk) -> Chunk:
        del mine
        return chunk

    def close(self, aside: View, place: Place, kept: Chunk) -> tuple[View, Chunk]:
        del place
        return aside, kept

    def end(self, carry: Carry, aside: View, chunk: Chunk | None, embeds: Embeds) -> Carry:
        del aside
        assert chunk is not None
        if self.program.requires.rows:
            chunk = chunk._replace(rows=embeds)
        state, evicted = self.memory.write(self.spec, carry.state, chunk)

        def put(layer: Array, bank: Bank | None) -> Bank | None:
            return banks.append(bank, layer, at_layer(evicted, layer))

        bank = carry.bank
        if bank is not None and evicted is not None:
            bank = jax.lax.fori_loop(0, self.spec.layers, put, bank)
        return carry._replace(state=state, bank=bank)

    def ask(
        self,
        params: Params,
        carry: Carry,
        rows: Embeds,
        prefix: KV | None,
        states: States,
        asked: Int[Array, ""] | None = None,
    ) -> Asking:
        query = self._query(params, rows, prefix, states)
        asking, anew = Asking(carry, rows, prefix, None, carry.states, asked), None
        if self.program.requires.rows:
            alone_rows = self.memory.anew(self.spec, carry.state)
            _, anew, _ = alone(params, self.program, alone_rows, prefix, states)
        question = None
        if query is not None or anew is not None:
            query = jnp.zeros((0,), rows.x.dtype) if query is None else query
            question = Question(query, asking.recalls, prefix, anew)
        views = self.memory.recall(self.spec, carry.state, question, carry.bank)
        return asking._replace(found=views)

    def recall(self, asking: Asking, place: Place, q: Float[Array, "Q H D"]) -> View:
        del q
        return at_layer(asking.found, place.layer)


class FeatureDriver(Driver):
    """The encoders' features go to the memory; the decoder runs when a question is asked."""

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Return none: no layer runs while the stream is watched."""
        return ()

    @property
    def features(self) -> FeatureMemory:
        """Return the memory, which holds features."""
        assert isinstance(self.program.memory, FeatureMemory)
        return self.program.memory

    def begin(self, carry: Carry, embeds: Embeds) -> None:
        del carry, embeds

    def end(self, carry: Carry, aside: None, chunk: Chunk | None, embeds: Embeds) -> Carry:
        del aside, chunk
        return carry._replace(state=self.features.write(self.spec, carry.state, embeds))

    def ask(
        self,
        params: Params,
        carry: Carry,
        rows: Embeds,
        prefix: KV | None,
        states: States,
        asked: Int[Array, ""] | None = None,
    ) -> Asking:
        """Prefill the features, which do not depend on the question: under `vmap`, once for all."""
        del states, asked  # no layer ran since the prefix: the carry's are still those after it
        seen = self.features.read(self.spec, carry.state)
        _, tokens, states = alone(params, self.program, seen, prefix, carry.states)
        end = self.spec.prefix + seen.advance.astype(self.spec.pos_dtype)
        views = View(tokens, jnp.broadcast_to(end, (self.spec.layers, *end.shape)))
        # A question follows the features, which are numbered like text.
        return Asking(carry, rows._replace(start=None), prefix, views, states)

    recall = StackDriver.recall


def driver_of(program: Program) -> Driver:
    """Return how a program's layers drive its memory."""
    if isinstance(program.memory, FeatureMemory):
        return FeatureDriver(program)
    return StackDriver(program) if program.layout is None else LayerDriver(program)
