"""HERMES beyond the released code's numbers: switches, laws, and what it asks of the loop."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem import kv as tk
from jaxmem.bound import probe_rows
from jaxmem.decoder.step import chunk_step, init_carry, make_program
from jaxmem.kv import KV
from jaxmem.memory.base import Spec
from jaxmem.memory.baselines import Full
from jaxmem.memory.exchange import Chunk, Embeds, Probed, Prompt, Received
from jaxmem.memory.hermes import bands
from jaxmem.memory.hermes.bands import LLAVA, PAPER, QWEN
from jaxmem.memory.hermes.guidance import guidance
from jaxmem.memory.hermes.hermes import Hermes, importance
from jaxmem.programs import probes_of

L, M, T, P = 10, 12, 6, 3
SPEC = Spec(layers=L, kv_heads=1, head_dim=2, width=2, axes=1, chunk=T, prefix=P)
DEEP = slice(7, L)  # with ten layers
published = partial(Hermes, audio_share=None)


def rows_of(new, size):
    kind = np.where(np.arange(size) < new, tk.VISION, tk.EMPTY).astype(np.int8)
    rel = np.arange(size, dtype=np.int32)[:, None]
    return Embeds(np.zeros((size, 2), np.float32), rel, kind, np.full((1,), new, np.int32))


def see(view, chunk, new, size, *, seed):
    """What a decoder would report of chunk number `chunk`: `new` rows, the rest padding."""
    rng = np.random.default_rng([seed, chunk])
    draw = rng.random((4, L, M + T, 1, 2)).astype(np.float32)
    padded = lambda x: np.pad(x[:, :new], [(0, 0), (0, size - new)] + [(0, 0)] * (x.ndim - 2))
    view = jax.device_get(view)
    held = view.kv.modality[..., 0] != 0
    rel = np.arange(size, dtype=np.int32)[None, :, None, None]
    order = np.where(np.arange(size) < new, chunk * (T + 1) + np.arange(size), 0)
    spread = lambda x: np.broadcast_to(x[None, :, None], (L, size, 1))
    mass = lambda x, n: np.moveaxis(x[:, :n, 0], 2, 1)[:, :, None]
    return Chunk(
        kv=KV(
            k=padded(draw[0]),
            v=padded(draw[1]),
            pos=view.base[:, None, None] + rel,
            index=spread(order.astype(np.int32)),
            modality=spread(rows_of(new, size).modality),
        ),
        next_pos=view.base + np.int32(new),
        probed=Probed(
            Received(
                np.where(held[:, None, None], mass(draw[2], held.shape[1]), 0.0).astype(np.float32),
                mass(padded(draw[3]), size),
            ),
            np.full((L, 2), 3),
        ),
    )


@partial(jax.jit, static_argnums=0)
def write(memory, state, seen):
    return memory.write(SPEC, state, seen)[0]


@partial(jax.jit, static_argnums=0)
def look(memory, state, rows):
    return memory.view(SPEC, state, rows)


def run(memory, news, *, size=T, seed=0):
    """Write chunks of `news` rows; return every state, and what was seen between them."""
    states, seen = [jax.device_get(memory.init(SPEC))], []
    for c, new in enumerate(news):
        view = look(memory, states[-1], rows_of(new, size))
        seen.append(see(view, c, new, size, seed=seed))
        states.append(jax.device_get(write(memory, states[-1], seen[-1])))
    return states, seen


@pytest.mark.parametrize(
    ("layers", "middle", "deep"), [(24, 2, 16), (28, 2, 19), (36, 3, 25), (64, 6, 44), (80, 8, 56)]
)
def test_bands_of_the_models_in_the_paper(layers, middle, deep):
    band = bands.split(layers)
    assert band[:2] == (middle, deep)
    counts = np.bincount(band.of, minlength=3)
    np.testing.assert_array_equal(counts, [middle, deep - middle, layers - deep])


def test_smoothing_recursive_and_one_step():
    s = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    f = np.asarray([0.1, 0.3, 0.4, 0.4])
    expected = s.copy()
    for l in (2, 1, 0):
        expected[l] = (1 - f[l]) * s[l] + f[l] * expected[l + 1]
    np.testing.assert_allclose(bands.smooth(jnp.asarray(s), f, recursive=True), expected, rtol=1e-6)
    once = s.copy()
    once[:3] = (1 - f[:3, None]) * s[:3] + f[:3, None] * s[1:]
    np.testing.assert_allclose(bands.smooth(jnp.asarray(s), f, recursive=False), once, rtol=1e-6)
    assert np.abs(once - expected).max() > 1e-3


def test_published_recency_counts_tokens():
    """exp(-k (T - 1 - i)) over token counts, k the same in every layer (paper, section 3.2)."""
    a = np.random.default_rng(1).random((10, 9)).astype(np.float32)
    valid = np.broadcast_to(np.arange(9) < 7, a.shape)
    mix = PAPER._replace(decay=(0.4, 0.4))
    got = importance(jnp.asarray(a), jnp.asarray(valid), mix, bands.split(10))
    scaled = lambda x: (x - x.min()) / (x.max() - x.min() + 1e-6)
    r = scaled(np.exp(-0.4 * np.arange(6, -1, -1)))
    for l in range(10):
        w = 1.0 if l < 1 else 0.0 if l >= 7 else 0.75 - 0.6 * (l - 1) / 6
        np.testing.assert_allclose(got[l, :7], (1 - w) * scaled(a[l, :7]) + w * r, atol=1e-6)
    assert not np.asarray(got[:, 7:]).any()


NEWS = (6, 3, 6, 0, 5, 6, 1, 6)


@pytest.mark.parametrize("positions", ["lazy", "eager", "keep"])
def test_laws(positions):
    memory = published(M, mix=LLAVA, positions=positions)
    states, _ = run(memory, NEWS)
    padded, _ = run(memory, NEWS, size=T + 2)
    for c, (state, longer) in enumerate(zip(states[1:], padded[1:], strict=True)):
        t = state.slots
        n = min(sum(NEWS[: c + 1]), M if c else P + M)
        held = t.modality[..., 0] != 0
        np.testing.assert_array_equal(held, np.broadcast_to(np.arange(M) < n, held.shape))
        assert (np.diff(t.index[:, :n, 0], axis=1) > 0).all()
        assert not t.k[~held].any() and not t.pos[~held].any()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, longer)
        assert (t.modality[:7] != tk.SUMMARY).all()
    assert (states[-1].slots.modality[DEEP] == tk.SUMMARY).any(1).all()
    # A chunk of padding changes nothing.
    jax.tree.map(np.testing.assert_array_equal, states[3], states[4])

    ends = np.stack([s.aux.next_pos[:, 0] for s in states])
    if positions == "keep":
        np.testing.assert_array_equal(ends[-1], P + sum(NEWS))
    else:
        last = states[-1].slots.pos[:, -1, 0, 0]
        np.testing.assert_array_equal(ends[-1], last + 1)
    if positions == "eager":
        every = states[-1].slots.pos[:, :, 0, 0]
        np.testing.assert_array_equal(every, np.broadcast_to(P + np.arange(M), every.shape))


def test_summary_is_the_mean_of_what_was_dropped():
    memory = published(M, mix=LLAVA)
    states, seen = run(memory, (6, 5, 6))
    before, after, chunk = states[2].slots, states[3].slots, seen[2].kv
    for l in range(7, L):
        pool = {n: np.concatenate([getattr(before, n)[l, :11], getattr(chunk, n)[l]])
                for n in ("k", "v", "index", "pos")}  # fmt: skip
        gone = ~np.isin(pool["index"][:, 0], after.index[l, : M - 1, 0])
        assert gone.sum() == 17 - (M - 1)
        np.testing.assert_allclose(after.k[l, -1], pool["k"][gone].mean(0), rtol=1e-5)
        np.testing.assert_allclose(after.v[l, -1], pool["v"][gone].mean(0), rtol=1e-5)
        assert after.index[l, -1, 0] == chunk.index[l, -1, 0] + 1
        assert after.pos[l, -1, 0, 0] == after.pos[l, -2, 0, 0] + 1


def test_without_summary_deep_layers_keep_one_token_more():
    states, _ = run(published(M, summary=False), (6, 6, 6))
    assert (states[-1].slots.modality == tk.VISION).all()


def test_lazy_closes_gaps_only_near_the_limit():
    near = published(M, mix=LLAVA, max_position=40, margin=20)
    far = published(M, mix=LLAVA)
    news = (6,) * 6
    closed = [s.slots.pos[:, :, 0, 0] for s in run(near, news)[0]]
    open_ = [s.slots.pos[:, :, 0, 0] for s in run(far, news)[0]]
    np.testing.assert_array_equal(closed[2], open_[2])  # largest 14 of 20: nothing moves
    contiguous = [(p == P + np.arange(M)).all() for p in closed]
    assert any(contiguous[3:]) and max(p.max() for p in closed) <= 20 + T
    assert max(p.max() for p in open_) > 30


@pytest.mark.parametrize("attention", ["official", "exact"])
def test_probes_pass_only_where_a_band_needs_them(attention):
    memory = published(M, attention=attention)
    states, _ = run(memory, (6, 6))
    assert not look(memory, states[0], rows_of(6, T)).probing.any()
    assert not look(memory, states[2], rows_of(0, T)).probing.any()
    passes = np.asarray(look(memory, states[2], rows_of(6, T)).probing)
    of = bands.split(L).of
    if attention == "official":
        expected = np.stack([of == bands.MIDDLE, of == bands.DEEP], 1)
    else:  # a causal pass begins at the bottom, and ends where nobody reads it any more
        expected = np.stack([of < bands.DEEP, of >= 0], 1)
    np.testing.assert_array_equal(passes, expected)


def test_an_ample_budget_is_full_attention():
    cfg = small.config(layers=3)
    weights, rows = small.params(cfg), small.stream_rows(cfg, 2, 8, lengths=[8, 5])
    spec = small.small_spec(cfg, 8)
    program = make_program(cfg, published(16, positions="keep"), spec)
    plain = make_program(cfg, Full(16), spec)
    probes = probe_rows(weights, [[1, 2, 3], [4, 5]], program=program)
    a, b = init_carry(program), init_carry(plain)
    one = jax.jit(lambda c, r: chunk_step(weights, program, c, r, None, probes))
    other = jax.jit(lambda c, r: chunk_step(weights, plain, c, r))
    for i in range(2):
        a, h = one(a, small.chunk(rows, i))
        b, expected = other(b, small.chunk(rows, i))
    np.testing.assert_allclose(h[:5], expected[:5], atol=1e-5)

    three = probe_rows(weights, [[1], [2], [3]], program=program)
    with pytest.raises(ValueError, match="scores by 2 probes, got 3"):
        chunk_step(weights, program, a, small.chunk(rows, 0), None, three)
    with pytest.raises(ValueError, match="scores by 2 probes, got 0"):
        chunk_step(weights, program, a, small.chunk(rows, 0))


def test_audio_has_a_budget_of_its_own():
    """Vision of any score takes no slot of audio's; a summary takes one of vision's."""
    memory = Hermes(M, audio_share=0.25)
    state = memory.init(SPEC)
    for c in range(4):
        seen = see(look(memory, state, rows_of(T, T)), c, T, T, seed=3)
        kind = seen.kv.modality.copy()
        kind[:, [1, 4]] = tk.AUDIO
        received = seen.probed.received
        mass = received.chunk.copy()
        mass[..., [1, 4]] = 0.0  # nobody attends to audio
        probed = seen.probed._replace(received=received._replace(chunk=mass))
        seen = seen._replace(kv=seen.kv._replace(modality=kind), probed=probed)
        state = jax.device_get(write(memory, state, seen))
    kinds = state.slots.modality[..., 0]
    assert np.all((kinds == tk.AUDIO).sum(1) == 3)
    assert np.all((kinds != tk.EMPTY).sum(1) == M)


def test_without_audio_all_slots_are_for_pictures():
    """Audio's part is lent: kept sets are those without a part for audio."""
    states, _ = run(Hermes(M, audio_share=0.5), NEWS)
    every, _ = run(published(M), NEWS)
    jax.tree.map(np.testing.assert_array_equal, states[-1], every[-1])


