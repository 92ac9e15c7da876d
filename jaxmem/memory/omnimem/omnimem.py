"""OmniMem (arXiv 2606.07577): keep what is attended to and what its neighbours do not repeat.

After every chunk the pool (memory, then chunk) of a layer is scored by the attention it received
from the chunk's queries and by its dissimilarity to the two neighbours in the pool,

    score = a^lam * max(1 - s, 0)^power,

and audio and visual tokens compete inside their own kind, under caps of their own per layer. Text
is always kept, up to a static cap. Positions are never changed.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kernels.select import select
from jaxmem.kernels.similarity import neighbour_cosine, unit
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Memory, Requires, Spec, State, View
from jaxmem.memory.omnimem import budgets
from jaxmem.memory.omnimem.sign_sketch import project
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scores
from jaxmem.typing import Array, Bool, Float, Int, Num

RATIO = 5.0
"""Visual to audio slots of the released tables."""


class Slots(NamedTuple):
    """What a slot holds: the token, the attention it has received, and its direction."""

    tokens: KV
    imp: Float[Array, "S"]  # float32, importance after the last chunk
    unit: Float[Array, "S U"]  # unit layer input, or its sketch


class Notes(NamedTuple):
    """One layer's numbers; caps are data, so that layers with different budgets share code."""

    capacity: Int[Array, ""]  # slots that may be filled: the sum of caps
    next_pos: Num[Array, "A"]  # where the next chunk begins
    quotas: Int[Array, "C"]  # (text, audio, visual), or (text, audio and visual)
    dropped: Int[Array, ""]  # text tokens dropped so far


class Pool(NamedTuple):
    """Memory and chunk, dense, with what selection knows about them."""

    slots: Slots  # [N], memory first
    modality: Int[Array, "N"]
    redundancy: Float[Array, "N"]  # mean cosine with the previous and the next pool entry
    importance: Float[Array, "N"] | None  # None: the memory reads no attention


