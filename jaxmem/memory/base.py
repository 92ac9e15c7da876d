"""`Memory`: a policy as a NamedTuple of pure functions, and the types that pass through it.

A memory decides what is scored, what is kept, where it goes and what a question reads. The
streaming loop calls, for every chunk, `view` (what the chunk attends to) and `write` (what is kept
afterwards), and for every question `recall`. States are pytrees whose shapes never change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree

Scope = Literal["layer", "stack", "feature"]


@dataclass(frozen=True)
class Spec:
    """Static sizes and dtypes that a memory's `init` needs; nothing is allocated to ask a price.

    Attributes:
      layers: L.
      kv_heads: G.
      heads: H.
      head_dim: D.
      width: E.
      axes: A.
      chunk: T, the largest number of tokens written at once.
      prefix: P, tokens of the pinned prefix (held by the loop, not by the memory).
      bank: entries per layer of the bank that a memory's spill goes to (held by the loop).
      bank_space: where the bank's entries lie, "host" or "device" memory; gradients need "device".
      layer: which layer `init` builds the state of (scope "layer"); budgets may differ by layer.
      text_step: how far a text token advances each position axis; None: by one on every axis.
      dtype: of keys and values.
      pos_dtype: of positions, int32 or float32.
    """

    layers: int
    kv_heads: int
    heads: int
    head_dim: int
    width: int
    axes: int = 1
    chunk: int = 256
    prefix: int = 0
    bank: int = 0
    bank_space: Literal["device", "host"] = "host"
    layer: int = 0
    text_step: tuple[int, ...] | None = None
    dtype: Any = jnp.float32
    pos_dtype: Any = jnp.int32

    def at(self, layer: int) -> Spec:
        """Return this spec for another layer."""
        return replace(self, layer=layer)

    @property
    def step(self) -> tuple[int, ...]:
        """Return how far a text token advances each position axis."""
        return (1,) * self.axes if self.text_step is None else self.text_step

    def empty(self, slots: int, groups: int = 1) -> KV:
        """Return `slots` empty slots of this spec."""
        return tk.empty(
            slots,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            axes=self.axes,
            groups=groups,
            dtype=self.dtype,
            pos_dtype=self.pos_dtype,
        )


class State(NamedTuple):
    """What a memory of scope "layer" or "stack" threads through time.

    The split tells the loop what is a slot: at rest the slots of all layers lie in one flat pool
    that holds exactly the sum of the layers' budgets (see `jaxmem.memory.layout`).
    """

    slots: PyTree  # `KV`, or a NamedTuple with a field `tokens`: every leaf [S, ...]
    aux: PyTree  # everything else (room, caps, cursors, keys); a NamedTuple with `room`


class Embeds(NamedTuple):
    """Rows that enter the decoder: a chunk, a question or a probe. Padding rows come last."""

    x: Float[Array, "T E"]  # embeddings (several probes: leading axis n everywhere)
    pos: Num[Array, "T A"]  # positions relative to where the rows begin
    modality: Int[Array, "T"]  # int8, EMPTY = padding
    advance: Num[Array, "A"]  # how far the rows advance the position
    deepstack: Float[Array, "n T E"] | None = None  # DeepStack: added after layer l < n
    # A question: it begins at max(base + after) on every axis; None: at the base.
    start: Num[Array, "A"] | None = None


class View(NamedTuple):
    """What rows attend to, and the position where they begin."""

    tokens: KV
    base: Num[Array, "A"]
    probe: Num[Array, "A"] | None = None  # where a probe begins, if not behind the chunk
    far: KV | None = None  # a segment whose queries stand at `far_pos`, whatever their row
    far_pos: Num[Array, "A"] | None = None
    probing: Bool[Array, "n"] | None = None  # which probes pass through this layer; None: all
    counted: Bool[Array, "S"] | None = None  # slots whose mass `requires.rows` adds up; None: all


class Received(NamedTuple):
    """Attention mass received: float32 column sums over valid rows, mean over heads of a group."""

    memory: Float[Array, "Gm S"]
    chunk: Float[Array, "Gm T"]


class Chunk(NamedTuple):
    """What one layer saw while a chunk passed: the fresh tokens and what `Requires` asked for.

    In scope "feature" no decoder has run: `tokens` is None, `hidden` and `kind` are the chunk.
    """

    tokens: KV  # [T] fresh keys and values, padding last
    base: Num[Array, "A"]  # position where the chunk began
    next_pos: Num[Array, "A"]  # base + span: where the next chunk begins under the "keep" rule
    layer: Int[Array, ""]
    hidden: Float[Array, "T E"] | None = None  # layer input, before its normalisation
    mass: Received | None = None
    rows: Float[Array, "T"] | None = None  # a row's mass on the memory
    probe: Received | None = (
        None  # leading axis [n]: sums over a probe's valid rows; 0 if not passed
    )
    probe_rows: Int[Array, "n"] | None = None  # valid rows of each probe
    modality: Int[Array, "T"] | None = None  # scope "feature" only
    queries: Float[Array, "T H D"] | None = None  # the chunk's, before rotation
    output: Float[Array, "H D E"] | None = None  # the layer's output projection


class Question(NamedTuple):
    """The queries of a question, for memories that recall by them (not rotated)."""

    q: Float[Array, "Q H D"]
    valid: Bool[Array, "Q"]
    prefix: KV | None


class Requires(NamedTuple):
    """Static: what the forward pass must report for a memory, and how it reads.

    Attributes:
      hidden: report layer inputs.
      mass: report attention mass received from the chunk's rows: exact ("softmax": softmax per
        head, mean over heads) or of head-averaged logits ("mean_logit", as OmniMem released it).
      last: only the last r valid rows of the chunk give mass (None: all).
      kind: only rows of this kind give mass, unless the chunk has none (None: all).
      rows: report each row's mass on the memory.
      queries: report the chunk's queries before rotation.
      output: report the layer's output projection, what every query head does to its values.
      probe: probes follow each chunk and see [prefix | memory | chunk | themselves], never each
        other, and nothing sees them: raw embeddings at every layer without a causal mask
        ("embedding"), or a causal pass of their own ("causal").
      window: rows see at most this many pool entries back.
      ask: a question's queries are needed to recall: each layer's own, in the same pass
        ("layer"), or those of a first pass over [prefix | question] ("pass").
    """

    hidden: bool = False
    mass: Literal["softmax", "mean_logit"] | None = None
    last: int | None = None
    modality: int | None = None
    rows: bool = False
    probe: Literal["embedding", "causal"] | None = None
    window: int | None = None
    ask: Literal["layer", "pass"] | None = None
    queries: bool = False
    output: bool = False


class Memory(NamedTuple):
    """A policy: pure functions over a state of fixed shape.

    `scope` says where the layer axis is added. "layer": the functions see one layer, and are
    called inside the decoder's layer loop. "stack": they see all layers, [L, ...] leading.
    "feature": they see encoder features before the decoder.
    """

    init: Callable[[Spec], State]
    view: Callable[[State, PyTree, Embeds], View]  # (state, bank or None, rows)
    write: Callable[[State, Chunk], tuple[State, PyTree]]  # -> (state, spill or None)
    recall: Callable[[State, PyTree, Question | None], View]  # scope "feature": -> Rows
    requires: Requires = Requires()
    scope: Scope = "layer"
    name: str = "memory"
    spill: Callable[[Spec], PyTree] | None = None  # an empty spill of one layer; None: none is made
    bank: int | None = None  # entries per layer of its bank; None: `Spec.bank`
    held: Callable[[State], KV] | None = None  # its tokens as numbers; None: those of `slots`


def kv_of(slots: PyTree) -> KV:
    """Return the `KV` of a state's slots, which are `KV` or hold a field `tokens`."""
    return slots if isinstance(slots, KV) else slots.tokens


