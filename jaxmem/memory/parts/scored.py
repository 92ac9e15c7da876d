"""`Scored`: memories that rank memory and chunk together after each chunk and keep the best.

A method is a score. Every KV head may keep tokens of its own (Gm = G): heads differ in which, never
in how many. Audio may compete in a budget of its own, so that hundreds of visual tokens cannot push
out the few beside them.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import select
from jaxmem.kv import KV
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import at_least, between
from jaxmem.memory.parts.positions import numbered, start
from jaxmem.memory.parts.softly import Softly, log_gate, passed
from jaxmem.typing import Array, Bool, Float, Int, Num

T = TypeVar("T")
AUDIO_SHARE = 1 / 6
"""Audio's default part of a budget: OmniMem's released prior, five visual slots for each."""


class Slots(NamedTuple):
    """Tokens, and what a method remembers of each."""

    kv: KV
    received: Float[Array, "S Gm"] | None = None  # attention so far, where it accumulates
    gate: Float[Array, "S Gm"] | None = None  # see `softly`


class Aux(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]  # slots that may be filled
    next_pos: Num[Array, "A"]  # where the next chunk begins
    quotas: Int[Array, "C"]  # (all), or (all but audio, audio)


class Candidates(NamedTuple):
    """Memory, then chunk, dense, as a score sees them. Entries from `n` on hold nothing."""

    kv: KV  # [N], at the positions that they are read at
    received: Float[Array, "Gm N"] | None  # attention from this chunk's rows, and accumulated
    n: Int[Array, ""]  # valid entries
    rows: Int[Array, ""]  # how many of them the chunk brought
    next_pos: Num[Array, "A"]  # where the next chunk begins
    queries: Float[Array, "T H D"] | None  # of the chunk's rows, before rotation
    spec: Spec
    quotas: Int[Array, "C"] | None = None  # of the parts of the budget, before any is lent

    @property
    def valid(self) -> Bool[Array, "Gm N"]:
        """Return which entries hold a token."""
        return kvs.valid(self.kv).T

    def newest(self, count: int | Array) -> Bool[Array, "1 N"]:
        """Return which entries are the last `count` valid ones (the same ones in every head)."""
        entry = jnp.arange(self.kv.modality.shape[0], dtype=jnp.int32)[None]
        return (entry < self.n) & (entry >= self.n - count)

    def oldest(self, count: int) -> Bool[Array, "Gm N"]:
        """Return which entries are the first `count` valid ones."""
        return self.valid & (jnp.cumsum(self.valid, axis=1, dtype=jnp.int32) <= count)


@dataclass(frozen=True)
class Scored(Softly):
    """Keeps the tokens of largest score; equal scores go to the newer token.

    Attributes:
      budget: S, slots of every layer.
      per_head: every KV head keeps its own tokens; False: scores are averaged over the heads.
      audio_share: audio's part of the budget, where it competes by itself; None: all tokens compete
        for all slots. A part that nothing competes for lends its slots to the other.
      newest: so many newest tokens are always held, inside the budget.
      floor: this share of every part of the budget is for the newest tokens of that part, so that
        what is there now can be asked about, in pictures and in sound.
      reindex: kept tokens are numbered without gaps; False: they keep their positions.

    Raises:
      ValueError: if the budget is too small for its parts, or an option is out of range.
    """

    accumulates: ClassVar[bool] = False
    """Attention received adds up over chunks and is part of the state."""

    budget: int
    _: KW_ONLY
    per_head: bool = True
    audio_share: float | None = AUDIO_SHARE
    newest: int = 0
    floor: float = 0.0

    def __post_init__(self):
        check_budget(self.name, self.budget, self.audio_share)
        self.check_soft()
        between(self.name, 0, self.budget, newest=self.newest)
        between(self.name, 0, 1, floor=self.floor)

    @property
    def softens(self) -> bool:
        attends = self.requires.attention is not None or self.requires.probes is not None
        return not attends and type(self).write is Scored.write

    def score(self, candidates: Candidates) -> Float[Array, "Gm N"]:
        """Return finite or +inf scores; entries that hold nothing may have any."""
        raise NotImplementedError(f"{self.name}.score")

    def ranked(self, candidates: Candidates) -> Float[Array, "Gm N"]:
        """Return the scores that choose: of every head or their mean, the newest tokens first."""
        return self.ranked_by(self.score(candidates), candidates)

    def ranked_by(self, score: Float[Array, "Gm N"], candidates: Candidates) -> Array:
        """Return what `ranked` makes of scores."""
        if not self.per_head:
            score = jnp.mean(score, axis=0, keepdims=True)
        if self.newest:
            score = scores.protect(score, candidates.newest(self.newest))
        if self.floor:
            modality, quotas = candidates.kv.modality, candidates.quotas
            assert quotas is not None, "who makes candidates fills in the quotas"
            lent = lend(quotas, members(modality[:, :1], quotas.shape[0])[:, 0])
            least = (self.floor * lent.astype(jnp.float32)).astype(jnp.int32)
            score = scores.protect(score, newest_of_parts(modality, least))
        return score

    def init(self, spec: Spec, layer: int = 0) -> State:
        groups = spec.kv_heads if self.per_head else 1
        received = jnp.zeros((self.budget, groups), jnp.float32) if self.accumulates else None
        gates = self.no_gates(spec, self.budget, groups)
        return State(Slots(spec.empty(self.budget, groups), received, gates), self.aux(spec))

    def aux(self, spec: Spec) -> Aux:
        """Return the numbers of a stream that has not begun."""
        return Aux(
            capacity=jnp.asarray(self.budget, jnp.int32),
            next_pos=start(spec),
            quotas=jnp.asarray(split(self.budget, self.audio_share), jnp.int32),
        )

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        candidates, quotas = self.candidates(spec, state, chunk), state.aux.quotas
        if self.soft is not None:
            candidates = candidates._replace(kv=learning(candidates.kv))
        score, modality = self.ranked(candidates), candidates.kv.modality
        keep = choose(score, modality, quotas, length(state))
        total = received(self, candidates).T if self.accumulates else None
        n, gates = kvs.count(state.slots.kv), None
        if self.soft is not None:
            gates = passed(state.slots.gate, gates_of(score, modality, quotas, self.soft), n)
        pool = Slots(kvs.append(state.slots.kv, chunk.kv, n), total, gates)
        return State(take(pool, *keep), self.moved(state.aux, chunk)), None

    def candidates(self, spec: Spec, state: State, chunk: Chunk) -> Candidates:
        """Return memory and chunk as one dense pool."""
        found = candidates_of(spec, state.slots.kv, chunk, getattr(state.slots, "received", None))
        found = found._replace(quotas=state.aux.quotas)
        if not self.reindex:
            return found
        kv, next_pos = numbered(found.kv, state.aux.next_pos)
        return found._replace(kv=kv, next_pos=next_pos)


def check_budget(name: str, budget: int, audio_share: float | None) -> None:
    """Raise ValueError if a budget has no slot, or audio's share is no share."""
    at_least(name, 1, budget=budget)
    between(name, 0, 1, audio_share=audio_share)


