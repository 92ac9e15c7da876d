"""LiveVLM v2 against plain loops over tokens, buckets and pages, its laws, and the decoder."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, pick, standard

from jaxmem import kv as tk
from jaxmem import rope as rp
from jaxmem.decoder.decoder import layer_at, qkv
from jaxmem.decoder.layer import layer_step
from jaxmem.decoder.program import make_program, spec_of
from jaxmem.memory.exchange import Question
from jaxmem.memory.parts.positions import start
from jaxmem.memory.video.livevlm import LiveVLM, _bucket, page_scores

BUDGET = 16
OPTIONS = {
    "usual": {"short": 0.25, "top": 0.3, "audio_share": 0.25, "page": 2},
    "heads": {"short": 0.2, "top": 0.4, "per_head": True, "audio_share": 0.25, "kernel": 3},
    "published": {"short": 0.25, "top": 0.5, "bucket": 3, "audio_share": None, "page": 5},
}
MEMORIES = {name: LiveVLM(BUDGET, **options) for name, options in OPTIONS.items()}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["usual", "heads"])
def test_law(name, law):
    LAWS[law](MEMORIES[name])


def into_buckets(candidates, cap, top, size):
    """VSB over (number, score), oldest first; return the numbers kept."""
    length, many = len(candidates), max(cap // size, 1)
    bucket = {o: math.ceil(p * many / length) for p, (o, _) in enumerate(candidates, 1)}
    ranked = [o for o, _ in sorted(candidates, key=lambda item: -item[1])]
    kept, room = [], dict.fromkeys(range(1, many + 1), size)
    for o in ranked[: math.floor(top * cap)]:
        kept.append(o)
        room[bucket[o]] -= 1
    for o in ranked[len(kept) :]:
        if len(kept) < cap and room[bucket[o]] > 0:
            kept.append(o)
            room[bucket[o]] -= 1
    for o in ranked:
        if len(kept) < cap and o not in kept:
            kept.append(o)
    return kept


@pytest.mark.parametrize("name", MEMORIES)
def test_writing_against_a_plain_loop(name):
    memory, chunks, options = MEMORIES[name], standard(), OPTIONS[name]
    short = int(BUDGET * options["short"])
    long = BUDGET - short
    share = options["audio_share"]
    audio = None if share is None else round(long * share)
    state, held = memory.init(SPEC), [{}, {}]
    write = compiled(lambda s, c: (laws.see(memory, s, c), laws.step(memory, s, c)))
    by_score_alone = 0
    for c in range(len(CUTS)):
        seen, state = jax.device_get(write(state, pick(chunks, c)))
        for g in range(state.slots.kv.modality.shape[1]):
            before = zip(held[g].items(), seen.received.memory[g], strict=False)
            pool = {o: (kind, mass) for (o, kind), mass in before}
            for t in range(CUTS[c]):
                order, kind = seen.kv.index[t, g], seen.kv.modality[t, g]
                pool[int(order)] = (int(kind), seen.received.chunk[g, t])
            numbers = sorted(pool)
            mass = np.asarray([pool[o][1] for o in numbers], np.float32)
            half = options.get("kernel", 1) // 2
            padded = np.pad(mass, half)
            near = [padded[i : i + 2 * half + 1].sum() / (2 * half + 1) for i in range(len(mass))]
            old = list(zip(numbers, near, strict=True))[: max(len(numbers) - short, 0)]
            sound = [item for item in old if pool[item[0]][0] == tk.AUDIO and audio is not None]
            other = [item for item in old if item not in sound]
            kept = numbers[len(old) :]
            caps = {True: (0, long), False: (long - (audio or 0), audio or 0)}[not other]
            caps = caps if sound else (long, 0)
            for group, cap in zip((other, sound), caps, strict=True):
                kept += into_buckets(group, cap, options["top"], options.get("bucket", 1))
                best = sorted(group, key=lambda item: -item[1])[:cap]
                by_score_alone += {o for o, _ in best} != set(kept) & {o for o, _ in group}
            held[g] = {o: pool[o][0] for o in sorted(kept)}
            tokens = laws.of_head(state.slots.kv, g)
            np.testing.assert_array_equal(laws.held(tokens), list(held[g]), err_msg=f"chunk {c}")
    assert by_score_alone > 3, "buckets never mattered"


def question(rows, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(rows + 2, laws.HEADS, SPEC.head_dim)).astype(np.float32)
    return Question(jnp.asarray(q), jnp.arange(rows + 2) < rows, None)


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("chunks", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 8])
def test_reading_against_a_plain_loop(name, chunks):
    memory, options, query = MEMORIES[name], OPTIONS[name], question(3)
    state = jax.device_get(laws.run(memory, memory.init(SPEC), standard())[0])
    if chunks < 8:
        state = memory.init(SPEC)
        for c in range(chunks):
            state = laws.step(memory, state, pick(standard(), c))
    tokens = jax.device_get(state.slots.kv)
    n, page = int(tk.count(tokens)), options.get("page", 16)
    old = max(n - int(BUDGET * options["short"]), 0)
    pages = [list(range(i, min(i + page, old))) for i in range(0, old, page)]
    mean = np.stack([tokens.k[slots].mean(0) for slots in pages])
    score = np.zeros(len(pages))
    for q in np.asarray(query.q)[np.asarray(query.valid)]:
        for h in range(laws.HEADS):
            z = mean[:, h // 2] @ q[h] / np.sqrt(SPEC.head_dim)
            score += np.exp(z) / np.exp(z).sum()
    best = np.argsort(-score)[: math.ceil(0.4 * len(pages))]
    slots = sorted(s for p in best for s in pages[p]) + list(range(old, n))
    view = jax.jit(lambda s, q: memory.recall(SPEC, s, q))(state, query)
    np.testing.assert_array_equal(tk.count(view.kv), len(slots))
    for got, want in zip(view.kv, tokens, strict=True):
        np.testing.assert_array_equal(got[: len(slots)], want[slots])
    np.testing.assert_array_equal(view.base, state.aux.next_pos)
    most = math.ceil((BUDGET - int(BUDGET * options["short"])) / page)
    room = math.ceil(0.4 * most) * page + int(BUDGET * options["short"])
    assert view.kv.modality.shape[0] == min(BUDGET, room)


def test_page_scores_are_attention_over_pages():
    """Their values, not only their order: strong queries, pages of two and three, one empty."""
    rng, query = np.random.default_rng(2), question(3)
    k = rng.normal(size=(7, 2, 4)).astype(np.float32)
    of, there = jnp.asarray([0, 0, 1, 1, 1, 3, 3]), jnp.asarray([True, True, False])
    want = np.zeros(2)
    mean = np.stack([k[:2].mean(0), k[2:5].mean(0)])
    for q in 3 * np.asarray(query.q)[:3]:
        for h in range(laws.HEADS):
            z = mean[:, h // 2] @ q[h] / np.sqrt(4)
            want += np.exp(z) / np.exp(z).sum() / laws.HEADS
    got = page_scores(jnp.asarray(k), of, there, query._replace(q=3 * query.q))
    np.testing.assert_allclose(got[:2], want, rtol=1e-5)
    assert got[2] == 0


def test_all_pages_are_everything_that_is_held():
    memory = LiveVLM(BUDGET, page=5, ratio=1.0)
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    view = memory.recall(SPEC, state, question(2))
    laws.assert_same(view.kv, state.slots.kv, "recall of all pages")
    with pytest.raises(ValueError, match="question's queries"):
        memory.recall(SPEC, state, None)


def test_buckets_are_exact_where_a_product_leaves_32_bits():
    number, length = 262_144, 1_000_003
    p = np.random.default_rng(0).integers(1, length + 1, 500)
    want = [-(-int(i) * number // length) for i in p]
    got = _bucket(jnp.asarray(p, jnp.uint32), number, jnp.asarray(length, jnp.uint32))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kinds", [(2, 1, 2, 3, 2, 1, 0, 0), (1, 3, 1, 1, 3, 0, 0, 0)])
def test_the_last_rows_of_a_kind_are_asked(kinds):
    """What `Attention(modality=, last=)` makes the decoder report, against attention by hand."""
    cfg = small.config(layers=1, axes=1)
    weights, rows = small.params(cfg), small.chunk(small.stream_rows(cfg, 1, 8), 0)
    rows = rows._replace(modality=jnp.asarray(kinds, jnp.int8))
    received = reported(LiveVLM(8, window=2), cfg, weights, rows)
    n = sum(kind != 0 for kind in kinds)
    asked = [t for t in range(n) if kinds[t] == tk.VISION] or list(range(n))

    q, k, _ = qkv(layer_at(weights, 0), cfg, rows.x)
    q, k = (np.asarray(rp.rope(z, rows.pos[:, None], cfg.rope)) for z in (q, k))
    want = np.zeros(8)
    for t in asked[-2:]:
        for h in range(cfg.heads):
            z = k[: t + 1, h // 2] @ q[t, h] / np.sqrt(cfg.head_dim)
            want[: t + 1] += np.exp(z) / np.exp(z).sum() / cfg.heads
    np.testing.assert_allclose(received.chunk[0], want, atol=1e-5)


def reported(memory, cfg, weights, rows):
    spec = spec_of(cfg, chunk=8)
    program = make_program(cfg, memory, spec)
    view = memory.view(spec, memory.init(spec), rows)
    zero = jnp.zeros((), jnp.int32)
    np.testing.assert_array_equal(view.base, start(spec))
    one = jax.jit(partial(layer_step, program=program))
    return one(weights, layer=zero, h=rows.x, view=view, embeds=rows, clock=zero).chunk.received


def silent(chunks=6):
    return laws.cut(laws.stream(8 * chunks, kinds=np.full(8 * chunks, tk.VISION)), [8] * chunks, 8)


@pytest.mark.parametrize("per_head", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_slots_of_audio_are_lent_while_there_is_none(per_head):
    """Buckets and the top R are those of all slots; when sound comes its part is its own again."""
    shared, alone = (LiveVLM(BUDGET, audio_share=s, per_head=per_head) for s in (0.5, None))
    after = [laws.run(m, m.init(SPEC), silent())[0] for m in (shared, alone)]
    assert int(tk.count(after[0].slots.kv)) == BUDGET
    laws.assert_same(after[0].slots, after[1].slots, "silent stream")
    for c in range(5):
        after[0] = laws.step(shared, after[0], pick(standard(), c))
    heard = np.asarray(after[0].slots.kv.modality[: -shared.short_slots]) == tk.AUDIO
    assert (heard.sum(axis=0) >= 3).all()


def test_only_sound_takes_all_slots():
    flat = laws.stream(48, kinds=np.full(48, tk.AUDIO))
    shared, alone = (LiveVLM(BUDGET, audio_share=s) for s in (0.25, None))
    after = [
        laws.run(m, m.init(SPEC), laws.cut(flat, [8] * 6, 8))[0].slots for m in (shared, alone)
    ]
    laws.assert_same(after[0], after[1], "a stream of sound")


@pytest.mark.parametrize("budget", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8))])
def test_few_slots_are_a_memory(budget):
    memory = LiveVLM(budget)
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    assert int(tk.count(state.slots.kv)) == budget
    assert 0 < int(tk.count(memory.recall(SPEC, state, question(2)).kv)) <= budget


@pytest.mark.parametrize("newest", [6, BUDGET])
def test_the_newest_are_always_held(newest):
    memory = LiveVLM(BUDGET, newest=newest)
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    want = np.arange(sum(CUTS) - newest, sum(CUTS))
    for kv in (state.slots.kv, memory.recall(SPEC, state, question(2)).kv):
        np.testing.assert_array_equal((laws.held(kv)[-newest:] - 1) // 2, want)


def test_what_is_read_can_be_renumbered():
    memory = LiveVLM(BUDGET, page=2, reindex=True)
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    view = memory.recall(SPEC, state, question(2))
    read = int(tk.count(view.kv))
    assert read < BUDGET
    np.testing.assert_array_equal(view.kv.pos[:read, 0, 1], np.arange(read))
    np.testing.assert_array_equal(view.base, [read] * 3)
    np.testing.assert_array_equal(memory.view(SPEC, state, None).base, [BUDGET] * 3)


def test_equal_options_are_equal():
    assert LiveVLM(8) == LiveVLM(8) != LiveVLM(8, page=8) and len({LiveVLM(8), LiveVLM(8)}) == 1


@pytest.mark.parametrize("per_head", [pytest.param(False, marks=pytest.mark.slow), True])
def test_ample_budget_is_full_attention_in_the_decoder(per_head):
    memory = LiveVLM(64, ratio=1.0, audio_share=0.5, per_head=per_head)
    small.assert_full_attention(*small.streamed(memory))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 2}, "odd kernel"),
        ({"page": 0}, "at least 1"),
        ({"short": 1.0}, "parts of 1"),
        ({"ratio": 0.0}, "parts of 1"),
        ({"audio_share": 2.0}, "audio_share"),
        ({"newest": 17}, "newest=17"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LiveVLM(BUDGET, **options)
