"""FlexMem (arXiv 2603.29252, CVPR 2026): a short memory to watch with, a long one to answer from.

A chunk is a clip. From the attention of its own pass every layer keeps two subsets of it: a small
*context memory* that the next clips see, and a larger *local memory* that goes to the bank. A
question is answered from the local memories of the few clips that are most relevant to it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Requires, Spec, State, View
from jaxmem.memory.flexmem import clips
from jaxmem.memory.flexmem import memindex as relevance
from jaxmem.memory.flexmem.clips import Ledger
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.memory.parts import positions as places
from jaxmem.typing import Array, Float, Int, Num, PyTree


class Notes(NamedTuple):
    """What is not context memory; N clips fit into the bank."""

    capacity: Int[Array, "L"]
    start: Num[Array, "A"]  # where positions begin, behind the prefix
    next_pos: Num[Array, "A"]  # where the next clip begins, if positions are kept
    recent: Int[Array, "window"]  # context tokens of the last clips, the newest last
    book: Ledger  # where the clips' local memories lie in the bank
    relevance: Float[Array, "N"]  # g, of a question that is known while watching; else 0
    keys: Float[Array, "N K k G D"] | None = None  # of the MemIndex, before rotation


def flexmem(
    clip: int = 1680,
    *,
    window: int = 12,
    context_ratio: int = 4,
    local_ratio: int = 2,
    topk: int = 16,
    long_term: bool | None = None,
    reader: Literal["encoding", "memindex"] = "encoding",
    index: MemIndex | None = None,
    shallow: int = 3,
    history: Literal["all", "context"] = "all",
    per_kind: bool = True,
    positions: places.Rule = "contiguous",
) -> Memory:
    """Return FlexMem; the defaults are those of the released standard profile (not in the paper).

    `Spec.bank` holds the local memories: N = Spec.bank // (clip // local_ratio) clips; later ones
    are seen as context but cannot be recalled. The released "fast" profile is `local_ratio=4,
    topk=32, reader="memindex", index=MemIndex(rope)`.

    With reader "encoding" the question is a probe of the stream (`probes=`, exactly one), which
    must be known while watching. With "memindex" it is asked afterwards.

    Args:
      clip: n_v, rows of a full clip; at least `Spec.chunk`.
      window: B, clips whose context memory is held.
      context_ratio: 1 / alpha_c: a clip of n rows keeps floor(n / ratio) of them as context.
      local_ratio: 1 / alpha_s, likewise of its local memory.
      topk: n_a, clips recalled for an answer.
      long_term: from clip B + 1 on, see the newest B // 2 contexts and, in the place of the others,
        the local memories M_l of the most relevant older clips. None: if the reader is "encoding".
      reader: what a clip's relevance is: the mass that the question's rows give it in its own pass
        (equation 9), or what `index` says.
      index: keys kept for MemIndex; with reader "encoding" they are kept to fit its layers.
      shallow: the first layers take evenly spaced rows and have no say in relevance; 3 as
        released, 0 scores everywhere.
      history: what the row mass of equation 7 is summed over: context and M_l ("all", released),
        or context only ("context", published).
      per_kind: audio keeps its own part of a clip; False as published.
      positions: every pass numbers what it sees without gaps as released ("contiguous"), or tokens
        "keep" theirs.

    Raises:
      ValueError: if a size is not positive, options exclude each other, or, when the stream begins,
        the sizes do not fit the model.
    """
    context_slots, local_slots = clip // max(context_ratio, 1), clip // max(local_ratio, 1)
    if min(window, context_ratio, local_ratio, topk, context_slots, local_slots) < 1 or shallow < 0:
        raise ValueError(
            "flexmem needs positive sizes, and clips of which a token is kept; got clip="
            f"{clip}, window={window}, context_ratio={context_ratio}, local_ratio={local_ratio}, "
            f"topk={topk}, shallow={shallow}."
        )
    _check_options(reader, index, long_term, history, positions)
    ask, half, longs = reader == "memindex", window // 2, 0
    if (not ask) if long_term is None else long_term:
        longs = (window - half) * context_slots // local_slots
        if not longs:
            raise ValueError(
                f"{window - half} contexts of {context_slots} tokens leave no room for a local "
                f"memory of {local_slots}: raise window, or set long_term=False."
            )
    held_slots = window * context_slots
    view_slots = max(held_slots, half * context_slots + longs * local_slots)

    def init(spec: Spec) -> State:
        _check_spec(spec, clip, 0 if ask else shallow)
        n, keys = max(1, spec.bank // local_slots), None
        if index is not None:
            relevance.check(index, spec.layers)
            shape = (n, len(index.layers), index.keys, spec.kv_heads, spec.head_dim)
            keys = jnp.zeros(shape, spec.dtype)
        notes = Notes(
            capacity=jnp.full((spec.layers,), held_slots, jnp.int32),
            start=places.start(spec),
            next_pos=places.start(spec),
            recent=jnp.zeros((window,), jnp.int32),
            book=clips.ledger(n),
            relevance=jnp.zeros((n,), jnp.float32),
            keys=keys,
        )
        return State(_of_all(spec.empty(held_slots), spec.layers), notes)

    def place(tokens: KV, notes: Notes) -> View:
        if positions == "contiguous":
            return View(*jax.vmap(places.numbered, in_axes=(0, None))(tokens, notes.start))
        return View(tokens, _of_all(notes.next_pos, tokens.modality.shape[0]))

    def view(state: State, bank: Bank | None, rows: Embeds) -> View:
        del rows
        held, notes, stored = state.slots, state.aux, _need(bank).slots
        if not longs:
            return place(held, notes)
        # The released code changes its schedule one clip after the window is full.
        late = notes.book.count > window
        older = jnp.clip(notes.book.count - half, 0, notes.book.capacity)
        best, keep = blocks.best(notes.relevance, older, longs, 1)
        long = clips.read(stored, notes.book, best, keep & late, longs * local_slots)
        n, far = (jax.vmap(tk.count)(part)[0] for part in (held, long))
        newest = jnp.where(late, jnp.sum(notes.recent[window - half :]), n)
        near = clips.stretch(held, n - newest, newest)
        pool = jax.vmap(tk.append, in_axes=(0, 0, None))(long, near, far)
        seen = place(jax.tree.map(lambda x: x[:, :view_slots], pool), notes)
        if history == "context":
            counted = jnp.arange(view_slots, dtype=jnp.int32) >= far
            seen = seen._replace(counted=_of_all(counted, held.modality.shape[0]))
        return seen

    def write(state: State, seen: Chunk) -> tuple[State, KV]:
        notes, kind = state.aux, seen.tokens.modality[0, :, 0]
        n = jnp.sum(kind != tk.EMPTY, dtype=jnp.int32)
        even = np.arange(seen.tokens.modality.shape[0]) < shallow
        received, aggregated = pathways(seen)
        local_caps, caps = (clips.shares(kind, r, per_kind) for r in (local_ratio, context_ratio))
        local = clips.picks(received, even, kind, local_caps, local_slots)
        context = clips.picks(aggregated, even, kind, caps, context_slots)
        gone = jnp.where(n > 0, notes.recent[0], 0)

        def layer(item: tuple) -> tuple[KV, KV]:
            held, fresh, local, context = item
            pool = tk.append(held, tk.take(fresh, *context), tk.count(held))
            row = jnp.arange(held_slots, dtype=jnp.int32) + gone
            return tk.take(pool, row, row < tk.count(pool)), tk.take(fresh, *local)

        # One layer at a time: all pools side by side would be several copies of the memory.
        held, spill = jax.lax.map(layer, (state.slots, seen.tokens, local, context))
        newer = jnp.concatenate([notes.recent[1:], jnp.sum(caps)[None]])
        after = notes._replace(
            next_pos=seen.next_pos[0].astype(notes.next_pos.dtype)
            if positions == "keep"
            else notes.next_pos,
            recent=jnp.where(n > 0, newer, notes.recent),
            book=notes.book.record(jnp.sum(local_caps), n),
        )
        if not ask:
            g = relevance.of_probe(seen, shallow)
            after = after._replace(relevance=notes.book.put(notes.relevance, g, n))
        if index is not None and notes.keys is not None:
            read, cap = np.asarray(index.layers), jnp.minimum(n, index.keys)[None]
            best = clips.picks(received[read], even[read], kind, cap, index.keys)
            keys = jax.vmap(tk.take)(seen.tokens.k[read], *best)
            after = after._replace(keys=notes.book.put(notes.keys, keys, n))
        return State(held, after), spill

    def recall(state: State, bank: Bank | None, query: Question | None) -> View:
        notes, stored, score = state.aux, _need(bank).slots, state.aux.relevance
        if ask:
            assert index is not None and notes.keys is not None and query is not None
            many = jnp.minimum(notes.book.rows, index.keys)
            score = relevance.scores(index, notes.keys, many, query)
        there, most = jnp.minimum(notes.book.count, score.shape[0]), min(topk, score.shape[0])
        best, keep = blocks.best(score, there, most, 1)
        return place(clips.read(stored, notes.book, best, keep, most * local_slots), notes)

    probe, asks = (None, "pass") if ask else ("causal", None)
    reads = Requires(mass="softmax", rows=True, probe=probe, ask=asks)
    spill = lambda spec: spec.empty(local_slots)
    return Memory(init, view, write, recall, reads, "stack", "flexmem", spill)


def _of_all(tree: PyTree, layers: int) -> PyTree:
    """Return the same for every layer."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (layers, *x.shape)), tree)


