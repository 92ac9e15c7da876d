"""Ada-KV: a plain loop over heads, bytes, the laws per head, and the decoder."""

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, held, pick, standard, stream
from test_criticalkv import Plain, masses, norms

from jaxmem import kv as tk
from jaxmem.memory.compression import head_ragged as ragged
from jaxmem.memory.compression.adakv import AdaKV
from jaxmem.memory.compression.criticalkv import CriticalKV
from jaxmem.memory.compression.expected_attention import ExpectedAttention
from jaxmem.memory.compression.h2o import H2O
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.exchange import Requires
from jaxmem.memory.sizes import nbytes

BUDGET = 16


@dataclass(frozen=True)
class Uneven(Plain):
    """Attention received, of which head 0 receives more."""

    def score(self, candidates):
        return candidates.received * jnp.asarray([[1.5], [1.0]])


UNEVEN = Uneven(BUDGET, audio_share=None)
MEMORIES = {
    "published": AdaKV(UNEVEN),
    "kinds": AdaKV(Uneven(BUDGET, audio_share=0.25)),
    "mix": AdaKV(UNEVEN, alpha=0.5, mix=True),
    "most": AdaKV(UNEVEN, most=1.25),
    "critical": AdaKV(UNEVEN, first=0.5),
    "snapkv": AdaKV(SnapKV(BUDGET, window=3, kernel=5, audio_share=0.25)),
    "expected": AdaKV(ExpectedAttention(BUDGET, future=7), alpha=0.4),
}


@cache
def trace(name):
    """Return what a question reads after every chunk of the standard stream."""
    memory = MEMORIES[name]

    def body(state, chunk):
        state = laws.step(memory, state, chunk)
        return state, memory.recall(SPEC, state, None)

    final, views = laws.compiled(partial(jax.lax.scan, body))(memory.init(SPEC), standard())
    return jax.device_get((final, views))


@pytest.mark.parametrize("law", ["scan_vmap_and_loop", "padding_and_room"])
@pytest.mark.parametrize("name", ["kinds", "critical"])
def test_laws_of_the_flat_pool(name, law):
    LAWS[law](MEMORIES[name])


@pytest.mark.parametrize("name", MEMORIES)
def test_laws_of_every_head(name):
    """Valid slots first and in order, kept ones as written and for good, everything while it fits,
    and no more slots in use than there are."""
    final, views = trace(name)
    written = laws.spread(stream(sum(CUTS)).tokens, 2)
    most = views.kv.modality.shape[1]
    for g in range(2):
        tokens = [laws.of_head(pick(views.kv, c), g) for c in range(len(CUTS))]
        for c, one in enumerate(tokens):
            n = len(held(one))
            assert (one.modality[:n] != 0).all() and not one.k[n:].any()
            assert (np.diff(held(one)) > 0).all()
            seen = sum(CUTS[: c + 1])
            if seen <= int(0.5 * BUDGET):
                np.testing.assert_array_equal(held(one), 2 * np.arange(seen) + 1)
        laws._check_subset(laws.of_head(written, g), tokens)
    used = np.sum(views.kv.modality != 0, axis=(1, 2))
    assert used.max() <= 2 * BUDGET
    if name in ("published", "critical", "most"):  # others divide by kind or round down
        assert (used[np.cumsum(CUTS) >= most] == 2 * BUDGET).all()
    np.testing.assert_array_equal(np.sum(views.kv.modality[-1] != 0, 0), final.aux.counts)
    np.testing.assert_array_equal(views.base, standard().end)


