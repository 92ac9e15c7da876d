"""The contract: what a memory is.

A memory decides what is scored, what is kept, where it goes and what a question reads. It is a
frozen dataclass: its fields are its options, its methods are pure functions. Everything else is
data; what passes between it and a decoder is in `jaxmem.memory.exchange`. The streaming loop calls
`view` (what a chunk attends to) and `write` (what is kept after it) for every chunk, and `recall`
for every question. States are pytrees whose shapes never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.exchange import BankSpec, Chunk, Embeds, Prompt, Question, Requires, View
from jaxmem.rope import Rope
from jaxmem.typing import Array, Int, PyTree


@dataclass(frozen=True)
class Spec:
    """What a memory must know of the model and its streams; static.

    Attributes:
      layers: L.
      kv_heads: G.
      head_dim: D.
      width: E.
      axes: A.
      chunk: T, the largest number of tokens written at once.
      prefix: P, tokens of the pinned prefix (held by the loop, not by the memory).
      step: how far a text token advances each position axis; None becomes one on every axis.
      dtype: of keys and values.
      pos_dtype: of positions, int32 or float32.
      rope: the model's rotary embedding; None where no memory asks for it.
      frame: rows and columns of the vision tokens of a frame; None: unknown.
      audio_tokens: audio tokens in a second of stream, rounded up; 0: the stream has no audio.
      timestamps: whether text tokens stand between the frames.
      max_position: the largest position that the model was trained with; None: unknown.
      state_bytes: that the layers with a state hold beside any memory.
    """

    layers: int
    kv_heads: int
    head_dim: int
    width: int
    axes: int = 1
    chunk: int = 256
    prefix: int = 0
    step: tuple[int, ...] = None  # type: ignore[assignment]  # see __post_init__
    dtype: Any = jnp.float32
    pos_dtype: Any = jnp.int32
    rope: Rope | None = None
    frame: tuple[int, int] | None = None
    audio_tokens: int = 0
    timestamps: bool = False
    max_position: int | None = None
    state_bytes: int = 0

    def __post_init__(self):
        if self.step is None:
            object.__setattr__(self, "step", (1,) * self.axes)
        if len(self.step) != self.axes:
            raise ValueError(
                f"Spec.step is {self.step}, expected a number for each of axes={self.axes}."
            )
        # Equal specs are equal whatever spelling of a dtype they were made with.
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        object.__setattr__(self, "pos_dtype", jnp.dtype(self.pos_dtype))

    def empty(self, slots: int, groups: int = 1) -> KV:
        """Return `slots` empty slots of this spec."""
        return kvs.empty(
            slots,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            axes=self.axes,
            groups=groups,
            dtype=self.dtype,
            pos_dtype=self.pos_dtype,
        )

    def needed(self, name: str, memory: object) -> Any:
        """Return a field that a memory cannot do without.

        Raises:
          ValueError: if the field is None.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"{type(memory).__name__} needs Spec.{name}, which is None: give it with the Spec "
                f"(a model of this package does), or as an option of the memory where it has one."
            )
        return value

    def frame_tokens(self, memory: object) -> int:
        """Return the vision tokens of a frame, which a memory cannot do without (`needed`)."""
        rows, columns = self.needed("frame", memory)
        return rows * columns


class State(NamedTuple):
    """What a memory threads through time.

    The split tells the loop what is a slot: at rest the slots of all layers lie in one flat pool
    that holds exactly the sum of the layers' budgets (see `jaxmem.memory.layout`).
    """

    slots: PyTree  # `KV`, or a NamedTuple with a field `kv`: every leaf [S, ...]
    aux: PyTree  # everything else (capacity, quotas, cursors); a NamedTuple with `capacity`


@dataclass(frozen=True)
class Memory:
    """A policy over keys and values. Subclass it: fields are options, methods are pure.

    Fields are hashable and hold no arrays; memories with equal options are equal, so a program is
    compiled once for both. `per` says where the layer axis is added. "layer": the methods see one
    layer and are called inside the decoder's layer loop. "stack": they see all layers, [L, ...]
    leading.
    """

    per: ClassVar[Literal["layer", "stack"]] = "layer"
    sized_by_options: ClassVar[bool] = False
    """Its budget is more than the numbers in its state: those of a smaller one do not shrink it."""

    @property
    def name(self) -> str:
        """Return the name used in reports and errors: that of the class."""
        return type(self).__name__

    @property
    def requires(self) -> Requires:
        """Return what the forward pass must report; nothing, unless overridden."""
        return Requires()

    def init(self, spec: Spec, layer: int = 0) -> State:
        """Return the empty state of one layer (of all layers, where `per` is "stack")."""
        raise NotImplementedError(f"{self.name}.init")

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, PyTree]:
        """Take a chunk; return the state after it, and what goes to the bank (or None)."""
        raise NotImplementedError(f"{self.name}.write")

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        """Return what the rows of the next chunk attend to, and where they begin."""
        return View(self.kv(state), state.aux.next_pos)

    def recall(
        self, spec: Spec, state: State, question: Question | None, bank: PyTree = None
    ) -> View:
        """Return what a question attends to, and where it begins."""
        return self.view(spec, state, None, bank)

    def anew(self, spec: Spec, state: State) -> Embeds:
        """Return the rows that a question reads encoded alone, where `requires.rows` is set."""
        raise NotImplementedError(f"{self.name}.anew")

    def kv(self, state: State) -> KV:
        """Return the tokens that a state holds, with keys and values as the policy knows them."""
        return kv_of(state.slots)

    def bank(self, spec: Spec) -> BankSpec | None:
        """Return what the memory asks of the loop's bank; None: it evicts to none."""
        return None

    def prompts(self, dialogue: tuple[str, str] | None = None) -> tuple[Prompt, ...]:
        """Return the texts of the probes that `requires.probes` counts.

        `dialogue` is the last question and its answer, for memories that guide by them.
        """
        return ()


@dataclass(frozen=True)
class FeatureMemory:
    """A memory of encoder features. It runs before the decoder, which runs at questions only."""

    sized_by_options: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return the name used in reports and errors: that of the class."""
        return type(self).__name__

    def init(self, spec: Spec) -> State:
        """Return the empty state."""
        raise NotImplementedError(f"{self.name}.init")

    def write(self, spec: Spec, state: State, embeds: Embeds) -> State:
        """Take a chunk of features."""
        raise NotImplementedError(f"{self.name}.write")

    def read(self, spec: Spec, state: State) -> Embeds:
        """Return the rows that are prefilled in front of a question."""
        raise NotImplementedError(f"{self.name}.read")


AnyMemory = Memory | FeatureMemory


def tupled(options: object, *names: str) -> None:
    """Turn lists among a frozen dataclass' options into tuples: equal options are equal."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, list):
            object.__setattr__(options, name, tuple(value))


def kv_of(slots: PyTree) -> KV:
    """Return the `KV` of a state's slots, which are `KV` or hold a field `kv`."""
    return slots if isinstance(slots, KV) else slots.kv


def at_layer(tree: PyTree, layer: Int[Array, ""] | int) -> PyTree:
    """Return layer `layer` of a tree with leading axis L, read lazily (None stays None).

    Inside a loop over layers this is a view that XLA fuses into its use: unused layers are never
    read, and no copy of the stack is made.
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False), tree)