def split(budget: int, audio_share: float | None) -> tuple[int, ...]:
    """Return how a budget is divided: (all), or (all but audio, audio)."""
    if audio_share is None:
        return (budget,)
    audio = round(budget * audio_share)
    return budget - audio, audio


def split_at(capacity: Int[Array, ""], budget: int, audio_share: float | None) -> Int[Array, "C"]:
    """Return `split` of a capacity that is data: the budget, or a smaller one."""
    if audio_share is None:
        return capacity[None]
    audio = jnp.round(capacity.astype(jnp.float32) * jnp.float32(audio_share)).astype(jnp.int32)
    audio = jnp.where(capacity == budget, split(budget, audio_share)[1], audio)
    return jnp.stack([capacity - audio, audio])


def length(state: State) -> int:
    """Return the length of a state's arrays, at least its capacity."""
    return state.slots.kv.modality.shape[0]


def candidates_of(
    spec: Spec, held: KV, chunk: Chunk, received: Float[Array, "S Gm"] | None = None
) -> Candidates:
    """Return the dense pool of a layer; `received` is what the memory's tokens accumulated."""
    n = kvs.count(held)
    rows = jnp.sum(chunk.kv.modality[:, 0] != kvs.EMPTY, dtype=jnp.int32)
    total = None
    if chunk.received is not None:
        old = chunk.received.memory.T + (0.0 if received is None else received)
        total = jax.lax.stop_gradient(kvs.append(old, chunk.received.chunk.T, n).T)
    kv = kvs.append(held, chunk.kv, n)
    return Candidates(kv, total, n + rows, rows, chunk.next_pos, chunk.queries, spec)


