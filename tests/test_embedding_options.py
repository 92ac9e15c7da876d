"""One block of another decoder: logits and positions, streams side by side and without an end."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.memory.bank.epochs import EDGE, STEP

HEADS, KV_HEADS, D, SIZE = 4, 2, 8, 8
LENGTHS = (8, 5, 7)
ASKED = 4
SPEC = jm.Spec(layers=1, kv_heads=KV_HEADS, head_dim=D, width=6, chunk=SIZE, rope=jm.rope_1d(D))


@dataclass(frozen=True)
class Theirs:
    """How a decoder attends: one pass over all rows, written as its authors would."""

    rope: jm.Rope
    scale: float = D**-0.5
    cap: float | None = None
    turned: int = D  # channels that are rotated, in pairs (i, i + turned / 2)
    factor: float = 1.0  # of rotated queries and keys

    def __call__(self, q, k, v):
        n = len(q)
        freq = np.asarray(self.rope.inv_freq[: self.turned // 2])
        angle = np.arange(n)[:, None, None] * freq[None, None]
        q, k = self._rotate(q, angle), np.repeat(self._rotate(k, angle), HEADS // KV_HEADS, 1)
        z = np.einsum("qhd,khd->hqk", q, k) * self.scale
        z = z if self.cap is None else self.cap * np.tanh(z / self.cap)
        a = np.exp(z) * np.tril(np.ones((n, n)))[None]
        a = a / a.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", a, np.repeat(v, HEADS // KV_HEADS, 1))

    def _rotate(self, x, angle):
        turned, rest = x[..., : self.turned], x[..., self.turned :]
        first, second = np.split(turned, 2, -1)
        cos, sin = np.cos(angle) * self.factor, np.sin(angle) * self.factor
        turned = [first * cos - second * sin, second * cos + first * sin]
        return np.concatenate([*turned, rest * self.factor], -1)


def paired(x):
    """Move channels so that pairs (i, i + 2) of the first four become pairs (i, i + D/2)."""
    return x[..., [0, 1, 4, 5, 2, 3, 6, 7]]


PLAIN = jm.rope_1d(D, 100.0)
YARN = jm.yarn(PLAIN, 4.0, theta=100.0, original=64)
HALF = jm.rope_1d(D, 100.0, fraction=0.5)
same = lambda x: x
DECODERS = {
    "plain": (PLAIN, same, Theirs(PLAIN)),
    "not scaled": (replace(PLAIN, scale=1.0), same, Theirs(PLAIN, scale=1.0)),
    "soft cap": (replace(PLAIN, softcap=0.7), same, Theirs(PLAIN, cap=0.7)),
    "scale and soft cap": (
        replace(PLAIN, scale=0.5, softcap=0.7),
        same,
        Theirs(PLAIN, scale=0.5, cap=0.7),
    ),
    "partial rotary": (HALF, paired, Theirs(HALF, turned=4)),
    "yarn": (YARN, same, Theirs(YARN, factor=YARN.attention_factor)),
}


def projections(rows, seed=0):
    rng = np.random.default_rng(seed)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return [2 * rng.normal(size=(rows, n, D)).astype(np.float32) for n in heads]


def padded(x):
    return jnp.asarray(np.pad(x, [(0, SIZE - len(x))] + [(0, 0)] * (x.ndim - 1)))


def chunks(projected, lengths=LENGTHS):
    """Cut projections into padded chunks [K, SIZE, ...], with their rows."""
    ends = np.cumsum(lengths)[:-1]
    qkv = [jnp.stack([padded(part) for part in np.split(x, ends)]) for x in projected]
    modality = jnp.stack([padded(np.full(n, jm.Modality.VISION, np.int8)) for n in lengths])
    return *qkv, jax.vmap(lambda m: jm.embeds(jnp.zeros((SIZE, SPEC.width)), m))(modality)


@partial(jax.jit, static_argnums=(0, 1))
def stream(memory, spec, state, clock, parts, prefix=None):
    """Return the outputs of all chunks [K, SIZE, H, D], the state and the clock after them."""

    def step(held, part):
        *qkv, rows = part
        y, state = jm.attend(
            memory, spec, held[0], *qkv, rows, held[1], hidden=rows.x, prefix=prefix
        )
        return jm.tick(state, held[1], rows), y

    held, ys = jax.lax.scan(step, (state, clock), parts)
    return ys, *held


def real(ys, lengths=LENGTHS):
    return np.concatenate([np.asarray(y[:n]) for y, n in zip(ys, lengths, strict=True)])


@pytest.mark.parametrize(
    ("name", "where"), [*[(name, "spec") for name in DECODERS], ("scale and soft cap", "argument")]
)
def test_attention_is_that_of_the_other_decoder(name, where):
    """With room for everything a chunk and a question see all that came before."""
    rope, order, theirs = DECODERS[name]
    n = sum(LENGTHS)
    q, k, v = projections(n + ASKED)
    want = theirs(q, k, v)
    q, k = order(q), order(k)
    memory, spec = jm.Full(n), replace(SPEC, rope=rope if where == "spec" else None)
    more = {} if where == "spec" else {"rope": rope}
    state, got, clock = memory.init(spec), [], 0
    for *qkv, rows in zip(*chunks([x[:n] for x in (q, k, v)])[:3], _rows(), strict=True):
        y, state = jm.attend(memory, spec, state, *qkv, rows, clock, **more)
        state, clock = jm.tick(state, clock, rows)
        got.append(y)
    np.testing.assert_allclose(real(got), want[:n], atol=2e-5)
    question = jm.embeds(jnp.zeros((ASKED, SPEC.width)), jm.Modality.TEXT)
    last = [jnp.asarray(x[n:]) for x in (q, k, v)]
    y = jm.attend_question(memory, spec, state, *last, question, **more)
    np.testing.assert_allclose(y, want[n:], atol=2e-5)


def _rows():
    rows = chunks(projections(sum(LENGTHS)))[3]
    return [jax.tree.map(lambda x, i=i: x[i], rows) for i in range(len(LENGTHS))]


def test_memories_measure_attention_as_the_decoder_attends():
    """Attention that H2O is told: with a scale of 0 all tokens have the same, with another not."""
    memory, kept = jm.H2O(9), {}
    for scale in (0.0, 4.0):
        spec = replace(SPEC, rope=replace(PLAIN, scale=scale))
        parts = chunks(projections(sum(LENGTHS)))
        _, state, _ = stream(memory, spec, memory.init(spec), jnp.int32(0), parts)
        kept[scale] = np.asarray(memory.kv(state).index).T.tolist()
    assert kept[0.0] != kept[4.0]


def test_pinned_tokens_are_seen_by_chunks_and_questions():
    pinned, n = 3, sum(LENGTHS)
    q, k, v = projections(pinned + n + ASKED)
    want = Theirs(SPEC.rope)(q, k, v)
    place = jnp.arange(pinned, dtype=jnp.int32)[:, None]
    kind = jnp.full((pinned, 1), jm.Modality.TEXT, jnp.int8)
    prefix = jm.KV(jnp.asarray(k[:pinned]), jnp.asarray(v[:pinned]), place[..., None], place, kind)
    memory, spec = jm.Full(n), replace(SPEC, prefix=pinned)
    parts = chunks([x[pinned : pinned + n] for x in (q, k, v)])
    ys, state, _ = stream(memory, spec, memory.init(spec), jnp.int32(0), parts, prefix)
    np.testing.assert_allclose(real(ys), want[pinned : pinned + n], atol=2e-5)
    question = jm.embeds(jnp.zeros((ASKED, SPEC.width)), jm.Modality.TEXT)
    last = [jnp.asarray(x[pinned + n :]) for x in (q, k, v)]
    y = jm.attend_question(memory, spec, state, *last, question, prefix=prefix)
    np.testing.assert_allclose(y, want[pinned + n :], atol=2e-5)


@pytest.mark.parametrize("memory", [jm.OmniMem(10), jm.H2O(10)], ids=lambda memory: memory.name)
def test_streams_side_by_side(memory):
    """Three streams, with padding of their own, are each what it is alone."""
    several = [LENGTHS, LENGTHS[::-1], (8, 0, 8)]
    parts = [chunks(projections(sum(n), seed), n) for seed, n in enumerate(several)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    start = (memory.init(SPEC), jnp.int32(0))
    ys, states, clocks = jax.vmap(lambda p: stream(memory, SPEC, *start, p))(together)
    for i, one in enumerate(parts):
        y, state, clock = stream(memory, SPEC, *start, one)
        np.testing.assert_allclose(real(ys[i], several[i]), real(y, several[i]), atol=1e-5)
        kept = [memory.kv(s).index for s in (jax.tree.map(lambda x, i=i: x[i], states), state)]
        np.testing.assert_array_equal(*kept)
        assert clocks[i] == clock


CHUNKS = 20


def order(kv):
    """Return the slots by arrival, empty ones last."""
    index = np.where(kv.modality != 0, kv.index, np.iinfo(np.int32).max)
    return np.argsort(index, axis=0, stable=True)


@pytest.mark.parametrize(
    "memory", [jm.OmniMem(10, text=2), jm.Recent(8, sinks=2), jm.H2O(10)], ids=lambda m: m.name
)
def test_a_stream_of_more_than_2_to_the_33_tokens(memory):
    """Before every chunk the clock is at its edge, as if others had come between."""
    lengths = tuple(LENGTHS[i % 3] for i in range(CHUNKS))
    parts = chunks(projections(sum(lengths), 3), lengths)
    near, far = (memory.init(SPEC), jnp.int32(0)), (memory.init(SPEC), jnp.int32(EDGE - 2))
    gone = 0
    for i in range(CHUNKS):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], parts)
        y, *near = stream(memory, SPEC, *near, part)
        same, *far = stream(memory, SPEC, *far, part)
        np.testing.assert_array_equal(real(same, lengths[i : i + 1]), real(y, lengths[i : i + 1]))
        np.testing.assert_array_equal(*(order(memory.kv(state)) for state, _ in (near, far)))
        assert 0 < far[1] < EDGE and memory.kv(far[0]).index.max() < far[1]
        gone += EDGE - 2 - int(far[1])
        far[1] = jnp.int32(EDGE - 2)
    assert gone > 2**33 and near[1] < 2**9
    np.testing.assert_array_equal(memory.kv(near[0]).k, memory.kv(far[0]).k)


@jax.jit
def banked(state, bank, clock, part):
    """Return the state, the bank and the clock after a chunk, and what a question then reads."""
    *qkv, rows = part
    _, state, bank = jm.attend(BANKED, SPEC, state, *qkv, rows, clock, bank=bank)
    state, clock = jm.tick(state, clock, rows)
    return state, bank, clock, jm.attend_question(BANKED, SPEC, state, *qkv, rows, bank=bank)


BANKED = jm.WithBank(jm.Recent(8, sinks=2), 40, block=4, topk=3, reindex=True, space="device")


def test_what_is_read_of_a_bank_stays_in_order_when_the_clock_moves():
    parts = chunks(projections(8 * 12), (8,) * 12)
    near = far = (BANKED.init(SPEC), jm.init_bank(BANKED, SPEC), jnp.int32(0))
    for i in range(12):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        *near, y = banked(*near, part)
        if i in (1, 5, 9):
            far[2] = jnp.int32(EDGE - 2)
        *far, same = banked(*far, part)
        np.testing.assert_array_equal(y, same)
    assert near[1].count == 40 and (far[0].aux.table.epoch == 3).all()


def test_the_clock_counts_tokens_and_one_more_and_leaves_banks_alone():
    rows = _rows()[1]
    state, bank = jm.Recent(4).init(SPEC), jm.init_bank(jm.WithBank(jm.Recent(4), 8, block=4), SPEC)
    bank = bank._replace(slots=jax.tree.map(lambda x: x + 3, bank.slots))
    (state, moved), clock = jm.tick((state, bank), EDGE, rows)
    assert clock == EDGE + LENGTHS[1] + 1 - STEP
    jax.tree.map(np.testing.assert_array_equal, moved, bank)
    empty = rows._replace(modality=jnp.zeros_like(rows.modality))
    assert jm.tick(state, 7, empty)[1] == 7


def call(memory=None, spec=SPEC, rows=5, axes=1, of=lambda q, k, v: (q, k, v), **more):
    memory = jm.Recent(8) if memory is None else memory
    qkv = of(*(jnp.asarray(x) for x in projections(rows)))
    state = memory.init(replace(spec, rope=PLAIN))
    embeds = jm.embeds(jnp.zeros((rows, spec.width)), axes=axes)
    return jm.attend(memory, spec, state, *qkv, embeds, 0, **more)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"memory": jm.OmniMem(8)}, "OmniMem requires hidden: give hidden="),
        ({"memory": jm.CriticalKV(jm.SnapKV(8))}, "requires output: give output="),
        ({"memory": jm.WithBank(jm.Recent(8), 16, block=4)}, "requires bank: give bank="),
        ({"spec": replace(SPEC, rope=None)}, "give rope="),
        ({"spec": replace(SPEC, prefix=2)}, "0 tokens but Spec.prefix is 2"),
        ({"rows": SIZE + 1}, "a chunk has 9 rows but Spec.chunk is 8"),
        ({"axes": 3}, "3 position axes but Spec.axes is 1"),
        ({"of": lambda q, k, v: (q[None], k[None], v[None])}, "jax.vmap"),
        ({"of": lambda q, k, v: (q, q, v)}, r"k is \(5, 4, 8\) .* say \(5, 2, 8\)"),
        ({"of": lambda q, k, v: (q, k, v[:4])}, r"v is \(4, 2, 8\)"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_what_is_missing_or_does_not_fit_is_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        call(**wrong)


@pytest.mark.parametrize("times", [0, 2])
def test_a_block_attends_once(times):
    memory, x = jm.Recent(8), jnp.zeros((5, SPEC.width))
    qkv = [jnp.asarray(p) for p in projections(5)]

    def block(layer, x, attend):
        for _ in range(times):
            attend(*qkv)
        return x

    state = jm.init_stack(memory, SPEC)
    with pytest.raises(ValueError, match="block 0 must call attend exactly once"):
        jm.attend_stack(memory, SPEC, state, block, x, jm.embeds(x), 0)


def test_probes_are_counted():
    memory, x = jm.Hermes(8), jnp.zeros((5, SPEC.width))
    block = lambda layer, x, attend: x + 0 * attend(*map(jnp.asarray, projections(len(x)))).sum()
    state, args = jm.init_stack(memory, SPEC), (jm.embeds(x), 0)
    with pytest.raises(ValueError, match="Hermes requires probes"):
        jm.attend_stack(memory, SPEC, state, block, x, *args)
    probes = jax.tree.map(lambda leaf: leaf[None], jm.embeds(x, jm.Modality.TEXT))
    with pytest.raises(ValueError, match="scores by 2 probes, got 1"):
        jm.attend_stack(memory, SPEC, state, block, x, *args, probes=probes)
