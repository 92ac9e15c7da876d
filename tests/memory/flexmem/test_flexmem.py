"""FlexMem beyond the released code's numbers: a plain-loop reference, laws, readers, errors."""

from dataclasses import replace
from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kv import AUDIO, KV, TEXT, VISION
from jaxmem.memory.bank.bank import append, footprint, init_bank
from jaxmem.memory.base import Spec, at_layer
from jaxmem.memory.by_name import contestants, parse_budget
from jaxmem.memory.exchange import Chunk, Embeds, Probed, Prompt, Question, Received
from jaxmem.memory.flexmem import clips
from jaxmem.memory.flexmem.flexmem import FlexMem
from jaxmem.memory.flexmem.memindex import Encoding, MemIndex
from jaxmem.memory.sizes import nbytes, slots
from jaxmem.rope import rope_1d

L, T, W = 3, 12, 3
SPEC = Spec(layers=L, kv_heads=1, head_dim=2, width=2, chunk=T, prefix=2, rope=rope_1d(2))
NEWS = (12, 12, 7, 12, 0, 12, 3, 12, 12, 5, 12)  # valid rows; 0 is a chunk of padding
SHORT = (3, 2, 4, 5, 12, 1, 1, 1, 0, 6, 7, 5, 1, 12, 2, 2, 2, 2, 2, 2, 2, 9, 3)
SMALL = {"window": W, "context_ratio": 4, "local_ratio": 2, "topk": 3, "shallow": 1}
known = partial(FlexMem, T, reader=Encoding("a question"), **SMALL)


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
    probed = Received(mass[2][:, None, None, :1], np.where(kind != 0, mass[2], 0)[:, None, None])
    return Chunk(
        kv=KV(k, k, pos, spread(order.astype(np.int32)), spread(kind)),
        next_pos=view.base + np.int32(new),
        received=Received(mass[:1, :, None], mass[0, :, None]),
        given=mass[1],
        probed=Probed(probed, np.full((L, 1), 1)),
    )


ROW = Embeds(
    np.zeros((T, 2), np.float32), np.zeros((T, 1), np.int32), np.ones(T, np.int8), np.ones(1)
)


@partial(jax.jit, static_argnums=0)
def look(memory, state, bank):
    return memory.view(SPEC, state, ROW, bank)


@partial(jax.jit, static_argnums=0)
def recall(memory, state, bank, question=None):
    return memory.recall(SPEC, state, question, bank)


@partial(jax.jit, static_argnums=0)
def write(memory, state, bank, seen):
    state, evicted = memory.write(SPEC, state, seen)
    for l in range(L):
        bank = append(bank, jnp.int32(l), at_layer(evicted, l))
    return state, bank


def run(memory, news=NEWS, scale=1.0):
    """Write chunks of `news` rows; return what every chunk saw, its reports, state and bank."""
    rng = np.random.default_rng(1)
    state, bank = memory.init(SPEC), init_bank(memory, SPEC)
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


