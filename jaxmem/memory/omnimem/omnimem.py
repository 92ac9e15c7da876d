"""OmniMem (arXiv 2606.07577): keep what is attended to and what its neighbours do not repeat.

After every chunk the pool (memory, then chunk) of a layer is scored by the attention it received
from the chunk's queries and by its dissimilarity to the two neighbours in the pool,

    score = a^lam * max(1 - s, 0)^power,

and audio and visual tokens compete inside their own modality, under caps of their own per layer.
Text is always kept, up to a static cap. Positions are never changed.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.blocks import wide
from jaxmem.kernels.select import select
from jaxmem.kernels.similarity import neighbour_cosine, unit
from jaxmem.kv import KV
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Attention, Chunk, Requires
from jaxmem.memory.omnimem import budgets
from jaxmem.memory.omnimem.sign_sketch import project
from jaxmem.memory.parts import scored, scores
from jaxmem.memory.parts.options import at_least, between, one_of
from jaxmem.memory.parts.positions import start
from jaxmem.memory.parts.softly import Softly, log_gate
from jaxmem.typing import Array, Bool, Float, Int, Num

RATIO = 5.0
"""Visual to audio slots of the released tables."""


class Slots(NamedTuple):
    """What a slot holds: the token, the attention it has received, and its direction."""

    kv: KV
    importance: Float[Array, "S"]  # float32, after the last chunk
    unit: Float[Array, "S U"]  # unit layer input, or its sketch
    gate: Float[Array, "S 1"] | None = None  # see `softly`


class Aux(NamedTuple):
    """One layer's numbers; caps are data, so that layers with different budgets share code."""

    capacity: Int[Array, ""]  # slots that may be filled: the sum of quotas
    next_pos: Num[Array, "A"]  # where the next chunk begins
    quotas: Int[Array, "C"]  # (text, audio, visual), or (text, audio and visual)
    dropped: Int[Array, ""]  # text tokens dropped so far, at most 2^31 - 1


class Pool(NamedTuple):
    """Memory and chunk, dense, with what selection knows about them."""

    slots: Slots  # [N], memory first
    modality: Int[Array, "N"]
    redundancy: Float[Array, "N"]  # mean cosine with the previous and the next pool entry
    importance: Float[Array, "N"] | None  # None: the memory reads no attention
    n: Int[Array, ""]  # valid entries


