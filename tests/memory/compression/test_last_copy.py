"""LastCopy: its score against a loop in float64, its floor, its text, what it carries."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, cut, stream

import jaxmem as jm
from jaxmem.kernels.similarity import nearest_newer
from jaxmem.kv import AUDIO, EMPTY, SUMMARY, TEXT, VISION
from jaxmem.memory import MEMORIES as TABLE
from jaxmem.memory.baselines import Full
from jaxmem.memory.by_name import build
from jaxmem.memory.compression.criticalkv import OverScore
from jaxmem.memory.compression.last_copy import MOST, LastCopy, counted
from jaxmem.memory.parts.scored import Candidates, Scored
from jaxmem.memory.parts.scores import standing
from jaxmem.rope import Rope

BUDGET = 16
MEMORIES = {
    "last_copy": LastCopy(BUDGET, audio_share=0.25),
    "carried": LastCopy(BUDGET, audio_share=0.25, carry=True, text="attention", kernel=3),
    "shared": LastCopy(BUDGET, per_head=False, audio_share=None, carry=True, text="copies"),
    "counted": LastCopy(BUDGET, per_head=False, audio_share=0.25, count=1.0),
}
FAST = ("keydiff", "infinipot_v")
SCORED = [n for n, kind in TABLE.items() if issubclass(kind, (Scored, OverScore))]
FLOORED = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SCORED]
OPTIONS = {"retention": {"logits": False}}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "name", [n if n == "carried" else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]
)
def test_law(name, law):
    LAWS[law](MEMORIES[name])


def newer_by_hand(keys, kind, first=0):
    """Return every row's largest cosine with a later row of its kind, from row `first` on."""
    return nearest_by_hand(keys, kind, first)[0]


def nearest_by_hand(keys, kind, first=0):
    """Return what `newer_by_hand` does, and which row it is; -1 where there is none."""
    keys = np.asarray(keys, np.float64)
    kind = np.broadcast_to(kind, keys.shape[:2])
    out, at = np.full(keys.shape[1::-1], -1.0), np.full(keys.shape[1::-1], -1)
    for g in range(keys.shape[1]):
        for i in range(len(keys)):
            for j in range(max(i + 1, first), len(keys)):
                if kind[i, g] == kind[j, g] != EMPTY:
                    a, b = keys[i, g], keys[j, g]
                    like = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                    if like > out[g, i]:
                        out[g, i], at[g, i] = like, j
    return out, at


@pytest.mark.parametrize("first", [0, 6])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("block", [4, 16])
def test_the_largest_newer_cosine_equals_a_loop(first, groups, block):
    """In tiles (4 rows of 11) or at once; the whole pool, or the rows of a chunk behind it."""
    rng = np.random.default_rng(first + groups)
    keys = rng.normal(size=(11, 2, 4)).astype(np.float32)
    kind = rng.choice([EMPTY, VISION, AUDIO], (11, groups)).astype(np.int8)
    found, at = nearest_newer(keys, kind, keys[first:], kind[first:], first, block=block)
    assert found.dtype == jnp.float32 and at.dtype == jnp.int32
    like, place = nearest_by_hand(keys, kind, first)
    np.testing.assert_allclose(found, like, atol=1e-6)
    np.testing.assert_array_equal(np.where(place < 0, -1, at), place)


def kept_of(memory, chunks):
    """Return the arrival numbers that every head holds."""
    state, _ = laws.run(memory, memory.init(SPEC), chunks)
    kv = jax.device_get(state.slots.kv)
    return [
        (kv.index[:, g][kv.modality[:, g] != EMPTY] - 1) // 2 for g in range(kv.modality.shape[1])
    ]


@pytest.mark.parametrize("carry", [False, True])
def test_a_stream_equals_a_loop(carry):
    """Which tokens are kept, head by head: one modality, no floor."""
    flat = stream(sum(CUTS), 3, kinds=[VISION] * sum(CUTS))
    memory = LastCopy(BUDGET, floor=0.0, audio_share=None, text="copies", carry=carry)
    k, wanted = np.asarray(flat.tokens.k, np.float64), []
    for g in range(SPEC.kv_heads):
        held, likeness, seen = [], {}, 0
        for size in CUTS:
            new = list(range(seen, seen + size))
            pool, seen = held + new, seen + size
            found = newer_by_hand(k[pool][:, g : g + 1], VISION, len(held) if carry else 0)[0]
            like = dict(zip(pool, found, strict=True))
            likeness = {i: max(like[i], likeness.get(i, -1.0) if carry else -1.0) for i in pool}
            best = sorted(pool, key=lambda i: (likeness[i], -i))[:BUDGET]
            held = sorted(best)
        wanted.append(held)
    np.testing.assert_array_equal(kept_of(memory, cut(flat, CUTS, 8)), wanted)


def repeated():
    """Return eight scenes of four pictures, the last six of them copies of the first two."""
    flat = stream(32, 5, kinds=[VISION] * 32)
    scene = np.array([0, 1, 0, 1, 0, 1, 0, 1]).repeat(4) * 4 + np.tile(np.arange(4), 8)
    return flat._replace(tokens=flat.tokens._replace(k=flat.tokens.k[scene]))


