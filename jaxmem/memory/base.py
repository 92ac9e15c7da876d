"""The contract: what a memory is, and the types that pass between a decoder and a memory.

A memory decides what is scored, what is kept, where it goes and what a question reads. It is a
frozen dataclass: its fields are its options, its methods are pure functions. Everything else is
data. The streaming loop calls `view` (what a chunk attends to) and `write` (what is kept after it)
for every chunk, and `recall` for every question. States are pytrees whose shapes never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree


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


class Embeds(NamedTuple):
    """Rows that enter the decoder: a chunk, a question or a probe. Padding rows come last."""

    x: Float[Array, "T E"]  # embeddings (several probes: leading axis n everywhere)
    pos: Num[Array, "T A"]  # positions relative to where the rows begin
    modality: Int[Array, "T"]  # int8, EMPTY = padding
    advance: Num[Array, "A"]  # how far the rows advance the position
    deepstack: Float[Array, "n T E"] | None = None  # added after layer l < n
    # A question: it begins at max(base + start) on every axis; None: at the base.
    start: Num[Array, "A"] | None = None


class Sinks(NamedTuple):
    """A segment that rows see from one fixed distance, wherever they stand."""

    kv: KV
    pos: Num[Array, "A"]  # where its queries stand


class View(NamedTuple):
    """What rows attend to, and the position where they begin."""

    kv: KV
    base: Num[Array, "A"]
    sinks: Sinks | None = None
    probing: Bool[Array, "n"] | None = None  # which probes pass through this layer; None: all
    counted: Bool[Array, "S"] | None = None  # slots whose attention `given` adds up; None: all
    bias: Float[Array, "S Gm"] | None = None  # added to the logits of what is held
    # Rows see the so many best of their past by score, in each part of the budget; None: all of it.
    quotas: Int[Array, "C"] | None = None


class Received(NamedTuple):
    """Attention received: float32 column sums over valid rows, mean over heads of a group."""

    memory: Float[Array, "Gm S"]
    chunk: Float[Array, "Gm T"]


class Probed(NamedTuple):
    """What the probes gave; leading axis [n]."""

    received: Received  # sums over a probe's valid rows; 0 for a probe that did not pass
    rows: Int[Array, "n"]  # valid rows of each probe


class Chunk(NamedTuple):
    """What one layer saw while a chunk passed: fresh tokens, and what the memory requires."""

    kv: KV  # [T] fresh keys and values, padding last
    next_pos: Num[Array, "A"]  # where the next chunk begins if positions are kept
    hidden: Float[Array, "T E"] | None = None  # layer input, before its normalisation
    received: Received | None = None
    given: Float[Array, "T"] | None = None  # a row's attention to the memory
    probed: Probed | None = None
    queries: Float[Array, "T H D"] | None = None  # the chunk's, before rotation
    output: Float[Array, "H D E"] | None = None  # the layer's output projection
    retention: Float[Array, "T G"] | None = None  # a score read off the values, float32
    rows: Embeds | None = None  # as they entered the decoder, of no layer


class Question(NamedTuple):
    """The queries of a question, for memories that recall by them (not rotated)."""

    q: Float[Array, "Q H D"]  # no rows where `Requires.question` is None
    valid: Bool[Array, "Q"]
    prefix: KV | None
    anew: KV | None = None  # tokens of the rows of `Memory.anew` [L, R], positions from the prefix


class Attention(NamedTuple):
    """Static: which attention is added up.

    Attributes:
      form: exact ("softmax": softmax per head, mean over heads) or of head-averaged logits
        ("mean_logit", as OmniMem released it).
      last: only the last r valid rows of the chunk count (None: all).
      modality: only rows of this modality count, unless the chunk has none (None: all).
    """

    form: Literal["softmax", "mean_logit"] = "softmax"
    last: int | None = None
    modality: int | None = None


class Probes(NamedTuple):
    """Static: probes follow each chunk and see [prefix | memory | chunk | themselves].

    They never see each other, and nothing sees them.

    Attributes:
      count: n, how many there are.
      form: a causal pass of their own ("causal"), or raw embeddings at every layer without a causal
        mask ("embedding").
    """

    count: int
    form: Literal["causal", "embedding"] = "causal"


class Prompt(NamedTuple):
    """Text of a probe.

    `form` "text" is taken as it is, without a chat template; "answer_start" is what the chat
    template writes between a question and its answer, `text` standing in where a model has none.
    """

    text: str
    form: Literal["text", "answer_start"] = "text"


class Requires(NamedTuple):
    """Static: what the forward pass must report for a memory, and how it reads.

    Attributes:
      hidden: report layer inputs.
      attention: report the attention that memory and chunk receive from the chunk's rows.
      given: report each row's attention to the memory.
      queries: report the chunk's queries before rotation.
      output: report the layer's output projection, what every query head does to its values.
      probes: let probes follow each chunk.
      window: rows see at most this many pool entries back.
      retention: report scores that the layer's weights read off values ("score"); rows also see no
        more than the best of their past, the score added to its logits ("logits").
      question: a question's queries are needed to recall: each layer's own, in the same pass
        ("layer"), or those of a first pass over [prefix | question] ("pass").
      rows: report the rows that entered the decoder, and encode those of `Memory.anew` by
        themselves at every question; for memories that see the whole stack.
    """

    hidden: bool = False
    attention: Attention | None = None
    given: bool = False
    queries: bool = False
    output: bool = False
    probes: Probes | None = None
    window: int | None = None
    retention: Literal["score", "logits"] | None = None
    question: Literal["layer", "pass"] | None = None
    rows: bool = False


class BankSpec(NamedTuple):
    """What a memory asks of the loop's bank; see `jaxmem.memory.bank`."""

    capacity: int  # entries per layer
    evicted: PyTree  # what one `write` of one layer evicts, empty: its shapes
    space: Literal["device", "host"] = "host"  # gradients need "device"


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


def shapes(memory: AnyMemory, spec: Spec) -> list[State]:
    """Return the state of every layer as shapes and dtypes; nothing is allocated.

    Memories over the whole stack, and memories of features, have one state.
    """
    if isinstance(memory, FeatureMemory) or memory.per == "stack":
        return [jax.eval_shape(lambda: memory.init(spec))]
    return [jax.eval_shape(lambda l=l: memory.init(spec, l)) for l in range(spec.layers)]  # type: ignore[call-arg]


def nbytes(memory: AnyMemory, spec: Spec) -> int:
    """Return the bytes that a memory's state holds at rest over all layers; nothing is allocated.

    What its bank holds is not counted (`footprint` does).
    """
    leaves = jax.tree.leaves(shapes(memory, spec))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def stream_nbytes(memory: AnyMemory, spec: Spec) -> int:
    """Return the bytes of a stream without its bank: `nbytes`, and those of layers with a state."""
    return nbytes(memory, spec) + spec.state_bytes


def slots(memory: AnyMemory, spec: Spec) -> tuple[int, ...]:
    """Return the number of slots of every layer.

    Raises:
      ValueError: for a memory of features, which has no slots of layers.
    """
    if isinstance(memory, FeatureMemory):
        raise ValueError(
            f"{memory.name} keeps features before the decoder and has no slots of layers; use "
            "nbytes() to compare it with others."
        )
    if memory.per == "layer":
        return tuple(kv_of(s.slots).modality.shape[0] for s in shapes(memory, spec))
    modality = kv_of(shapes(memory, spec)[0].slots).modality
    return (modality.shape[1],) * spec.layers