def held(memory: Memory, state: State) -> KV:
    """Return the tokens that a state holds, with keys and values as the policy knows them."""
    return kv_of(state.slots) if memory.held is None else memory.held(state)


def at_layer(tree: PyTree, layer: Int[Array, ""] | int) -> PyTree:
    """Return layer `layer` of a tree with leading axis L, read lazily (None stays None).

    Inside a loop over layers this is a view that XLA fuses into its use: what nobody looks at
    costs nothing, and no copy of the stack is made.
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False), tree)


def shapes(memory: Memory, spec: Spec) -> list[State]:
    """Return the state of every layer as shapes and dtypes; nothing is allocated."""
    if memory.scope == "layer":
        return [jax.eval_shape(lambda l=l: memory.init(spec.at(l))) for l in range(spec.layers)]
    return [jax.eval_shape(lambda: memory.init(spec))]


def nbytes(memory: Memory, spec: Spec) -> int:
    """Return the bytes that a memory holds at rest over all layers, without allocating them."""
    leaves = jax.tree.leaves(shapes(memory, spec))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def slots(memory: Memory, spec: Spec) -> tuple[int, ...]:
    """Return the number of slots of every layer.

    Raises:
      ValueError: for a memory of scope "feature", which keeps features and no slots of layers.
    """
    if memory.scope == "feature":
        raise ValueError(
            f"memory {memory.name!r} keeps features before the decoder and has no slots of layers; "
            "use nbytes() to compare it with others."
        )
    if memory.scope == "layer":
        return tuple(kv_of(s.slots).modality.shape[0] for s in shapes(memory, spec))
    kind = kv_of(shapes(memory, spec)[0].slots).modality
    return (kind.shape[1],) * spec.layers