def test_the_last_copy_of_every_scene_is_kept():
    memory = LastCopy(8, floor=0.0, audio_share=None)
    for kept in kept_of(memory, cut(repeated(), [8] * 4, 8)):
        np.testing.assert_array_equal(kept, np.arange(24, 32))


@pytest.mark.parametrize(("carry", "wanted"), [(False, [0, 1, 4]), (True, [0, 3, 4])])
def test_what_was_seen_again_stays_so_when_the_copy_goes(carry, wanted):
    """Token 2 resembles 1 and goes for token 3; then 1 is alone again, unless that is carried."""
    flat = stream(8, 1, kinds=[VISION] * 8)
    angle = np.deg2rad([200, 0, 25, 45, 80, 0, 0, 0])[:, None]
    k = np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0 * angle], -1).repeat(2, 1)
    flat = flat._replace(tokens=flat.tokens._replace(k=k.astype(np.float32)))
    memory = LastCopy(3, floor=0.0, audio_share=None, carry=carry)
    for kept in kept_of(memory, cut(flat, [1] * 5, 8)):
        np.testing.assert_array_equal(kept, wanted)


def counted_by_hand(copies, kept, to):
    """Return what every entry of a pool stands for: what goes counts for where it leads to."""
    copies = copies.astype(int)
    total = np.where(np.isin(np.arange(len(copies)), kept), copies, 0)
    for i in set(range(len(copies))) - set(kept):
        j = i
        while j < len(copies) and j not in kept:
            j = to[j]
        if j < len(copies):
            total[j] += copies[i]
    return np.minimum(total, MOST)


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_copies_are_counted(seed):
    """Equal to a loop: chains of any length, what leads nowhere, counts that no longer fit."""
    rng, n = np.random.default_rng(seed), 40
    copies = rng.integers(0, 120, n).astype(np.uint8)
    kept = np.sort(rng.choice(n, 6, replace=False))
    to = np.minimum(np.arange(n) + rng.integers(1, 4, n), n)  # the last ones lead nowhere
    found = counted(copies, np.r_[kept, 0, 0], np.arange(8) < 6, jnp.asarray(to))
    np.testing.assert_array_equal(found, counted_by_hand(copies, kept, to))
    assert MOST in found and found.dtype == jnp.uint8


def test_a_copy_that_is_counted_has_the_attention_of_all():
    """Of two scenes 40 and 24 copies: four slots are read as if all of them were held."""
    scene = np.where(np.arange(64) < 40, 1, 0)
    flat = stream(64, kinds=[VISION] * 64)
    k, v = flat.tokens.k[scene], flat.tokens.v[scene]
    chunks = cut(flat._replace(tokens=flat.tokens._replace(k=k, v=v)), [8] * 8, 8)
    spec, own = replace(SPEC, rope=Rope((0.0, 0.0), (0, 0))), jm.embeds(np.zeros((1, 6)), axes=3)
    # What the question says of itself is far below the rest.
    row = np.ones((1, 4, 4), np.float32), np.full((1, 2, 4), -100.0), np.zeros((1, 2, 4))

    def read(memory):
        state = laws.run(memory, memory.init(SPEC), chunks)[0]
        return jm.attend_question(memory, spec, state, *map(jnp.float32, row), own)[0]

    few = lambda count: LastCopy(4, floor=0.0, audio_share=None, count=count)
    every = read(Full(64))
    assert np.abs(read(few(1.0)) - every).max() < 1e-5 < 1e-2 < np.abs(read(few(0)) - every).max()
    half = np.abs(read(few(0.5)) - every).max()
    assert 1e-2 < half < np.abs(read(few(0)) - every).max()


def test_text_and_what_is_unlike_are_not_counted():
    memory = LastCopy(4, floor=0.0, audio_share=None, count=1.0)
    for kinds, same in (([TEXT] * 16, True), ([VISION] * 16, False)):
        flat = stream(16, kinds=kinds)
        k = np.ones_like(flat.tokens.k) if same else flat.tokens.k
        chunks = cut(flat._replace(tokens=flat.tokens._replace(k=k)), [8] * 2, 8)
        np.testing.assert_array_equal(
            laws.run(memory, memory.init(SPEC), chunks)[0].slots.copies, 1
        )


@pytest.mark.parametrize("name", FLOORED)
def test_the_floor_holds_the_newest_of_pictures_and_of_sound(name):
    """Written once, for every memory that scores."""
    memory = build(name, 16, SPEC, {"audio_share": 0.25, "floor": 0.5, **OPTIONS.get(name, {})})
    kinds = [VISION] * 6 + [AUDIO] * 2
    flat = stream(64, 2, kinds=kinds * 8)
    chunks = cut(flat, [8] * 8, 8)
    state, _ = laws.run(memory, memory.init(SPEC), chunks)
    kv = jax.device_get(memory.kv(state))
    for g in range(kv.modality.shape[1]):
        for kind, slots in ((VISION, 6), (AUDIO, 2)):
            newest = np.flatnonzero(flat.tokens.modality[:, 0] == kind)[-slots:]
            of = (kind, SUMMARY) if kind == VISION else (kind,)  # StreamMem folds some into means
            held = (kv.index[:, g][np.isin(kv.modality[:, g], of)] - 1) // 2
            assert set(newest) <= set(held.tolist())