def received(memory: Memory, candidates: Candidates) -> Float[Array, "Gm N"]:
    """Return the attention that the candidates received.

    Raises:
      ValueError: if the decoder did not report it.
    """
    if candidates.received is None:
        raise ValueError(
            f"{memory.name} scores by Chunk.received, which is None: the decoder must report what "
            "`requires.attention` asks for."
        )
    return candidates.received


def choose(
    score: Float[Array, "Gm N"], modality: Int[Array, "N Gm"], quotas: Int[Array, "C"], slots: int
) -> tuple[Int[Array, "Gm K"], Bool[Array, "Gm K"]]:
    """Return what every head keeps, oldest first; feed it to `take`."""
    choice = partial(select, slots=slots)
    return jax.vmap(choice, in_axes=(0, None))(*competition(score, modality, quotas))


def gates_of(
    score: Float[Array, "Gm N"], modality: Int[Array, "N Gm"], quotas: Int[Array, "C"], soft: float
) -> Float[Array, "N Gm"]:
    """Return the logarithms of the gates of every head's choice."""
    one = partial(log_gate, temperature=soft)
    return jax.vmap(one, in_axes=(0, None))(*competition(score, modality, quotas)).T


def learning(kv: KV) -> KV:
    """Return tokens whose empty entries have no gradient: that of the length of 0 is NaN."""
    real = kvs.valid(kv)[..., None]
    one = lambda x: jnp.where(real, x, jax.lax.stop_gradient(x))
    return kv._replace(k=one(kv.k), v=one(kv.v))


def competition(
    score: Float[Array, "Gm N"], modality: Int[Array, "N Gm"], quotas: Int[Array, "C"]
) -> tuple[Float[Array, "Gm C N"], Int[Array, "C"]]:
    """Return the scores of each part of the budget, and how many win in it."""
    parts = quotas.shape[0]
    lent = lend(quotas, members(modality[:, :1], parts)[:, 0])
    return by_part(score, modality, parts), lent


def members(modality: Int[Array, "N Gm"], parts: int) -> Bool[Array, "C Gm N"]:
    """Return who competes in each part of a budget: (all), or (all but audio, audio)."""
    valid, audio = modality.T != kvs.EMPTY, modality.T == kvs.AUDIO
    return jnp.stack([valid] if parts == 1 else [valid & ~audio, audio])


def newest_of_parts(modality: Int[Array, "N Gm"], counts: Int[Array, "C"]) -> Bool[Array, "Gm N"]:
    """Return which entries are among the last `counts[c]` of their part of a budget."""
    groups = members(modality, counts.shape[0])
    later = jnp.cumsum(groups[..., ::-1], axis=-1, dtype=jnp.int32)[..., ::-1]
    return jnp.any(groups & (later <= counts[:, None, None]), axis=0)


def lend(quotas: Int[Array, "C"], competing: Bool[Array, "C N"]) -> Int[Array, "C"]:
    """Return the quotas with those of empty parts added to the first part that is not empty.

    Without audio all slots are for pictures; when audio comes, its part is its own again.
    """
    empty = ~jnp.any(competing, axis=1)
    first = jnp.argmin(empty)  # the first part that somebody competes for
    lent = jnp.sum(jnp.where(empty, quotas, 0), dtype=quotas.dtype)
    own = jnp.where(empty, 0, quotas)
    return jnp.where(jnp.all(empty), quotas, own.at[first].add(lent))


def by_part(
    score: Float[Array, "Gm N"], modality: Int[Array, "N Gm"], parts: int
) -> Float[Array, "Gm C N"]:
    """Return one row of scores for each part of the budget, -inf for who may not compete in it."""
    groups = members(modality, parts)
    return jnp.stack([scores.only(score, group) for group in groups], axis=1)


def take(slots: T, index: Int[Array, "Gm K"], keep: Bool[Array, "Gm K"]) -> T:
    """Gather rows of every leaf [N, Gm or G, ...] by head, and zero those that are not kept."""
    if index.shape[0] == 1:
        return kvs.take(slots, index[0], keep[0])
    return jax.vmap(kvs.take, in_axes=(1, 0, 0), out_axes=1)(slots, index, keep)