def pathways(seen: Chunk) -> tuple[Float[Array, "L T"], Float[Array, "L T"]]:
    """Return the scores for local memory (equation 8) and context memory (equation 7).

    s_hat_j: what token j receives from the clip's rows, mean over heads. s_j: that, and what row j
    gives to the history. Early rows of a clip are seen by more rows; nothing corrects for it.
    """
    if seen.mass is None or seen.rows is None:
        raise ValueError("flexmem scores by attention mass; pass its chunks through a decoder.")
    received = seen.mass.chunk[:, 0]
    return received, seen.rows + received


def _need(bank: Bank | None) -> Bank:
    if bank is None:
        raise ValueError(
            "flexmem answers from a bank: set Spec.bank to clips * (clip // local_ratio)."
        )
    return bank


def _check_options(
    reader: str, index: MemIndex | None, long_term: bool | None, history: str, positions: str
) -> None:
    for name, value, known in (
        ("reader", reader, ("encoding", "memindex")),
        ("history", history, ("all", "context")),
        ("positions", positions, ("keep", "contiguous")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    if index is not None:
        relevance.check(index)
    if reader == "memindex" and (index is None or long_term):
        raise ValueError(
            'reader "memindex" needs index=MemIndex(rope), rope the model\'s, and cannot read '
            "long_term memories while watching: no question is known then. Got "
            f"index={index!r}, long_term={long_term!r}."
        )


def _check_spec(spec: Spec, clip: int, silent: int) -> None:
    if spec.chunk > clip or silent >= spec.layers:
        raise ValueError(
            f"a chunk is a clip, of at most clip={clip} rows, and a layer behind the first "
            f"{silent} must measure relevance; the model has chunks of {spec.chunk} and "
            f"{spec.layers} layers. Raise clip, or lower shallow."
        )
