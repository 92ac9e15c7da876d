"""InfiniPot-V (arXiv 2506.15745): what moves (TaR) and what has large values (VaN) is kept."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kernels.select import top_mask
from jaxmem.kernels.similarity import similarity_to_recent
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State, View
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.rope import Rope, rope
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree


class Slots(NamedTuple):
    """Tokens, their value norm (pooled at arrival) and their place in their frame."""

    tokens: KV
    norm: Float[Array, "S G"]
    place: Int[Array, "S G"]  # 0 to tokens per frame - 1; of vision tokens only


class Notes(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]
    next_pos: Num[Array, "A"]
    quotas: Int[Array, "C"]
    place: Int[Array, ""]  # of the next vision token
    depth: Int[Array, ""]  # quarter of the model's layers, 0 to 3, which pooling depends on


def infinipot_v(
    budget: int,
    grid: tuple[int, int],
    *,
    tar_ratio: float = 0.5,
    query_ratio: float = 0.25,
    pooling: bool = False,
    rotary: Rope | None = None,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: places.Rule = "keep",
) -> Memory:
    """Return InfiniPot-V: after every chunk each layer and KV head goes back to its budget.

    Temporal-axis redundancy (TaR) of a token is its mean cosine with the keys at the same place of
    the r newest frames. The newest frames and the least redundant older tokens fill `tar_ratio` of
    the budget, the tokens with the largest value norm (VaN) the rest. A chunk of T tokens is the
    paper's M - C; a token keeps its place, so that it is compared with its own place ever after.
    Tokens that are not vision compete by their value norm alone.

    Args:
      budget: C, slots of every layer after compression.
      grid: rows and columns of a frame; their product is its number of vision tokens.
      tar_ratio: part of the budget for TaR, the newest frames included; 0 leaves it out.
      query_ratio: r, as a part of the frames in the pool: 0.25 as released (0.125 in the paper).
      pooling: average the value norms over neighbours of the chunk, by a window that shrinks with
        depth as in the released code, where it is off by default. The paper's windows are
        thresholds fitted per model. Chunks must then begin with a frame.
      rotary: the model's embedding, to compare keys at their positions as released; None compares
        them before rotation.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as in the released offline mode, or "contiguous".

    Raises:
      ValueError: if the budget has no slot, or a ratio or the grid is out of range.
    """
    parts, frame = evict.caps("infinipot_v", budget, per_kind, audio_share), grid[0] * grid[1]
    if not (0 <= tar_ratio <= 1 and 0 <= query_ratio <= 1):
        raise ValueError(f"ratios lie between 0 and 1, got {tar_ratio} and {query_ratio}.")
    if min(grid) < 1:
        raise ValueError(f"grid must be (rows, columns) of a frame, got {grid}.")

    def init(spec: Spec) -> State:
        notes, groups = evict.notes(spec, parts), spec.kv_heads
        place = jnp.zeros((budget, groups), jnp.int32)
        slots = Slots(spec.empty(budget, groups), place.astype(jnp.float32), place)
        depth = min(3, spec.layer // max(1, spec.layers // 4))
        zero = jnp.zeros((), jnp.int32)
        return State(slots, Notes(*notes, place=zero, depth=jnp.asarray(depth, jnp.int32)))

    def view(state: State, bank: PyTree, rows: Embeds | None) -> View:
        del bank, rows
        return View(state.slots.tokens, state.aux.next_pos)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        notes, image = state.aux, seen.tokens.modality[:, 0] == tk.VISION
        index = notes.place + jnp.cumsum(image, dtype=jnp.int32) - 1
        norm = jnp.linalg.norm(seen.tokens.v.astype(jnp.float32), axis=-1)
        if pooling:
            norm = scores.smooth_frames(norm.T, image, index, grid, notes.depth).T
        place = jnp.broadcast_to((index % frame)[:, None], norm.shape)
        fresh = Slots(seen.tokens, norm, place)
        pool: Slots = tk.append(state.slots, fresh, tk.count(state.slots.tokens))
        score = pool.norm.T
        if tar_ratio:
            forced, _ = static(pool, notes.quotas[0], frame, tar_ratio, query_ratio, rotary)
            score = scores.protect(score, forced)
        index, keep = evict.choose(score, pool.tokens.modality, notes.quotas, evict.slots_of(state))
        seen_of_frame = (notes.place + jnp.sum(image, dtype=jnp.int32)) % frame
        end = places.keep(seen).astype(notes.next_pos.dtype)
        notes = notes._replace(next_pos=end, place=seen_of_frame)
        return State(evict.take(pool, index, keep), notes), None

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del query
        return view(state, bank, None)

    return places.ruled(Memory(init, view, write, recall, name="infinipot_v"), positions)


def static(
    pool: Slots, cap: Array, frame: int, tar_ratio: float, query_ratio: float, rotary: Rope | None
) -> tuple[Bool[Array, "G N"], Float[Array, "G N"]]:
    """Return which tokens TaR keeps, the newest frames included, and minus the redundancies."""
    image = pool.tokens.modality.T == tk.VISION
    later = jnp.cumsum(image[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
    frames = (later[0, 0] // frame).astype(jnp.float32)
    newest = jnp.floor(frames * query_ratio).astype(jnp.int32) * frame
    recent = image & (later <= newest)
    keys = pool.tokens.k.astype(jnp.float32)  # rotated in float32, too
    if rotary is not None:
        keys = rope(keys, pool.tokens.pos - pool.tokens.pos[:1], rotary)
    tar = -similarity_to_recent(keys, recent, pool.place, places=frame)
    budget = cap - jnp.round((1.0 - tar_ratio) * cap).astype(jnp.int32)  # half to even
    older = jnp.broadcast_to(jnp.maximum(budget - newest, 0), tar.shape[:1])
    return recent | top_mask(scores.only(tar, image & ~recent), older), tar
