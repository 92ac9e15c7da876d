"""FlexMem beyond the released code's numbers: a plain-loop reference, laws, readers, errors."""

from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kv import AUDIO, KV, TEXT, VISION
from jaxmem.memory.bank.bank import append_spill, init_bank
from jaxmem.memory.base import Chunk, Embeds, Received, Spec, at_layer, nbytes, slots
from jaxmem.memory.flexmem import clips
from jaxmem.memory.flexmem.flexmem import flexmem
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.rope import rope_1d

L, T, W = 3, 12, 3
SPEC = Spec(layers=L, kv_heads=1, heads=1, head_dim=2, width=2, chunk=T, prefix=2, bank=10 * 6)
NEWS = (12, 12, 7, 12, 0, 12, 3, 12, 12, 5, 12)  # valid rows; 0 is a chunk of padding
SMALL = {"window": W, "context_ratio": 4, "local_ratio": 2, "topk": 3, "shallow": 1}


def kinds_of(c, new):
    kind = np.random.default_rng([7, c]).choice([TEXT, VISION, VISION, VISION, AUDIO], T)
    return np.where(np.arange(T) < new, kind, 0).astype(np.int8)


def see(view, c, new, rng, scale=1.0):
    """What a decoder would report of chunk c; numbers of padding rows are garbage."""
    kind, order = kinds_of(c, new), c * (T + 1) + np.arange(T)
    mass = rng.random((4, L, T)).astype(np.float32)
    mass[0, :, kind == AUDIO] *= scale
    mass[1, :, kind == AUDIO] *= scale
    spread = lambda x: np.broadcast_to(x[None, :, None], (L, T, 1))
    k = rng.normal(size=(L, T, 1, 2)).astype(np.float32)
    pos = np.asarray(view.base)[:, None, None] + np.arange(T, dtype=np.int32)[None, :, None, None]
    received = Received(mass[:1, :, None], mass[0, :, None])
    probe = Received(mass[2][:, None, None, :1], np.where(kind != 0, mass[2], 0)[:, None, None])
    return Chunk(
        tokens=KV(k, k, pos, spread(order.astype(np.int32)), spread(kind)),
        base=view.base,
        next_pos=view.base + np.int32(new),
        layer=np.arange(L),
        mass=received,
        rows=mass[1],
        probe=probe,
        probe_rows=np.full((L, 1), 1),
    )


ROW = Embeds(
    np.zeros((T, 2), np.float32), np.zeros((T, 1), np.int32), np.ones(T, np.int8), np.ones(1)
)
look = jax.jit(lambda memory, state, bank: memory.view(state, bank, ROW), static_argnums=0)
recall = jax.jit(lambda memory, *a: memory.recall(*a), static_argnums=0)


@partial(jax.jit, static_argnums=0)
def write(memory, state, bank, seen):
    state, spill = memory.write(state, seen)
    for l in range(L):
        bank = append_spill(bank, jnp.int32(l), at_layer(spill, l))
    return state, bank


def run(memory, news=NEWS, spec=SPEC, scale=1.0):
    """Write chunks of `news` rows; return what every chunk saw, its reports, state and bank."""
    rng = np.random.default_rng(1)
    state, bank = memory.init(spec), init_bank(memory, spec)
    views, seen = [], []
    for c, new in enumerate(news):
        views.append(jax.device_get(look(memory, state, bank)))
        seen.append(see(views[-1], c, new, rng, scale))
        state, bank = jax.device_get(write(memory, state, bank, seen[-1]))
    return views, seen, state, bank


def orders(tokens):
    """The arrival numbers that every layer holds, in its order."""
    kind, order = np.asarray(tokens.modality)[..., 0], np.asarray(tokens.index)[..., 0]
    for l in range(len(kind)):
        n = (kind[l] != 0).sum()
        assert (kind[l, :n] != 0).all() and (np.diff(order[l, :n]) > 0).all()
    return [order[l][kind[l] != 0].tolist() for l in range(len(kind))]


