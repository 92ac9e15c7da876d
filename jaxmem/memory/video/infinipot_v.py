"""InfiniPot-V (arXiv 2506.15745): what moves (TaR) and what has large values (VaN) is kept."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import top_mask
from jaxmem.kernels.similarity import similarity_to_recent
from jaxmem.kv import KV, VISION
from jaxmem.memory.base import Spec, State, tupled
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import between
from jaxmem.memory.parts.scored import Scored, choose, lend, length, members, split, take
from jaxmem.rope import rope
from jaxmem.typing import Array, Bool, Float, Int, Num


class Slots(NamedTuple):
    """Tokens, the norm of each value (pooled at arrival) and its place in its frame."""

    kv: KV
    norm: Float[Array, "S Gm"]
    place: Int[Array, "S Gm"]  # 0 to tokens per frame - 1; of vision tokens only


class Aux(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]  # slots that may be filled
    next_pos: Num[Array, "A"]  # where the next chunk begins
    quotas: Int[Array, "C"]  # (all), or (all but audio, audio)
    place: Int[Array, ""]  # of the next vision token
    depth: Int[Array, ""]  # quarter of the model's layers, 0 to 3, which pooling depends on


@dataclass(frozen=True)
class InfiniPotV(Scored):
    """InfiniPot-V: after every chunk each layer and KV head goes back to its budget.

    Temporal-axis redundancy (TaR) of a token is its mean cosine with the keys at the same place of
    the r newest frames. The newest frames and the least redundant older tokens fill `tar_ratio` of
    the budget, the tokens with the largest value norm (VaN) the rest. A chunk of T tokens is the
    paper's M - C; a token keeps its place, so that it is compared with its own place ever after.
    Tokens that are not vision compete by their value norm alone.

    Attributes:
      budget: C, slots of every layer after compression.
      grid: rows and columns of a frame's vision tokens; None: those of the model.
      tar_ratio: part of the budget for TaR, the newest frames included; 0 leaves it out.
      query_ratio: r, as a part of the frames in the pool: 0.25 as released (0.125 in the paper).
      pooling: average the value norms over neighbours of the chunk, by a window that shrinks with
        depth as in the released code, where it is off by default. The paper's windows are
        thresholds fitted per model. Chunks must then begin with a frame.
      rotated: compare keys at their positions as released; False compares them before rotation.
      per_head: every KV head keeps its own tokens as published; False: by the mean over the heads.

    Raises:
      ValueError: if the budget has no slot, or a ratio or the grid is out of range.
    """

    sized_by_options: ClassVar[bool] = True

    _: KW_ONLY
    grid: tuple[int, int] | None = None
    tar_ratio: float = 0.5
    query_ratio: float = 0.25
    pooling: bool = False
    rotated: bool = True

    def __post_init__(self):
        tupled(self, "grid")
        super().__post_init__()
        between(self.name, 0, 1, tar_ratio=self.tar_ratio, query_ratio=self.query_ratio)
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise ValueError(f"grid is (rows, columns) of a frame, at least 1, got {self.grid}.")

    def grid_of(self, spec: Spec) -> tuple[int, int]:
        """Return rows and columns of a frame's vision tokens."""
        return spec.needed("frame", self) if self.grid is None else self.grid

    def frame_of(self, spec: Spec) -> int:
        """Return the vision tokens of a frame."""
        rows, columns = self.grid_of(spec)
        return rows * columns

    def init(self, spec: Spec, layer: int = 0) -> State:
        self.frame_of(spec)  # an unknown frame, or embedding, is refused at once
        if self.rotated and self.tar_ratio:
            spec.needed("rope", self)
        groups = spec.kv_heads if self.per_head else 1
        place = jnp.zeros((self.budget, groups), jnp.int32)
        slots = Slots(spec.empty(self.budget, groups), place.astype(jnp.float32), place)
        depth = min(3, layer // max(1, spec.layers // 4))
        zero = jnp.zeros((), jnp.int32)
        return State(slots, Aux(*self.aux(spec), place=zero, depth=jnp.asarray(depth, jnp.int32)))

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        slots, aux = state
        fresh, after = self._arrived(spec, aux, chunk)
        pool: Slots = kvs.append(slots, fresh, kvs.count(slots.kv))
        candidates = self.candidates(spec, state, chunk)
        modality, score = pool.kv.modality, pool.norm.T
        if self.tar_ratio:
            quota = lend(aux.quotas, members(modality[:, :1], aux.quotas.shape[0])[:, 0])[0]
            forced, _ = self.temporal(spec, pool._replace(kv=candidates.kv), quota)
            score = scores.protect(score, forced)
        score = self.ranked_by(score, candidates)
        keep = choose(score, modality, aux.quotas, length(state))
        return State(take(pool, *keep), self.moved(aux._replace(place=after), chunk)), None

    def _arrived(self, spec: Spec, aux: Aux, chunk: Chunk) -> tuple[Slots, Int[Array, ""]]:
        """Return a chunk's tokens with norms and places, and the place after them."""
        frame, image = self.frame_of(spec), chunk.kv.modality[:, 0] == VISION
        index = aux.place + jnp.cumsum(image, dtype=jnp.int32) - 1
        norm = jnp.linalg.norm(chunk.kv.v.astype(jnp.float32), axis=-1)  # VaN
        if self.pooling:
            norm = scores.smooth_frames(norm.T, image, index, self.grid_of(spec), aux.depth).T
        if not self.per_head:
            norm = jnp.mean(norm, axis=1, keepdims=True)
        place = jnp.broadcast_to((index % frame)[:, None], norm.shape)
        return Slots(chunk.kv, norm, place), (aux.place + jnp.sum(image, dtype=jnp.int32)) % frame

    def temporal(
        self, spec: Spec, pool: Slots, quota: Int[Array, ""]
    ) -> tuple[Bool[Array, "Gm N"], Float[Array, "Gm N"]]:
        """Return which tokens TaR keeps, the newest frames included, and minus the redundancies.

        Every head counts its own frames: beside text and audio heads hold different pictures. The
        pool is memory, then chunk, dense, at the positions that they are read at; vision competes
        for `quota` slots.
        """
        frame, heads = self.frame_of(spec), pool.kv.k.shape[1]
        image = pool.kv.modality.T == VISION
        later = jnp.cumsum(image[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
        newest = self._newest_frames(later[:, 0] // frame, image.shape[1] // frame) * frame  # [Gm]
        recent = image & (later <= newest[:, None])
        keys = pool.kv.k.astype(jnp.float32)  # rotated in float32, too
        if self.rotated:
            keys = rope(keys, pool.kv.pos - pool.kv.pos[:1], spec.needed("rope", self))
        of_heads = jnp.broadcast_to(recent, (heads, recent.shape[1]))
        place = jnp.broadcast_to(pool.place, (recent.shape[1], heads))
        tar = -similarity_to_recent(keys, of_heads, place, places=frame)
        if not self.per_head:
            tar = jnp.mean(tar, axis=0, keepdims=True)
        older = jnp.maximum(self._tar_budget(quota) - newest, 0)
        return recent | top_mask(scores.only(tar, image & ~recent), older), tar

    def _newest_frames(self, frames: Int[Array, "Gm"], most: int) -> Int[Array, "Gm"]:
        """Return r = floor(frames * query_ratio), rounded as Python does."""
        table = jnp.asarray([int(f * self.query_ratio) for f in range(most + 1)], jnp.int32)
        return table[frames]

    def _tar_budget(self, quota: Int[Array, ""]) -> Int[Array, ""]:
        """Return what TaR keeps of the slots that vision competes for: its own, or all of them."""
        part = lambda slots: slots - round((1.0 - self.tar_ratio) * slots)  # half to even
        own = split(self.budget, self.audio_share)[0]
        return jnp.where(quota == self.budget, part(self.budget), part(own))
