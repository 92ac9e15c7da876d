"""Laws that every memory obeys, checked on a made-up stream without a decoder.

Each `check_*` takes a memory that sees one layer and raises AssertionError where the law is broken.
`ALL_MEMORIES` is the table that every test of a law goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.kv import AUDIO, KV, TEXT, VISION
from jaxmem.memory.base import Memory, Spec, State, kv_of
from jaxmem.memory.baselines import Full, LastFrames, RandomSample, Recent, Uniform
from jaxmem.memory.exchange import Chunk, Embeds, Probed, Received
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.rope import Rope

ALL_MEMORIES: dict[str, Callable[[int], Memory]] = {
    "full": Full,
    "recent": lambda budget: Recent(budget, sinks=2),
    "last_frames": LastFrames,
    "uniform": Uniform,
    "random": lambda budget: RandomSample(budget, seed=3),
    "omnimem": lambda budget: OmniMem(budget - budget // 5, text=budget // 5, audio_share=0.25),
}
"""Name -> memory of about `budget` slots per layer."""

BUDGET = 16
HEADS = 4
SPEC = Spec(
    layers=2,
    kv_heads=2,
    head_dim=4,
    width=6,
    axes=3,
    chunk=8,
    rope=Rope((1.0, 0.01), (0, 1)),
    frame=(2, 2),
    audio_tokens=2,
)
CUTS = (8, 5, 8, 1, 0, 7, 8, 3)  # valid rows of the chunks of the standard stream
FRAME = (TEXT, VISION, VISION, VISION, VISION, AUDIO, AUDIO)  # kinds of one frame's tokens


@cache
def memory_of(name: str, budget: int = BUDGET) -> Memory:
    """Return one memory per name and budget, so that jitted functions are shared by the tests."""
    return ALL_MEMORIES[name](budget)


class Stream(NamedTuple):
    """Everything a decoder would report about M tokens in order, or about chunks of them."""

    tokens: KV  # [M], or [C, T] in chunks
    hidden: Any  # [M, E]
    base: Any  # [A] in chunks: position where a chunk begins
    end: Any  # [A] in chunks: position where the next one begins


def stream(length: int, seed: int = 0, spec: Spec = SPEC, kinds: Any = None) -> Stream:
    """Return `length` random tokens; `kinds` defaults to frames of text, vision and audio."""
    rng = np.random.default_rng(seed)
    kinds = np.resize(FRAME, length) if kinds is None else np.asarray(kinds)
    time = np.cumsum((kinds == TEXT) & (np.roll(kinds, 1) != TEXT))
    shape = (length, spec.kv_heads, spec.head_dim)
    pos = np.stack([time] + [np.arange(length)] * (spec.axes - 1), axis=-1)
    tokens = KV(
        k=rng.standard_normal(shape).astype(np.float32),
        v=rng.standard_normal(shape).astype(np.float32),
        pos=pos[:, None].astype(np.int32),
        index=(2 * np.arange(length, dtype=np.int32) + 1)[:, None],  # gaps, as real clocks have
        modality=kinds.astype(np.int8)[:, None],
    )
    hidden = rng.standard_normal((length, spec.width)).astype(np.float32)
    return Stream(tokens, hidden, pos, pos + 1)


def cut(flat: Stream, cuts: Sequence[int], width: int) -> Stream:
    """Cut a stream into chunks of `cuts` valid rows, padded behind to `width` with garbage."""
    assert sum(cuts) <= flat.tokens.modality.shape[0] and max(cuts) <= width
    starts = np.concatenate([[0], np.cumsum(cuts)[:-1]])
    index = starts[:, None] + np.arange(width)[None]
    inside = np.arange(width)[None] < np.asarray(cuts)[:, None]

    def rows(leaf):
        garbage = np.full((), 7, leaf.dtype)
        taken = leaf[np.minimum(index, leaf.shape[0] - 1)]
        return np.where(inside.reshape(inside.shape + (1,) * (leaf.ndim - 1)), taken, garbage)

    tokens = jax.tree.map(rows, flat.tokens)
    tokens = tokens._replace(
        modality=np.where(inside[..., None], tokens.modality, 0).astype(np.int8)
    )
    ends = np.concatenate([np.zeros_like(flat.end[:1]), flat.end]).astype(np.int32)
    return Stream(
        tokens, rows(flat.hidden), ends[starts], ends[starts + np.asarray(cuts, np.int64)]
    )


def standard(seed: int = 0, width: int = 8, cuts: Sequence[int] = CUTS) -> Stream:
    """Return the standard stream, in chunks."""
    return cut(stream(sum(cuts), seed), cuts, width)


def noise(order: jax.Array, salt: jax.Array) -> jax.Array:
    """Return numbers in [0, 1) that depend on (order, salt) alone: exact integer hashing."""
    first, second, third = np.uint32(40503), np.uint32(2654435769), np.uint32(739982445)
    x = (order.astype(jnp.uint32) + salt.astype(jnp.uint32) * first) * second
    x = (x ^ (x >> 15)) * third
    return ((x ^ (x >> 12)) >> 8).astype(jnp.float32) / 2.0**24


def spread(tokens: KV, groups: int) -> KV:
    """Return tokens as a memory of Gm = `groups` stores them: the same ones in every head."""

    def one(x):
        return jnp.broadcast_to(x, (x.shape[0], groups, *x.shape[2:]))

    return tokens._replace(
        pos=one(tokens.pos), index=one(tokens.index), modality=one(tokens.modality)
    )


def of_head(tokens: KV, head: int) -> KV:
    """Return what one KV head holds; everything, where all heads hold the same (Gm = 1)."""
    if tokens.modality.shape[-1] == 1:
        return tokens
    return jax.tree.map(lambda x: x[:, head : head + 1], tokens)


def see(memory: Memory, state: State, chunk: Stream) -> Chunk:
    """Return what the decoder would report of one chunk; masses are noise of the order numbers."""
    requires, tokens = memory.requires, chunk.tokens
    rows = Embeds(chunk.hidden, tokens.pos[:, 0] - chunk.base[None], tokens.modality[:, 0],
                  chunk.end - chunk.base)  # fmt: skip
    held = memory.view(SPEC, state, rows).kv
    tokens = spread(tokens, held.modality.shape[1])
    salt = jnp.sum(chunk.end)

    def received(salt):
        head = 977 * jnp.arange(tokens.modality.shape[1], dtype=jnp.int32)[None]
        one = lambda t: jnp.where(tk.valid(t), noise(t.index + head, salt), 0.0).T
        return Received(one(held), one(tokens))

    scored = tokens.index + 977 * jnp.arange(tokens.index.shape[1], dtype=jnp.int32)[None]
    probed = None
    if requires.probes:
        probed = Probed(jax.tree.map(lambda x: x[None], received(salt + 2)), jnp.ones((1,), int))
    return Chunk(
        kv=tokens,
        next_pos=chunk.end,
        hidden=chunk.hidden if requires.hidden else None,
        received=received(salt) if requires.attention else None,
        given=noise(tokens.index[:, 0], salt + 1) if requires.given else None,
        probed=probed,
        retention=noise(scored, jnp.uint32(7)) if requires.retention else None,
        queries=project(chunk.hidden, HEADS, SPEC.head_dim) if requires.queries else None,
        output=project(np.eye(SPEC.width), HEADS, SPEC.head_dim).transpose(1, 2, 0)
        if requires.output
        else None,
    )


def project(hidden: Any, heads: int, dim: int) -> jax.Array:
    """Return rows [T, E] as heads [T, H, D], by a fixed matrix."""
    matrix = np.random.default_rng(0).standard_normal((hidden.shape[1], heads * dim))
    return (hidden @ jnp.asarray(matrix, jnp.float32)).reshape(-1, heads, dim)


def step(memory: Memory, state: State, chunk: Stream) -> State:
    """Write one chunk."""
    return memory.write(SPEC, state, see(memory, state, chunk))[0]


def scan(memory: Memory, state: State, chunks: Stream) -> tuple[State, KV]:
    """Write chunks one after the other; return the final state and what was held after each."""

    def body(state, chunk):
        state = step(memory, state, chunk)
        return state, kv_of(state.slots)

    return jax.lax.scan(body, state, chunks)


# Tests compile much and run little.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
compiled = partial(jax.jit, compiler_options=FAST_COMPILE)

run = compiled(scan, static_argnums=0)
run_many = compiled(lambda memory, *a: jax.vmap(partial(scan, memory))(*a), static_argnums=0)
"""`scan` over streams side by side."""


def side_by_side(*trees: Any) -> Any:
    """Stack pytrees along a new leading axis."""
    return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)


def pick(tree: Any, i: int) -> Any:
    """Return entry i along the leading axis of every leaf."""
    return jax.tree.map(lambda x: x[i], tree)


@cache
def usual(memory: Memory) -> tuple[State, tuple[State, KV]]:
    """Return the start and `run_many` of the standard streams 0 and 1, shared by most laws."""
    start = memory.init(SPEC)
    chunks = side_by_side(standard(0), standard(1))
    return start, jax.device_get(run_many(memory, side_by_side(start, start), chunks))


def held(tokens: KV) -> np.ndarray:
    """Return the order numbers of the valid slots."""
    tokens = jax.device_get(tokens)
    return tokens.index[:, 0][tokens.modality[:, 0] != 0]


def assert_same(a: Any, b: Any, what: str) -> None:
    """Assert equality of two states: exact on integers, 1e-5 on floats."""

    def one(path, x, y):
        x, y = np.asarray(x), np.asarray(y)
        name = f"{what}: {jax.tree_util.keystr(path)}"
        assert x.shape == y.shape and x.dtype == y.dtype, name
        if np.issubdtype(x.dtype, np.floating):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)

    jax.tree_util.tree_map_with_path(one, a, b)


def check_static_and_ordered(memory: Memory) -> None:
    """Shapes never change; valid slots come first in strictly increasing order, empty ones last."""
    start, (final, trace) = usual(memory)
    shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), tree)
    assert shapes(start) == shapes(pick(final, 0))
    kind, order = trace.modality[0], trace.index[0]
    for c in range(len(CUTS)):
        n = int((kind[c, :, 0] != 0).sum())
        assert (kind[c, :n] != 0).all(), f"hole after chunk {c}"
        assert (kind[c, n:] == 0).all(), f"heads hold different numbers after chunk {c}"
        assert (np.diff(order[c, :n], axis=0) > 0).all(), f"order not increasing after chunk {c}"


def check_subset(memory: Memory) -> None:
    """Kept tokens are written ones, bit by bit, and once dropped a token does not come back."""
    trace = pick(usual(memory)[1][1], 0)
    groups = trace.modality.shape[-1]
    written = spread(stream(sum(CUTS)).tokens, groups)
    for head in range(groups):
        one = [of_head(pick(trace, c), head) for c in range(len(CUTS))]
        _check_subset(jax.device_get(of_head(written, head)), one)


def _check_subset(flat: KV, trace: Sequence[KV]) -> None:
    gone: set[int] = set()
    before: set[int] = set()
    for c, seen in enumerate(np.cumsum(CUTS)):
        tokens = trace[c]
        n = len(held(tokens))
        source = (held(tokens) - 1) // 2
        assert n and source.max() < seen
        for name in KV._fields:
            kept, written = getattr(tokens, name)[:n], getattr(flat, name)[source]
            np.testing.assert_array_equal(kept, written, err_msg=f"{name} after chunk {c}")
        now = set(source.tolist())
        assert not now & gone, f"chunk {c}: tokens came back"
        gone |= before - now
        before = now


def check_scan_vmap_and_loop(memory: Memory) -> None:
    """Streams side by side in a scan equal Python loops over each, which compile their step once.

    An old state stays usable: another stream that branches off does not disturb the first one.
    """
    traces = 0

    def counted(state, chunk):
        nonlocal traces
        traces += 1
        return step(memory, state, chunk)

    one = compiled(counted)
    start, (final, _) = usual(memory)
    states = [start]
    for b in (1, 0):
        chunks = standard(seed=b)
        states = [start]
        for c in range(len(CUTS)):
            states.append(one(states[-1], pick(chunks, c)))
        assert_same(pick(final, b), states[-1], f"stream {b}")
    assert traces == 1, f"the step compiled {traces} times"

    before = jax.device_get(states[1])
    other = one(states[1], pick(standard(seed=1), 1))
    assert_same(jax.device_get(states[1]), before, "old state")
    assert_same(one(states[1], pick(standard(), 1)), states[2], "branch")
    assert not np.array_equal(kv_of(other.slots).k, kv_of(states[2].slots).k)


def check_padding_and_room(memory: Memory, extra: int = 5) -> None:
    """More padding behind a chunk changes nothing, and neither do arrays longer than `room`.

    Windows of a flat pool are longer than a layer's own room; slots beyond it stay empty.
    """
    start, (short, _) = usual(memory)
    assert int(start.aux.capacity) <= kv_of(start.slots).modality.shape[0]
    lengthen = lambda x: np.concatenate([x, np.zeros((extra, *x.shape[1:]), x.dtype)])
    longer = start._replace(slots=jax.tree.map(lengthen, start.slots))
    long, trace = jax.device_get(run(memory, longer, standard(width=11)))
    count = np.sum(trace.modality[..., 0] != 0, axis=1).max()
    assert count <= int(start.aux.capacity), f"{count} slots filled of {int(start.aux.capacity)}"
    cropped = jax.tree.map(lambda x: x[:-extra], long.slots)
    assert_same(long._replace(slots=cropped), pick(short, 0), "padding or longer arrays")
    for leaf in jax.tree.leaves(jax.tree.map(lambda x: x[-extra:], long.slots)):
        assert not leaf.any(), "a slot beyond the room was filled"


def check_ample_budget(memory: Memory) -> None:
    """While the stream is no longer than the room, everything is kept as it came."""
    flat = stream(sum(CUTS))
    start, (_, trace) = usual(memory)
    ample = [c for c, seen in enumerate(np.cumsum(CUTS)) if seen <= int(start.aux.capacity)]
    assert ample, f"a room of {int(start.aux.capacity)} tests nothing"
    for c in ample:
        seen = sum(CUTS[: c + 1])
        tokens = pick(pick(trace, 0), c)
        assert len(held(tokens)) == seen
        same = lambda kept, written, n=seen: np.testing.assert_array_equal(kept[:n], written[:n])
        jax.tree.map(same, tokens, spread(flat.tokens, tokens.modality.shape[1]))


def check_view(memory: Memory) -> None:
    """The next chunk begins behind the last, and a question reads without changing the state."""
    start, (final, _) = usual(memory)
    final = pick(final, 0)
    row = Embeds(
        x=jnp.zeros((1, SPEC.width)),
        pos=jnp.zeros((1, SPEC.axes), SPEC.pos_dtype),
        modality=jnp.full((1,), TEXT, jnp.int8),
        advance=jnp.ones((SPEC.axes,), SPEC.pos_dtype),
    )
    assert memory.view(SPEC, start, row).base.dtype == SPEC.pos_dtype
    np.testing.assert_array_equal(memory.view(SPEC, final, row).base, standard().end[-1])
    before = jax.tree.map(np.copy, final)
    if memory.requires.question is None:
        assert_same(memory.recall(SPEC, final, None).kv, kv_of(final.slots), "recall")
    assert_same(final, before, "state after a question")


LAWS: dict[str, Callable[[Memory], None]] = {
    "static_and_ordered": check_static_and_ordered,
    "subset": check_subset,
    "scan_vmap_and_loop": check_scan_vmap_and_loop,
    "padding_and_room": check_padding_and_room,
    "ample_budget": check_ample_budget,
    "view": check_view,
}
