"""The types that pass between a decoder and a memory.

What rows enter a decoder, what a memory asks to be told, what it is told of a chunk, and what it
lets rows read.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxmem.kv import KV
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree


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