def kept(score, kind, ratio, even, per_kind):
    """The rows of one clip and layer that are kept, by a plain loop over groups."""
    valid = np.flatnonzero(kind)
    total = len(valid) // ratio
    sound = np.flatnonzero(kind == AUDIO)
    audio = min(-(-len(sound) // ratio), total) if per_kind else 0
    groups = [(np.setdiff1d(valid, sound) if per_kind else valid, total - audio), (sound, audio)]
    rows = []
    for members, cap in groups:
        if even:
            at = np.linspace(0, len(members) - 1, cap) if cap else np.zeros(0)
            rows += members[(at + 1e-6).astype(int)].tolist()
        else:
            rows += members[np.argsort(-score[members], kind="stable")[:cap]].tolist()
    return sorted(rows)


def joined(parts):
    """Lists of every layer, one behind the other."""
    return [list(chain.from_iterable(part[l] for part in parts)) for l in range(L)]


def reference(news, seen, per_kind, shallow, longs, topk, capacity):
    """Views of all chunks and the final recall as lists of arrival numbers, in plain Python."""
    context, local, g, views = [], [], [], []
    for c, new in enumerate([*news, 1]):
        i, half = len(context), W // 2
        if longs and i > W:
            older = range(min(i - half, capacity))
            best = sorted(sorted(older, key=lambda j: -g[j])[:longs])
            chosen = [local[j] for j in best] + context[i - half :]
        else:
            chosen = context[max(0, i - W) :]
        views.append(joined(chosen))
        if c == len(news) or not new:
            continue
        s, kind, numbers = seen[c], kinds_of(c, new), c * (T + 1)
        received, rows = s.mass.chunk[:, 0], s.rows
        for score, ratio, stored in ((received, 2, local), (received + rows, 4, context)):
            own = [kept(score[l], kind, ratio, l < shallow, per_kind) for l in range(L)]
            stored.append([[numbers + j for j in rows_of_l] for rows_of_l in own])
        g.append(float(s.probe.chunk[shallow:].sum()))
    best = sorted(sorted(range(min(len(g), capacity)), key=lambda j: -g[j])[:topk])
    return views, joined([local[j] for j in best])


@pytest.mark.parametrize(
    ("per_kind", "long_term", "bank"),  # a bank of 24 has room for the first four clips
    [(True, True, 60), (False, True, 24), (True, False, 24)],
)
def test_is_the_plain_loop(per_kind, long_term, bank):
    memory = flexmem(T, per_kind=per_kind, long_term=long_term, **SMALL)
    spec = Spec(**{**vars(SPEC), "bank": bank})
    views, seen, state, store = run(memory, spec=spec)
    # Two contexts of three tokens make room for one local memory of six.
    want, recalled = reference(NEWS, seen, per_kind, 1, 1 if long_term else 0, 3, bank // 6)
    views.append(look(memory, state, store))
    for c, (view, expected) in enumerate(zip(views, want, strict=True)):
        assert orders(view.tokens) == expected, f"chunk {c}"
    assert orders(recall(memory, state, store, None).tokens) == recalled
    held = orders(look(memory, state, store).tokens)
    np.testing.assert_array_equal(views[-1].base[:, 0], [2 + len(x) for x in held])
    assert int(state.aux.book.count) == sum(n > 0 for n in NEWS)


def test_padding_is_no_clip():
    memory = flexmem(T, **SMALL)
    *_, before, bank = run(memory, (12, 5))
    *_, after, bank_after = run(memory, (12, 5, 0, 0))
    jax.tree.map(np.testing.assert_array_equal, before.slots, after.slots)
    jax.tree.map(np.testing.assert_array_equal, before.aux, after.aux)
    np.testing.assert_array_equal(bank.count, bank_after.count)


def test_recall_reads_the_chosen_clips_only():
    memory = flexmem(T, **SMALL)
    *_, state, bank = run(memory)
    view = jax.device_get(recall(memory, state, bank, None))
    wanted = np.isin(bank.slots.index[0], np.asarray(view.tokens.index)[0]).reshape(1, -1, 1, 1)
    broken = bank.slots._replace(k=np.where(wanted, bank.slots.k, np.nan).astype(np.float32))
    again = recall(memory, state, bank._replace(slots=broken), None)
    assert np.isfinite(again.tokens.k[:, : len(orders(view.tokens)[0])]).all()
    used = np.asarray(view.tokens.modality)[..., 0] != 0
    np.testing.assert_array_equal(np.asarray(again.tokens.k)[used], view.tokens.k[used])


def test_audio_keeps_its_part_of_a_clip():
    """Quiet sound: its scores are a thousandth of what pictures get."""
    for per_kind in (True, False):
        memory = flexmem(T, per_kind=per_kind, **{**SMALL, "shallow": 0})
        *_, bank = run(memory, scale=1e-3)
        parts = [(kinds_of(c, new) == AUDIO).sum() for c, new in enumerate(NEWS)]
        got = (bank.slots.modality[0, : bank.count[0], 0] == AUDIO).sum()
        want = sum(min(-(-a // 2), new // 2) for a, new in zip(parts, NEWS, strict=True))
        assert (got == want) if per_kind else (got < want / 2), (got, want)


def test_kept_positions():
    """Positions of arrival, and the next clip behind the last row, padding not counted."""
    memory = flexmem(T, positions="keep", **SMALL)
    views, _, state, bank = run(memory)
    np.testing.assert_array_equal(look(memory, state, bank).base[:, 0], [2 + sum(NEWS)] * L)
    starts = 2 + np.cumsum((0, *NEWS))[:-1]
    recalled = recall(memory, state, bank, None).tokens
    for tokens in (views[-1].tokens, recalled):
        order, used = np.asarray(tokens.index)[..., 0], np.asarray(tokens.modality)[..., 0] != 0
        arrival = starts[order // (T + 1)] + order % (T + 1)
        np.testing.assert_array_equal(np.asarray(tokens.pos)[..., 0, 0][used], arrival[used])


def test_context_history_leaves_long_term_memories_out():
    memory = flexmem(T, history="context", **SMALL)
    views, _, state, bank = run(memory)
    view = look(memory, state, bank)
    context = [set(x) for x in orders(state.slots)]
    for l, order in enumerate(orders(view.tokens)):
        # The newest context is seen as context; all else comes from the bank.
        counted = np.asarray(view.counted)[l, : len(order)]
        assert counted.any() and not counted.all()
        assert set(np.asarray(order)[counted]) <= context[l]
        assert np.asarray(order)[~counted].max() < np.asarray(order)[counted].min()
    assert np.asarray(views[W].counted).all()
    assert look(flexmem(T, **SMALL), state, bank).counted is None


@pytest.mark.parametrize(("n", "count"), [(95, 23), (1456, 364), (1680, 420), (1680, 5), (7, 1)])
def test_evenly_spaced_rows(n, count):
    """Two roundings in float32, from both ends: what torch.linspace gives, truncated."""
    got = jax.jit(clips.evenly, static_argnums=2)(jnp.int32(n), jnp.int32(count), count + 3)[:count]
    f, j = np.float32, np.arange(count)
    step = f(f(n - 1) / f(max(count - 1, 1)))
    back = (f(n - 1) - step * (count - 1 - j).astype(f)).astype(f)
    want = np.where(j < max(count // 2, 1), (step * j.astype(f)).astype(f), back).astype(int)
    np.testing.assert_array_equal(got, want)
    if n == 95:
        assert want[11] == 11 * 94 // 22 - 1


def test_sizes():
    """The released standard profile sees 5040 slots per layer; only the bank grows."""
    spec = Spec(28, 4, 28, 128, 3584, chunk=1680, prefix=14, bank=2 * 840)
    memory = flexmem()
    assert slots(memory, spec) == (5040,) * 28
    assert memory.spill is not None and memory.spill(spec).modality.shape == (840, 1)
    token = 2 * 4 * 128 * 4 + 9  # key, value, position, order, kind
    assert 0 <= nbytes(memory, spec) - 28 * 5040 * token < 1000
    view = jax.eval_shape(
        lambda: memory.view(memory.init(spec), init_bank(memory, spec), ROW).tokens.modality
    )
    assert view.shape == (28, 5040, 1)


BANKLESS = flexmem(T, **SMALL)
INDEX, DEEP = MemIndex(rope_1d(4), (0,)), MemIndex(rope_1d(4), (3,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: flexmem(2), "a token is kept"),
        (lambda: flexmem(window=0), "window=0"),
        (lambda: flexmem(window=1, local_ratio=1), "long_term=False"),
        (lambda: flexmem(reader="both"), "'both'"),
        (lambda: flexmem(history="bank"), "'bank'"),
        (lambda: flexmem(positions="dense"), "'dense'"),
        (lambda: flexmem(reader="memindex"), "index=MemIndex"),
        (lambda: flexmem(reader="memindex", index=INDEX, long_term=True), "long_term"),
        (lambda: flexmem(index=INDEX._replace(keys=0)), "at least 1 key"),
        (lambda: flexmem(index=INDEX._replace(weights=(1.0, 2.0))), "one weight per layer"),
        (lambda: flexmem(index=INDEX._replace(against="all")), "'all'"),
        (lambda: flexmem(T, index=DEEP, shallow=0).init(SPEC), "model has 3"),
        (lambda: flexmem(T - 1).init(SPEC), "Raise clip"),
        (lambda: flexmem(T, shallow=3).init(SPEC), "lower shallow"),
        (lambda: BANKLESS.view(BANKLESS.init(SPEC), None, ROW), "Spec.bank"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