def test_a_stream_of_audio_alone_fills_the_budget():
    """Its summaries are no pictures: they claim none of the slots that pictures lend."""
    memory = Hermes(M, audio_share=0.25)
    state = memory.init(SPEC)
    for c in range(4):
        seen = see(look(memory, state, rows_of(T, T)), c, T, T, seed=3)
        seen = seen._replace(kv=seen.kv._replace(modality=np.full_like(seen.kv.modality, tk.AUDIO)))
        state = jax.device_get(write(memory, state, seen))
    assert (state.slots.modality != tk.EMPTY).all()
    assert (state.slots.modality[DEEP] == tk.SUMMARY).any(1).all()


def test_guidance_carries_the_last_round():
    middle, deep = guidance()
    assert middle.endswith(deep) and middle != deep
    middle, deep = guidance(("Where is the cat?", "outside"))
    assert all("Question: Where is the cat? Answer: outside" in text for text in (middle, deep))


def test_prompts_are_the_published_guidance_in_order():
    """Fault 4: the middle band is led by both prompts, the deep one by the story; bare text."""
    last = ("Where is the cat?", "outside")
    for attention in ("official", "exact"):
        memory = Hermes(M, attention=attention)
        count, form = memory.requires.probes
        assert (count, form) == (2, "embedding" if attention == "official" else "causal")
        assert memory.prompts() == tuple(Prompt(text, "text") for text in guidance())
        # A question never changes a stream, unless asked for: as published.
        assert memory.prompts(last) == memory.prompts()
        guided = replace(memory, dialogue=True)
        assert guided.prompts(last) == tuple(Prompt(text) for text in guidance(last))
        assert guided.prompts() == memory.prompts()