def kept(score, kind, total, ratio, even, own_audio):
    """The rows of one chunk and layer that are kept, by a plain loop over groups."""
    valid = np.flatnonzero(kind)
    sound = np.flatnonzero(kind == AUDIO)
    audio = min(-(-len(sound) // ratio), total) if own_audio else 0
    groups = [(np.setdiff1d(valid, sound) if own_audio else valid, total - audio), (sound, audio)]
    rows = []
    for members, cap in groups:
        if even:
            at = np.linspace(0, len(members) - 1, cap) if cap else np.zeros(0)
            rows += members[(at + 1e-6).astype(int)].tolist()
        else:
            rows += members[np.argsort(-score[members], kind="stable")[:cap]].tolist()
    return sorted(rows)


def joined(parts):
    """Lists of every layer, one after the other."""
    return [list(chain.from_iterable(part[l] for part in parts)) for l in range(L)]


def clips_of(news):
    """The chunks of every clip: chunks in succession that have room in one."""
    out, rows, entries = [], 0, 0
    for c, new in enumerate(news):
        if not new:
            continue
        many = max(1, new // 2)
        if not out or rows + new > T or entries + many > T // 2:
            out.append([])
            rows = entries = 0
        out[-1].append(c)
        rows, entries = rows + new, entries + many
    return out


def reference(news, seen, own_audio, shallow, longs, topk, capacity):
    """Views of all chunks and the final recall as lists of arrival numbers, in plain Python."""
    context, local, g, views, stored = [], [], [], [], 0
    begins = {parts[0] for parts in clips_of(news)}
    for c, new in enumerate([*news, 1]):
        i, half, noted = len(context), W // 2, sum(bool(x[0]) for x in local)
        if longs and i > W:
            best = sorted(sorted(range(min(i - half, noted)), key=lambda j: -g[j])[:longs])
            chosen = [local[j] for j in best] + context[i - half :]
        else:
            chosen = context[max(0, i - W) :]
        views.append(joined(chosen))
        if c == len(news) or not new:
            continue
        if c in begins:
            context.append([[] for _ in range(L)])
            local.append([[] for _ in range(L)])
            g.append(0.0)
            rows = 0
        s, kind, numbers, before = seen[c], kinds_of(c, new), c * (T + 1), rows
        rows += new
        received, given = s.received.chunk[:, 0], s.given
        few = max(1, rows // 4) - (max(1, before // 4) if before else 0)
        many = max(1, new // 2)
        room = min(many, capacity - stored)
        stored += room
        g[-1] += float(s.probed.received.chunk[shallow:].sum()) if room else 0.0
        for l in range(L):
            even = l < shallow
            own = kept(received[l], kind, many, 2, even, own_audio)
            local[-1][l] += [numbers + j for j in own[:room]]
            own = kept(received[l] + given[l], kind, few, 4, even, own_audio)
            context[-1][l] += [numbers + j for j in own]
    noted = sum(bool(x[0]) for x in local)
    best = sorted(sorted(range(noted), key=lambda j: -g[j])[:topk])
    return views, joined([local[j] for j in best])


@pytest.mark.parametrize("news", [NEWS, SHORT], ids=["long", "short"])
@pytest.mark.parametrize(
    ("own_audio", "long_term", "capacity"),  # 24 entries hold four full clips
    [
        (True, True, 60),
        pytest.param(False, True, 24, marks=pytest.mark.slow),
        (True, False, 24),
    ],
)
def test_is_the_plain_loop(own_audio, long_term, capacity, news):
    memory = known(own_audio=own_audio, long_term=long_term, capacity=capacity)
    views, seen, state, bank = run(memory, news)
    # Two contexts of three tokens make room for one local memory of six.
    want, recalled = reference(news, seen, own_audio, 1, 1 if long_term else 0, 3, capacity)
    views.append(look(memory, state, bank))
    for c, (view, expected) in enumerate(zip(views, want, strict=True)):
        assert orders(view.kv) == expected, f"chunk {c}"
    assert orders(recall(memory, state, bank).kv) == recalled
    held = orders(look(memory, state, bank).kv)
    np.testing.assert_array_equal(views[-1].base[:, 0], [2 + len(x) for x in held])
    assert int(state.aux.ledger.count) == len(clips_of(news))
    # What came is in the bank and has a line, or it is counted.
    came = sum(max(1, n // 2) for n in news if n)
    assert int(jnp.sum(state.aux.ledger.many)) == bank.count[0] == min(came, capacity)
    assert int(state.aux.dropped) == bank.dropped[0] == max(0, came - capacity)


@pytest.mark.parametrize("news", [(1,), (2,), (1, 5), (5,), (7,), (12,), (3, 12, 1)])
@pytest.mark.parametrize(
    "ratio", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5, 40))]
)
def test_a_bank_is_full_before_its_ledger(news, ratio):
    """However short the chunks are, everything in the bank can be read; the rest is counted."""
    memory = known(capacity=20, long_term=False)
    memory = replace(memory, local_ratio=ratio, topk=99)
    news = news * (60 // len(news))
    *_, state, bank = run(memory, news)
    assert bank.count[0] == 20 == int(jnp.sum(state.aux.ledger.many))
    came = sum(max(1, n // ratio) for n in news)
    assert int(state.aux.dropped) == bank.dropped[0] == came - 20
    view = recall(memory, state, bank)
    assert orders(view.kv) == orders(jax.tree.map(lambda x: x[:, :20], bank.slots))


@pytest.mark.parametrize("reader", [MemIndex((1, 2), keys=2), Encoding("a question")])
def test_short_chunks_stay_recallable(reader):
    """A bank that is half empty loses nothing: chunks of a quarter of a clip (were 10 of 40)."""
    memory = replace(known(), reader=reader, capacity=80, topk=99, long_term=False)
    *_, state, bank = run(memory, (3,) * 40)
    assert bank.count[0] == 40 and not bank.dropped.any() and not state.aux.dropped
    q = np.random.default_rng(0).normal(size=(L, 2, 2, 2)).astype(np.float32)
    prefix = KV(*(jnp.zeros((L, 2, 1, n)) for n in (2, 2, 1)), jnp.zeros((L, 2, 1), jnp.int32),
                jnp.ones((L, 2, 1), jnp.int8))  # fmt: skip
    question = None if isinstance(reader, Encoding) else Question(q, jnp.ones(2, bool), prefix)
    found = orders(recall(memory, state, bank, question).kv)[0]
    assert {order // (T + 1) for order in found} == set(range(40))


def test_a_clip_without_entries_takes_no_place_among_the_recalled():
    """Once the bank is full, clips are only seen: what is recalled are `topk` that have entries."""
    memory = known(capacity=24, long_term=False)
    *_, state, bank = run(memory, (12,) * 8)
    assert int(state.aux.ledger.count) == 8 and int(state.aux.ledger.noted) == 4
    view = recall(memory, state, bank)
    assert [len(x) for x in orders(view.kv)] == [3 * 6] * L


def test_keys_of_a_clip_made_of_short_chunks():
    """The MemIndex keeps the keys of largest score of the whole clip, in time."""
    memory = FlexMem(T, reader=MemIndex((0, 2), keys=3), **SMALL)
    news = (3, 4, 2, 3, 12)
    _, seen, state, _ = run(memory, news)
    assert clips_of(news) == [[0, 1, 2, 3], [4]]
    for line, parts in enumerate(clips_of(news)):
        score, k = (
            np.concatenate([x[:, : news[c]] for c, x in zip(parts, xs, strict=True)], 1)
            for xs in (
                [seen[c].received.chunk[:, 0] for c in parts],
                [seen[c].kv.k for c in parts],
            )
        )
        best = np.sort(np.argsort(-score[2], kind="stable")[:3])
        np.testing.assert_array_equal(state.aux.keys[line, 1], k[2][best])
    np.testing.assert_array_equal(state.aux.ledger.rows[:2], [12, 12])


def test_padding_is_no_clip():
    for memory in (known(), FlexMem(T, reader=MemIndex((1,)), **SMALL)):
        *_, before, bank = run(memory, (12, 5))
        *_, after, bank_after = run(memory, (12, 5, 0, 0))
        jax.tree.map(np.testing.assert_array_equal, before, after)
        np.testing.assert_array_equal(bank.count, bank_after.count)


def test_recall_reads_the_chosen_clips_only():
    memory = known()
    *_, state, bank = run(memory)
    view = jax.device_get(recall(memory, state, bank))
    wanted = np.isin(bank.slots.index[0], np.asarray(view.kv.index)[0]).reshape(1, -1, 1, 1)
    broken = bank.slots._replace(k=np.where(wanted, bank.slots.k, np.nan).astype(np.float32))
    again = recall(memory, state, bank._replace(slots=broken))
    assert np.isfinite(again.kv.k[:, : len(orders(view.kv)[0])]).all()
    used = np.asarray(view.kv.modality)[..., 0] != 0
    np.testing.assert_array_equal(np.asarray(again.kv.k)[used], view.kv.k[used])


def test_audio_keeps_its_part_of_a_clip():
    """Quiet audio: its scores are a thousandth of what pictures get."""
    for own in (True, False):
        memory = replace(known(own_audio=own), shallow=0)
        *_, bank = run(memory, scale=1e-3)
        parts = [(kinds_of(c, new) == AUDIO).sum() for c, new in enumerate(NEWS)]
        got = (bank.slots.modality[0, : bank.count[0], 0] == AUDIO).sum()
        want = sum(min(-(-a // 2), new // 2) for a, new in zip(parts, NEWS, strict=True))
        assert (got == want) if own else (got < want / 2), (got, want)


def test_kept_positions():
    """Positions of arrival, and the next chunk after the last row, padding not counted."""
    memory = known(reindex=False)
    views, _, state, bank = run(memory)
    np.testing.assert_array_equal(look(memory, state, bank).base[:, 0], [2 + sum(NEWS)] * L)
    starts = 2 + np.cumsum((0, *NEWS))[:-1]
    for kv in (views[-1].kv, recall(memory, state, bank).kv):
        order, used = np.asarray(kv.index)[..., 0], np.asarray(kv.modality)[..., 0] != 0
        arrival = starts[order // (T + 1)] + order % (T + 1)
        np.testing.assert_array_equal(np.asarray(kv.pos)[..., 0, 0][used], arrival[used])


def test_context_history_leaves_long_term_memories_out():
    memory = known(history="context")
    views, _, state, bank = run(memory)
    view = look(memory, state, bank)
    context = [set(x) for x in orders(state.slots)]
    for l, order in enumerate(orders(view.kv)):
        # The newest context is seen as context; all else comes from the bank.
        counted = np.asarray(view.counted)[l, : len(order)]
        assert counted.any() and not counted.all()
        assert set(np.asarray(order)[counted]) <= context[l]
        assert np.asarray(order)[~counted].max() < np.asarray(order)[counted].min()
    assert np.asarray(views[W].counted).all()
    assert look(known(), state, bank).counted is None


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
    spec = Spec(28, 4, 128, 3584, chunk=1680, prefix=14)
    memory = FlexMem(reader=Encoding("why?"), capacity=2 * 840)
    assert slots(memory, spec) == (5040,) * 28
    assert memory.bank(spec).evicted.modality.shape == (840, 1)
    token = 2 * 4 * 128 * 4 + 9  # key, value, position, index, modality
    assert 0 <= nbytes(memory, spec) - 28 * 5040 * token < 1000
    assert footprint(memory, spec).host == 28 * 3 * 840 * token
    bank = jax.eval_shape(lambda: init_bank(memory, spec, "device"))
    view = jax.eval_shape(lambda b: memory.view(spec, memory.init(spec), ROW, b), bank)
    assert view.kv.modality.shape == (28, 5040, 1)
    assert memory.resized(10 * 420 + 5, spec).window == 10
    assert FlexMem(400).resized(99, spec).window == 1


@pytest.mark.parametrize("layers", [1, 2, 4, 28])
@pytest.mark.parametrize("prefix", [0, 3])
def test_the_defaults_fit_every_model(layers, prefix):
    """Released numbers, where a model has so many layers; one layer at least has a say."""
    spec = replace(SPEC, layers=layers, prefix=prefix)
    memory = FlexMem()
    assert memory.even(spec) == min(3, layers - 1)
    keys = memory.init(spec).aux.keys
    assert keys is not None and keys.shape[1] == len(MemIndex().read_layers(layers))
    assert memory.requires.question == "pass" and memory.requires.probes is None
    assert memory.prompts() == ()
    assert memory == FlexMem() and hash(memory) == hash(FlexMem())


def test_bytes_find_a_memory_whose_question_is_known():
    # The least window is the one whose older half holds one local memory.
    spec = replace(SPEC, chunk=20, prefix=0)
    for ratio, least in ((2, 3), (1, 7), (4, 1)):
        memory = FlexMem(reader=Encoding("what?"), local_ratio=ratio, capacity=64)
        assert memory.resized(1, spec).window == least
        memory.resized(1, spec).sizes(spec)
        if least > 1:
            with pytest.raises(ValueError, match="raise window"):
                replace(memory, window=least - 1).sizes(spec)
    options = {"flexmem": {"reader_question": "what?", "capacity": 64}}
    (chosen,) = contestants(("flexmem",), options, parse_budget("64KiB"), spec, 200)
    assert chosen.memory.window > 3 and footprint(chosen.memory, spec).device <= 64 << 10


def test_a_known_question_is_the_probe():
    memory = FlexMem(reader=Encoding("where is the cat?"))
    assert memory.requires.probes == (1, "causal") and memory.requires.question is None
    assert memory.prompts(("an old", "dialogue")) == (Prompt("where is the cat?"),)
    assert memory != FlexMem(reader=Encoding("who is it?"))


INDEX, DEEP = MemIndex((0,)), MemIndex((3,))
PINNED = MemIndex(against="prefix")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlexMem(window=0), "window=0"),
        (lambda: FlexMem(0), "clip=0"),
        (lambda: FlexMem(capacity=0), "capacity=0"),
        (lambda: replace(known(), window=1, local_ratio=1).init(SPEC), "long_term=False"),
        (lambda: FlexMem(reader="both"), "'both'"),
        (lambda: FlexMem(history="bank"), "'bank'"),
        (lambda: FlexMem(long_term=True), "long_term"),
        (lambda: FlexMem(index=INDEX), "index="),
        (lambda: FlexMem(T, reader=DEEP).init(SPEC), "model has 3"),
        (lambda: FlexMem(T - 1).init(SPEC), "raise clip"),
        (lambda: FlexMem(reader=PINNED).init(replace(SPEC, prefix=0)), "Spec.prefix is 0"),
        (lambda: known().view(SPEC, known().init(SPEC), ROW), "init_bank"),
        (lambda: recall(FlexMem(T), FlexMem(T).init(SPEC), None), "pass a Question"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