@dataclass(frozen=True)
class OmniMem(Softly):
    """OmniMem; the defaults are those of the released code.

    Summary tokens of other memories compete as vision. A cap that nobody competes for is lent to
    the other modality: without audio all slots are for pictures.

    Attributes:
      budget: slots per layer for audio and vision together, or a table of caps per layer (see
        `budgets`, `avba`): `[L][audio, visual]`, or `[L]` for one cap that both share.
      audio_share: audio's part of a number as budget; 1/6 is the released prior of five visual
        slots for an audio slot; where audio matters as much as vision, use 0.5. None: audio and
        vision compete for one cap.
      text: slots for text tokens (the newest win). None: where time stamps come with the stream, a
        third of the average budget, at least 8, which holds the 257 time stamps of 10 tokens of the
        released setting; else none.
      importance: softmax of head-averaged logits ("mean_logit", released), or the mean over heads
        of the exact attention weights, divided by the number of queries ("exact").
      lam: exponent of importance (weight, if form is "sum"); 0: redundancy alone, and then no
        attention statistics are computed.
      power: exponent of 1 - s; 0.5 as released, 1 as published.
      carry: weight of the stored importance when a memory token is seen again.
      form: a^lam (1 - s)^power ("product"), or the additive variant lam a / sum(a) - 2 s ("sum").
      global_factor: adds this times the block redundancy (`scores.block_redundancy`) to 2 s.
      sketch: numbers per redundancy vector; wider layer inputs are projected to so many, narrower
        ones are stored whole. None stores the whole layer input, as released.
      unit_dtype: of the stored redundancy vectors; None takes the dtype of keys and values.
      newest: so many newest tokens, of audio and of vision each (of both together where they share
        a cap), are held whatever their score, inside the caps; 0 as published.
      reindex: kept tokens are numbered without gaps; False as published.

    Raises:
      ValueError: if an option is unknown or out of range.
    """

    budget: int | budgets.Table
    _: KW_ONLY
    audio_share: float | None = budgets.share_of_ratio(RATIO)
    text: int | None = None
    importance: Literal["mean_logit", "exact"] = "mean_logit"
    lam: float = 0.02
    power: float = 0.5
    carry: float = 0.5
    form: Literal["product", "sum"] = "product"
    global_factor: float = 0.0
    sketch: int | None = None
    unit_dtype: str | None = None
    newest: int = 0

    def __post_init__(self):
        object.__setattr__(self, "budget", budgets.hashable(self.budget))
        object.__setattr__(self, "unit_dtype", _dtype_name(self.unit_dtype))
        between(self.name, 0, 1, audio_share=self.audio_share, carry=self.carry)
        one_of(self.name, ("mean_logit", "exact"), importance=self.importance)
        one_of(self.name, ("product", "sum"), form=self.form)
        self.check_soft()
        at_least(self.name, 0, lam=self.lam, newest=self.newest, text=self.text)
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}.")
        if self.sketch is not None and (self.sketch < 1 or self.sketch % 32):
            raise ValueError(
                f"sketch must be a multiple of 32 numbers, or None, got {self.sketch}."
            )

    @property
    def requires(self) -> Requires:
        form = "mean_logit" if self.importance == "mean_logit" else "softmax"
        return Requires(hidden=True, attention=Attention(form) if self.lam > 0 else None)

    def resized(self, slots: int, spec: Spec) -> OmniMem:
        """Return the same memory with `slots` per layer; a table is scaled to that average."""
        if isinstance(self.budget, int):
            return replace(self, budget=slots)
        return replace(self, budget=budgets.scaled(self.budget, slots * spec.layers))

    def quotas(self, spec: Spec, layer: int) -> tuple[int, ...]:
        """Return a layer's caps: (text, audio, visual), or (text, audio and visual)."""
        table = budgets.resolve(self.budget, spec.layers, audio_share=self.audio_share)
        kept_text = self.text
        if kept_text is None:
            kept_text = max(8, int(table.sum()) // spec.layers // 3) if spec.timestamps else 0
        return kept_text, *(int(cap) for cap in table[layer].reshape(-1))

    def init(self, spec: Spec, layer: int = 0) -> State:
        quotas = self.quotas(spec, layer)
        capacity = sum(quotas)
        if capacity < 1:
            raise ValueError(
                f"layer {layer} has {quotas[0]} text slots and caps {list(quotas[1:])}: a layer "
                "needs at least one slot."
            )
        width = spec.width if self.sketch is None else min(self.sketch, spec.width)
        slots = Slots(
            kv=spec.empty(capacity),
            importance=jnp.zeros((capacity,), jnp.float32),
            unit=jnp.zeros((capacity, width), self.unit_dtype or spec.dtype),
            gate=self.no_gates(spec, capacity),
        )
        aux = Aux(
            capacity=jnp.asarray(capacity, jnp.int32),
            next_pos=start(spec),
            quotas=jnp.asarray(quotas, jnp.int32),
            dropped=jnp.zeros((), jnp.int32),
        )
        return State(slots, aux)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        pool = gather(state.slots, chunk, carry=self.carry, exact=self.importance == "exact")
        aux = state.aux
        ranked = compete(self.score(pool), pool.modality, groups=aux.quotas.shape[0])
        if self.newest:
            ranked = _newest_first(ranked, self.newest)
        media = scored.lend(aux.quotas[1:], ranked[1:] > -jnp.inf)
        lent = jnp.concatenate([aux.quotas[:1], media])
        index, keep = select(ranked, lent, slots=state.slots.importance.shape[0])
        slots, gates = pool.slots, pool.slots.gate
        if self.soft is not None and gates is not None:
            fresh = log_gate(ranked, lent, temperature=self.soft)[:, None]
            slots = slots._replace(gate=gates + fresh.astype(gates.dtype))
        texts = jnp.sum(pool.modality == kvs.TEXT, dtype=jnp.int32)
        gone, most = jnp.maximum(texts - aux.quotas[0], 0), jnp.iinfo(jnp.int32).max
        aux = aux._replace(dropped=aux.dropped + jnp.minimum(gone, most - aux.dropped))
        return State(kvs.take(slots, index, keep), self.moved(aux, chunk)), None

    def score(self, pool: Pool) -> Float[Array, "N"]:
        """Return a^lam * max(1 - s, 0)^power, or the additive variant."""
        s = pool.redundancy
        if self.global_factor:
            vectors = unit(pool.slots.unit.astype(jnp.float32))
            s = s + 0.5 * self.global_factor * scores.block_redundancy(vectors)
        if self.form == "product":
            return scores.product(pool.importance, s, self.lam, self.power)
        return scores.additive(pool.importance, s, self.lam)


def gather(slots: Slots, chunk: Chunk, *, carry: float = 0.5, exact: bool = False) -> Pool:
    """Return the dense pool of a layer with its redundancy and importance, before eviction.

    `chunk.hidden` is needed, `chunk.received` gives importance; `exact`: it is divided by the
    number of valid queries. With gates redundancy has a gradient by the layer inputs.
    """
    constant = jax.lax.stop_gradient if slots.gate is None else lambda x: x
    n = kvs.count(slots.kv)
    modality = chunk.kv.modality[:, 0]
    rows = jnp.sum(modality != kvs.EMPTY, dtype=jnp.int32)
    direction = constant(_direction(chunk.hidden, modality != kvs.EMPTY, slots.unit.shape[1]))
    fresh = Slots(chunk.kv, jnp.zeros(modality.shape, jnp.float32), direction)
    if slots.gate is not None:
        fresh = fresh._replace(gate=jnp.zeros((*modality.shape, 1), slots.gate.dtype))
    pool = kvs.append(slots, fresh, n)
    # Vectors stored in fewer bits are rounded; their lengths are taken out again.
    s = neighbour_cosine(pool.unit, n + rows, lengths=pool.unit.dtype != jnp.float32)

    importance = None
    if chunk.received is not None:
        new = kvs.append(chunk.received.memory[0], chunk.received.chunk[0], n)
        if exact:
            new = new / jnp.maximum(rows, 1).astype(jnp.float32)
        carried = scores.carry_over(new, pool.importance, n, rows, carry)
        importance = jax.lax.stop_gradient(carried)
        pool = pool._replace(importance=importance)
    return Pool(pool, pool.kv.modality[:, 0], constant(s), importance, n + rows)


def _dtype_name(dtype: Any) -> str | None:
    """Return the one name under which memories with equal options are equal."""
    try:
        return None if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        raise ValueError(f"unit_dtype is a name such as 'bfloat16', got {dtype!r}.") from None


def _direction(
    hidden: Float[Array, "T E"] | None, real: Bool[Array, "T"], width: int
) -> Float[Array, "T U"]:
    """Return the unit layer inputs, sketched to `width` numbers; zero for padding."""
    if hidden is None:
        raise ValueError(
            "OmniMem compares layer inputs but Chunk.hidden is None: the decoder must report what "
            "`requires.hidden` asks for."
        )
    vectors = hidden.astype(wide(hidden))
    if width < hidden.shape[1]:
        vectors = project(vectors, width)
    return jnp.where(real[:, None], unit(vectors), 0.0)


def compete(
    score: Float[Array, "N"], modality: Int[Array, "N"], *, groups: int
) -> Float[Array, "C N"]:
    """Return one row of scores per competition: text (the newest win), audio, vision.

    With two groups audio and vision compete in one.
    """
    text, audio = modality == kvs.TEXT, modality == kvs.AUDIO
    vision = (modality == kvs.VISION) | (modality == kvs.SUMMARY)
    members = [audio, vision] if groups == 3 else [audio | vision]
    rows = [scores.only(scores.newest(modality.shape[0]).astype(score.dtype), text)]
    return jnp.stack(rows + [scores.only(score, group) for group in members])


def _newest_first(ranked: Float[Array, "C N"], count: int) -> Float[Array, "C N"]:
    """Return scores under which each competition keeps its `count` newest members first."""
    member = ranked > -jnp.inf
    later = jnp.cumsum(member[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
    return scores.protect(ranked, member & (later <= count))