def loop(name):
    """Yield what the heads hold after every chunk, by lists and dictionaries."""
    flat, chunks = stream(sum(CUTS)), standard()
    kinds, weight = flat.tokens.modality[:, 0], norms(flat.tokens.v)
    alpha = 0.5 if name == "mix" else 0.2
    kept, begin = [[], []], 0
    for c, cut in enumerate(CUTS):
        s = [masses([*kept[g], *range(begin, begin + cut)], chunks, c, g) for g in range(2)]
        s[0] = {i: np.float32(1.5) * x for i, x in s[0].items()}
        begin += cut
        sound = {i for head in s for i in head if kinds[i] == tk.AUDIO}
        rest = {i for head in s for i in head} - sound
        parts = [(rest, 12), (sound, 4)] if name == "kinds" else [(rest | sound, BUDGET)]
        kept = [[], []]
        for part, cap in parts:
            ranked = [sorted((i for i in h if i in part), key=lambda i, h=h: -h[i]) for h in s]
            if name == "most":
                ranked = [r[: int(1.25 * cap)] for r in ranked]
            safe = 0 if name == "mix" else int(alpha * cap)
            free = [(s[g][i], g) for g in range(2) for i in ranked[g][safe:]]
            spare = 2 * cap - sum(min(safe, len(r)) for r in ranked)
            won = [g for _, g in sorted(free, reverse=True)[:spare]]
            counts = [min(safe, len(ranked[g])) + won.count(g) for g in range(2)]
            if name == "mix":
                counts = [int(alpha * cap + (1 - alpha) * n) for n in counts]
            for g in range(2):
                take = ranked[g][: counts[g]]
                if name == "critical":
                    sure = max(safe, counts[g] // 2)
                    tail = sorted(
                        ranked[g][sure:], key=lambda i, g=g: -(s[g][i] + 1e-4) * weight[i, g]
                    )
                    take = ranked[g][:sure] + tail[: counts[g] - sure]
                kept[g] += take
        kept = [sorted(k) for k in kept]
        yield kept


@pytest.mark.parametrize("name", ["published", "kinds", "mix", "most", "critical"])
def test_a_plain_loop_keeps_the_same(name):
    _, views = trace(name)
    differ = 0
    for c, kept in enumerate(loop(name)):
        for g in range(2):
            tokens = pick(views.kv, c)
            ours = tokens.index[:, g][tokens.modality[:, g] != 0]
            np.testing.assert_array_equal((ours - 1) // 2, kept[g], err_msg=f"chunk {c} head {g}")
        differ += len(kept[0]) != len(kept[1])
    assert differ >= 3, "heads hold the same numbers"


def test_bytes_are_those_of_the_total():
    """As many as a memory whose heads hold `budget` each; only the counts come on top."""
    even = CriticalKV(Uneven(BUDGET))
    ours = AdaKV(Uneven(BUDGET), first=0.5)
    counts = SPEC.layers * SPEC.kv_heads * 4
    assert nbytes(ours, SPEC) == nbytes(even, SPEC) + counts
    slot = 2 * SPEC.head_dim * 4 + SPEC.axes * 4 + 4 + 1
    state = AdaKV(Uneven(BUDGET)).init(SPEC)
    assert sum(x.nbytes for x in jax.tree.leaves(state.slots)) == SPEC.kv_heads * BUDGET * slot


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.29, 0.3, 0.57, 0.7, 0.999])
@pytest.mark.parametrize("share", [None, 0.25, 1 / 6])
def test_what_a_head_may_hold_is_what_is_read_of_it(alpha, share):
    """Sizes of arrays and limits that are data round shares of a budget alike."""
    for budget in (*range(1, 12), 50, 96, 100, 110, 1024, 4100):
        memory = AdaKV(Uneven(budget, audio_share=share), alpha=alpha)
        for groups in (2, 8):
            for even in (memory.quotas, (sum(memory.quotas), *[0] * (len(memory.quotas) - 1))):
                even = np.asarray(even, np.int32)
                safe = (np.float32(alpha) * even.astype(np.float32)).astype(np.int32)
                most = np.asarray(memory._limits(jnp.asarray(even), jnp.asarray(safe), groups))
                assert most.sum() <= memory.width(groups)


def test_contiguous_positions_put_the_newest_token_before_the_chunk():
    memory = AdaKV(Uneven(BUDGET, audio_share=None, reindex=True))
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    view = memory.recall(SPEC, state, None)
    counts = np.asarray(state.aux.counts)
    assert counts[0] != counts[1]
    np.testing.assert_array_equal(view.base, [counts.max()] * 3)
    for g, n in enumerate(counts):
        want = np.arange(counts.max() - n, counts.max())[:, None] + [[0] * 3]
        np.testing.assert_array_equal(view.kv.pos[:n, g], want)


def test_flat_pools_of_three_heads_pack_and_unpack():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 9)) < [[0.9], [0.3], [0.5]]
    x = rng.normal(size=(9, 3, 2)).astype(np.float32)
    flat, counts = ragged.pack(jnp.asarray(x), jnp.asarray(mask), jnp.asarray(20), 22)
    np.testing.assert_array_equal(counts, mask.sum(axis=1))
    assert flat.shape == (22, 1, 2) and not np.asarray(flat[int(counts.sum()) :]).any()
    spread = ragged.unpack(flat, counts, 9)
    pool = ragged.after(spread, jnp.ones((2, 3, 2)), counts)
    for g, n in enumerate(counts):
        np.testing.assert_array_equal(spread[:n, g], x[mask[g], g])
        np.testing.assert_array_equal(pool[9 - n : 9, g], x[mask[g], g])
        assert not np.asarray(spread[n:, g]).any()
    np.testing.assert_array_equal(pool[9:], np.ones((2, 3, 2)))


def test_ample_budget_is_full_attention_in_the_decoder():
    memory = AdaKV(SnapKV(40, window=3, kernel=3, audio_share=0.5), first=0.5)
    small.assert_full_attention(*small.streamed(memory))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"first": -0.5}, "first"),
        ({"most": 0.5}, "most"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaKV(Uneven(8), **options)


def test_scores_without_a_home_are_refused():
    with pytest.raises(ValueError, match="sliding"):
        AdaKV(Sliding(8))
    with pytest.raises(ValueError, match="audio_share"):
        AdaKV(Uneven(8, audio_share=2.0))
    with pytest.raises(ValueError, match="adds nothing up"):
        AdaKV(H2O(8))


@dataclass(frozen=True)
class Sliding(Plain):
    @property
    def requires(self):
        return Requires(window=4)