def test_text_competes_by_its_rank_among_text():
    """Six texts and six pictures for eight slots: four of each, whatever the scores' ranges."""
    memory = LastCopy(8, floor=0.0, audio_share=None)
    flat = stream(12, 4, kinds=[TEXT, VISION] * 6)
    kept = kept_of(memory, cut(flat, [12], 12))
    for g, held in enumerate(kept):
        text = np.asarray(flat.tokens.k[::2, g], np.float64)
        unit = text / np.linalg.norm(text, axis=-1, keepdims=True)
        unlike = -(unit @ unit.mean(0)) / np.linalg.norm(unit.mean(0))
        assert [i for i in held if i % 2 == 0] == sorted(2 * np.argsort(-unlike)[:4])
        novel = -newer_by_hand(flat.tokens.k[1::2], VISION)[g]
        assert [i for i in held if i % 2] == sorted(2 * np.argsort(-novel, kind="stable")[:4] + 1)


def test_ranks_of_keys_and_of_attention_add_up():
    """Equal keys rank by age alone: 1 to 6. Each head has its own attention."""
    memory = LastCopy(2, floor=0.0, audio_share=None, text="attention")
    kv = stream(6, 4, kinds=[TEXT] * 6).tokens
    kv = laws.spread(kv._replace(k=np.ones_like(kv.k)), 2)
    given = np.zeros((2, 6), np.float32)
    given[0, [1, 3]], given[1, [0, 4]] = 1.0, 2.0
    n = jnp.int32(6)
    of = lambda got: memory.score(Candidates(kv, got, n, n, jnp.zeros(3, int), None, SPEC))
    score = laws.compiled(of)(given)
    # Ranks of attention are 1 5 2 6 3 4 and 5 1 2 3 6 4; of equal sums the newer one wins.
    order = [[0, 2, 1, 4, 3, 5], [1, 2, 0, 3, 5, 4]]
    np.testing.assert_array_equal(np.argsort(score), order)
    with pytest.raises(ValueError, match="LastCopy scores by Chunk.received, which is None"):
        of(None)


def test_a_kernel_keeps_what_stands_beside_the_unlike():
    """Ranks of twelve texts are averaged over three neighbours, and the five largest are kept."""
    memory = LastCopy(5, floor=0.0, audio_share=None, kernel=3)
    flat = stream(12, 4, kinds=[TEXT] * 12)
    for g, held in enumerate(kept_of(memory, cut(flat, [12], 12))):
        text = np.asarray(flat.tokens.k[:, g], np.float64)
        unit = text / np.linalg.norm(text, axis=-1, keepdims=True)
        rank = np.argsort(np.argsort(-(unit @ unit.mean(0)))) + 1
        beside = np.convolve(rank, np.ones(3), "same")
        newest = np.arange(12)[::-1]  # of equal means the newer is kept
        best = sorted(newest, key=lambda i, beside=beside: -beside[i])
        assert sorted(held) == sorted(best[:5]) != sorted(np.argsort(-rank)[:5])


def test_standing_is_a_share_of_the_members():
    scores = jnp.asarray([[3.0, -5.0, 1.0, 1.0, 9.0]])
    members = jnp.asarray([[True, True, True, True, False]])
    np.testing.assert_allclose(standing(scores, members), [[1.0, 0.25, 0.5, 0.75, 0.0]])


@pytest.mark.slow
def test_ample_budget_is_full_attention_in_the_decoder():
    small.assert_full_attention(*small.streamed(LastCopy(64, carry=True, audio_share=0.25)))


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="text to be one of 'copies', 'keys', 'attention'"):
        LastCopy(8, text="words")
    with pytest.raises(ValueError, match="odd kernel of at least 1, got kernel=4"):
        LastCopy(8, kernel=4)
    with pytest.raises(ValueError, match=r"text='copies' scores it like the others, got kernel=3"):
        LastCopy(8, kernel=3, text="copies")
    with pytest.raises(ValueError, match=r"floor between 0 and 1, got floor=1.5"):
        LastCopy(8, floor=1.5)
    with pytest.raises(ValueError, match="soft=1.0 for LastCopy"):
        LastCopy(8, soft=1.0)
    with pytest.raises(ValueError, match=r"count between 0 and 1, got count=2"):
        LastCopy(8, count=2)
    with pytest.raises(ValueError, match="leave one of them out"):
        LastCopy(8, count=0.5, carry=True)
    with pytest.raises(ValueError, match="WithBank takes it with count=0"):
        jm.WithBank(jm.Quantized(LastCopy(8, count=0.5)), 64)