def test_the_text_of_the_guidance_reaches_the_model():
    """Fault 4: what a program's probes are is the memory's guidance, in the model's tokens."""
    written = []

    def tokenize(text):
        written.append(text)
        return np.arange(len(text.split()))

    model = SimpleNamespace(
        name="a model", tokenize_text=tokenize, answer_start=None, text_steps=None, probes=()
    )
    last = ("Where is the cat?", "outside")
    probes = probes_of(model, Hermes(M))
    assert tuple(written) == guidance()
    assert [len(p.ids) for p in probes] == [len(text.split()) for text in guidance()]
    written.clear()
    probes_of(model, Hermes(M, dialogue=True), last)
    assert tuple(written) == guidance(last)


def test_the_position_limit_is_that_of_the_model():
    """Lazy closing begins at `max_position`, else at the spec's, else at the released models'."""
    memory, news = published(M, mix="llava", margin=20), (6,) * 6

    def last(memory, spec):
        state = memory.init(spec)
        for c, new in enumerate(news):
            rows = rows_of(new, T)
            seen = see(memory.view(spec, state, rows), c, new, T, seed=0)
            state = jax.device_get(step(memory, spec, state, seen))
        return state.slots.pos[:, :, 0, 0]

    step = jax.jit(lambda memory, spec, *a: memory.write(spec, *a)[0], static_argnums=(0, 1))
    near, far = last(replace(memory, max_position=40), SPEC), last(memory, SPEC)
    assert near.max() < far.max()
    np.testing.assert_array_equal(last(memory, replace(SPEC, max_position=40)), near)
    np.testing.assert_array_equal(
        last(replace(memory, max_position=999), replace(SPEC, max_position=40)), far
    )