def omnimem(
    budget: int | budgets.Table,
    *,
    audio_share: float = budgets.share_of_ratio(RATIO),
    joint: bool = False,
    text: int | None = None,
    importance: Literal["mean_logit", "exact"] = "mean_logit",
    lam: float = 0.02,
    power: float = 0.5,
    carry: float = 0.5,
    form: Literal["product", "sum"] = "product",
    global_factor: float = 0.0,
    sketch: int | None = 128,
    unit_dtype: Any = None,
    positions: places.Rule = "keep",
) -> Memory:
    """Return OmniMem; the defaults are those of the released code.

    Args:
      budget: slots per layer for audio and vision together, or a budget table (see
        `jaxmem.memory.omnimem.budgets`, `jaxmem.memory.omnimem.avba`).
      audio_share: audio's part of an int budget; 1/6 is the released prior of five visual slots
        for an audio slot. Where audio matters as much as vision, use 0.5.
      joint: audio and vision compete for one cap.
      text: slots for text tokens (the newest win); None gives a third of the average budget, at
        least 8, which holds the 257 timestamps of 10 tokens of the released setting.
      importance: softmax of head-averaged logits (released default), or the mean over heads of
        the exact attention weights, divided by the number of queries.
      lam: exponent of importance (weight, if form is "sum"); 0 = redundancy alone, and then no
        attention statistics are computed.
      power: exponent of 1 - s; 0.5 as released, 1 as published.
      carry: weight of the stored importance when a memory token is seen again.
      form: a^lam (1 - s)^power, or the additive variant lam a / sum(a) - 2 s.
      global_factor: adds this times the block redundancy (`scores.block_redundancy`) to 2 s.
      sketch: numbers per redundancy vector; wider layer inputs are projected to so many, narrower
        ones are stored whole. None always stores the whole layer input.
      unit_dtype: of the stored redundancy vectors; None takes the dtype of keys and values.
      positions: "keep" the position of arrival, or renumber ("contiguous").

    Summary tokens of other memories compete as vision.

    Raises:
      ValueError: if an option is unknown or out of range.
    """
    if importance not in ("mean_logit", "exact"):
        raise ValueError(f"importance must be 'mean_logit' or 'exact', got {importance!r}.")
    if form not in ("product", "sum"):
        raise ValueError(f"form must be 'product' or 'sum', got {form!r}.")
    if not 0.0 <= carry <= 1.0:
        raise ValueError(f"carry is the weight of an average, between 0 and 1, got {carry}.")
    if lam < 0 or power <= 0:
        raise ValueError(f"lam must be >= 0 and power > 0, got lam={lam}, power={power}.")
    if sketch is not None and (sketch < 1 or sketch % 32):
        raise ValueError(f"sketch must be a multiple of 32 numbers, or None, got {sketch}.")

    def init(spec: Spec) -> State:
        table = budgets.resolve(budget, spec.layers, audio_share=audio_share, joint=joint)
        mean = int(table.sum()) // spec.layers
        kept_text = max(8, mean // 3) if text is None else text
        mine = table[spec.layer].reshape(-1)
        room = kept_text + int(mine.sum())
        if kept_text < 0 or room < 1:
            raise ValueError(
                f"layer {spec.layer} has {kept_text} text slots and caps {mine.tolist()}: a layer "
                "needs at least one slot."
            )
        width = spec.width if sketch is None else min(sketch, spec.width)
        slots = Slots(
            tokens=spec.empty(room),
            imp=jnp.zeros((room,), jnp.float32),
            unit=jnp.zeros((room, width), spec.dtype if unit_dtype is None else unit_dtype),
        )
        notes = Notes(
            capacity=jnp.asarray(room, jnp.int32),
            next_pos=places.start(spec),
            quotas=jnp.asarray([kept_text, *mine.tolist()], jnp.int32),
            dropped=jnp.zeros((), jnp.int32),
        )
        return State(slots, notes)

    def view(state: State, bank: Any, rows: Any) -> View:
        del bank, rows
        return View(state.slots.tokens, state.aux.next_pos)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        pool = gather(state.slots, seen, carry=carry, exact=importance == "exact")
        s = pool.redundancy
        if global_factor:
            vectors = unit(pool.slots.unit.astype(jnp.float32))
            s = s + 0.5 * global_factor * scores.block_redundancy(vectors)
        if form == "product":
            score = scores.product(pool.importance, s, lam, power)
        else:
            score = scores.additive(pool.importance, s, lam)
        notes = state.aux
        ranked = compete(score, pool.modality, groups=notes.quotas.shape[0])
        index, keep = select(ranked, notes.quotas, slots=state.slots.imp.shape[0])
        texts = jnp.sum(pool.modality == tk.TEXT, dtype=jnp.int32)
        notes = notes._replace(
            next_pos=places.keep(seen),
            dropped=notes.dropped + jnp.maximum(texts - notes.quotas[0], 0),
        )
        return State(tk.take(pool.slots, index, keep), notes), None

    def recall(state: State, bank: Any, query: Any) -> View:
        del bank, query
        return View(state.slots.tokens, state.aux.next_pos)

    mass = "mean_logit" if importance == "mean_logit" else "softmax"
    reads = Requires(hidden=True, mass=mass if lam > 0 else None)
    memory = Memory(init, view, write, recall, reads, scope="layer", name="omnimem")
    return places.ruled(memory, positions)


def gather(slots: Slots, seen: Chunk, *, carry: float = 0.5, exact: bool = False) -> Pool:
    """Return the dense pool of a layer with its redundancy and importance, before eviction.

    Args:
      slots: the memory [S], valid slots first.
      seen: the chunk [T]; `hidden` is needed, `mass` gives importance.
      carry: see `scores.carry_over`.
      exact: the mass is divided by the number of valid queries.
    """
    n = tk.count(slots.tokens)
    fresh_kind = seen.tokens.modality[:, 0]
    rows = jnp.sum(fresh_kind != tk.EMPTY, dtype=jnp.int32)
    direction = _direction(seen.hidden, fresh_kind != tk.EMPTY, slots.unit.shape[1])
    fresh = Slots(seen.tokens, jnp.zeros(fresh_kind.shape, jnp.float32), direction)
    pool = tk.append(slots, fresh, n)
    # Vectors stored in fewer bits are rounded; their lengths are taken out again.
    s = neighbour_cosine(pool.unit, n + rows, lengths=pool.unit.dtype != jnp.float32)

    imp = None
    if seen.mass is not None:
        new = tk.append(seen.mass.memory[0], seen.mass.chunk[0], n)
        if exact:
            new = new / jnp.maximum(rows, 1).astype(jnp.float32)
        imp = jax.lax.stop_gradient(scores.carry_over(new, pool.imp, n, rows, carry))
        pool = pool._replace(imp=imp)
    return Pool(pool, pool.tokens.modality[:, 0], jax.lax.stop_gradient(s), imp)


def _direction(
    hidden: Float[Array, "T E"] | None, real: Bool[Array, "T"], width: int
) -> Float[Array, "T U"]:
    """Return the unit layer inputs, sketched to `width` numbers; zero for padding."""
    if hidden is None:
        raise ValueError(
            "OmniMem compares layer inputs but Chunk.hidden is None; the decoder step must honour "
            "requires.hidden."
        )
    vectors = jax.lax.stop_gradient(hidden).astype(jnp.float32)
    if width < hidden.shape[1]:
        vectors = project(vectors, width)
    return jnp.where(real[:, None], unit(vectors), 0.0)


def compete(score: Float[Array, "N"], kind: Int[Array, "N"], *, groups: int) -> Float[Array, "C N"]:
    """Return one row of scores per competition: text (the newest win), audio, vision.

    With two groups audio and vision compete in one.
    """
    text, audio = kind == tk.TEXT, kind == tk.AUDIO
    vision = (kind == tk.VISION) | (kind == tk.SUMMARY)
    members = [audio, vision] if groups == 3 else [audio | vision]
    rows = [scores.only(scores.newest(kind.shape[0]), text)]
    return jnp.stack(rows + [scores.only(score, group) for group in members])