def test_mixes_have_names():
    by_name, mix = published(M, mix="llava"), published(M, mix=LLAVA)
    for a, b in zip(run(by_name, NEWS)[0], run(mix, NEWS)[0], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert published(M).mix == "qwen" and QWEN != LLAVA
    assert by_name == published(M, mix="llava") and hash(by_name) == hash(published(M, mix="llava"))


@pytest.mark.parametrize("budget", [2, 3, Hermes.smallest])
@pytest.mark.parametrize("audio_share", [None, 1 / 6])
def test_small_budgets_are_filled(budget, audio_share):
    states, _ = run(Hermes(budget, audio_share=audio_share), NEWS)
    kind = states[-1].slots.modality
    assert (kind != tk.EMPTY).all() and (kind[DEEP] == tk.SUMMARY).any(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1}, r"at least 2 slots.* raise the budget to 2"),
        ({"budget": 4, "audio_share": 0.75}, r"raise the budget to 6"),
        ({"budget": 9, "audio_share": 1.0}, r"lower audio_share"),
        ({"budget": 0}, "budget of at least 1"),
        ({"budget": 8, "attention": "manual"}, "'official', 'exact', got 'manual'"),
        ({"budget": 8, "positions": "never"}, "'lazy', 'eager', 'keep', got 'never'"),
        ({"budget": 8, "smoothing": (0.1, 2.0, 0.4)}, "between 0 and 1"),
        ({"budget": 8, "shares": (0.6, 0.6)}, "at most 1"),
        ({"budget": 8, "mix": "mine"}, "one of 'qwen', 'llava', 'paper'"),
        ({"budget": 8, "max_position": 0}, "max_position"),
        ({"budget": 8, "margin": -1}, "margin"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Hermes(**options)
