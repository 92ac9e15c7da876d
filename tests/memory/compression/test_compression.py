"""SnapKV, H2O, TOVA, Knorm, KeyDiff: the laws, and what each of them promises beyond."""

import dataclasses

import jax
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, cut, held, pick, standard, stream

from jaxmem import kv as tk
from jaxmem.memory.compression.h2o import H2O
from jaxmem.memory.compression.keydiff import KeyDiff
from jaxmem.memory.compression.knorm import Knorm
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.compression.tova import TOVA
from jaxmem.memory.parts.scored import Candidates
from jaxmem.rope import rope

BUDGET = 16
MEMORIES = {
    "snapkv": SnapKV(BUDGET, window=3, audio_share=0.25),
    "snapkv_shared": SnapKV(BUDGET, window=3, per_head=False, audio_share=None),
    "h2o": H2O(BUDGET, audio_share=0.25),
    "tova": TOVA(BUDGET, audio_share=0.25),
    "knorm": Knorm(BUDGET, audio_share=0.25),
    "keydiff": KeyDiff(BUDGET, audio_share=0.25),
    "keydiff_shared": KeyDiff(BUDGET, per_head=False, rotated=False, audio_share=None),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", MEMORIES)
def test_law(name, law):
    LAWS[law](MEMORIES[name])


def after(memory, chunks):
    state, _ = laws.run(memory, memory.init(SPEC), chunks)
    return jax.device_get(state)


def of_heads(tokens):
    """Return the arrival numbers that every head holds; the stream's order is 2 * arrival + 1."""
    groups = tokens.modality.shape[1]
    return [(held(laws.of_head(tokens, g)) - 1) // 2 for g in range(groups)]


@pytest.mark.parametrize("name", ["snapkv", "h2o", "knorm", "keydiff"])
def test_heads_keep_different_tokens(name):
    one, two = of_heads(after(MEMORIES[name], standard()).slots.kv)
    assert len(one) == len(two) and set(one.tolist()) != set(two.tolist())


def test_knorm_is_the_smallest_norms_of_the_whole_stream():
    """A norm never changes, so what is held is the best of everything seen."""
    flat = stream(sum(CUTS))
    state = after(Knorm(BUDGET, audio_share=None), standard())
    norms = np.linalg.norm(flat.tokens.k, axis=-1)
    for g, kept in enumerate(of_heads(state.slots.kv)):
        np.testing.assert_array_equal(kept, np.sort(np.argsort(norms[:, g])[:BUDGET]))


def test_audio_has_its_own_part_of_the_budget():
    """Loud pictures cannot push audio out: its part holds audio's own best."""
    flat = stream(sum(CUTS))
    quiet = flat.tokens.modality[:, 0] == tk.AUDIO
    k = flat.tokens.k * np.where(quiet, 100.0, 1.0)[:, None, None].astype(np.float32)
    chunks = cut(flat._replace(tokens=flat.tokens._replace(k=k)), CUTS, 8)
    for share, want in ((0.25, 4), (None, 0)):
        memory = Knorm(BUDGET, audio_share=share)
        kinds = after(memory, chunks).slots.kv.modality
        np.testing.assert_array_equal(np.sum(kinds == tk.AUDIO, axis=0), [want, want])


def test_tova_keeps_the_same_tokens_in_all_heads():
    state = after(MEMORIES["tova"], standard())
    assert state.slots.kv.modality.shape[1] == 1
    assert held(state.slots.kv)[-1] == 2 * (sum(CUTS) - 1) + 1


@pytest.mark.parametrize("budget", [1, 2, 3])
@pytest.mark.parametrize("build", [SnapKV, H2O, TOVA, Knorm, KeyDiff])
def test_few_slots_are_a_memory(build, budget):
    for kept in of_heads(after(build(budget, audio_share=None), standard()).slots.kv):
        assert len(kept) == budget


@pytest.mark.parametrize("budget", [8, 9, 64])
def test_half_of_the_slots_at_most_are_for_the_window(budget):
    """What it shows: the defaults are those of the paper at every budget."""
    memory = SnapKV(budget)
    assert memory.window == 32 and memory.requires.attention.last == min(32, budget // 2)
    state = after(SnapKV(budget, audio_share=None), standard())
    newest = np.arange(sum(CUTS) - budget // 2, sum(CUTS))
    for kept in of_heads(state.slots.kv):
        np.testing.assert_array_equal(kept[-len(newest) :], newest[newest >= 0])
        assert budget > sum(CUTS) or kept[0] < sum(CUTS) - budget


def difference_by_hand(k, pos, rotary):
    """Return -cos of every key with the mean of the unit keys, [N, G]."""
    k = np.asarray(k if rotary is None else rope(k, pos, rotary), np.float64)
    unit = k / np.linalg.norm(k, axis=-1, keepdims=True)
    mean = unit.mean(axis=0, keepdims=True)
    return -np.sum(unit * mean, axis=-1) / np.linalg.norm(mean, axis=-1)


@pytest.mark.parametrize("reindex", [False, True])
@pytest.mark.parametrize("rotated", [True, False])
def test_keydiff_compares_keys_where_they_are_read(rotated, reindex):
    memory, cuts = KeyDiff(BUDGET, rotated=rotated, reindex=reindex, audio_share=None), [12]
    flat = stream(12)
    seen = laws.see(memory, memory.init(SPEC), pick(cut(flat, cuts, 16), 0))
    found: Candidates = memory.candidates(SPEC, memory.init(SPEC), seen)
    pos = np.arange(12)[:, None, None] + np.zeros((1, 1, 3), int) if reindex else flat.tokens.pos
    want = difference_by_hand(flat.tokens.k, pos, SPEC.rope if rotated else None)
    np.testing.assert_allclose(memory.score(found)[:, :12].T, want, rtol=1e-4, atol=1e-5)
    other = difference_by_hand(flat.tokens.k, pos, None if rotated else SPEC.rope)
    assert np.abs(other - want).max() > 0.1


def test_keydiff_needs_the_rotary_embedding_for_positions():
    spec = dataclasses.replace(SPEC, rope=None)
    memory = KeyDiff(BUDGET)
    seen = laws.see(memory, memory.init(spec), pick(standard(), 0))
    with pytest.raises(ValueError, match=r"KeyDiff needs Spec\.rope"):
        memory.write(spec, memory.init(spec), seen)
    assert KeyDiff(BUDGET, rotated=False).write(spec, memory.init(spec), seen)


def test_equal_options_are_equal():
    for memory in MEMORIES.values():
        again = dataclasses.replace(memory)
        assert memory == again and hash(memory) == hash(again)


def test_h2o_adds_up_what_every_row_gave():
    """Against a plain loop over chunks with Python sets and a dictionary of sums."""
    memory = H2O(BUDGET, audio_share=None)
    state, chunks = memory.init(SPEC), standard()
    sums = [{}, {}]
    write = compiled(lambda s, c: (laws.see(memory, s, c), laws.step(memory, s, c)))
    for c in range(len(CUTS)):
        seen, state = jax.device_get(write(state, pick(chunks, c)))
        for g, total in enumerate(sums):
            before = sorted(total)
            for i, number in enumerate(before):
                total[number] += seen.received.memory[g, i]
            for t, number in enumerate(seen.kv.index[: CUTS[c], g].tolist()):
                total[number] = seen.received.chunk[g, t]
            numbers = sorted(total)
            newest = numbers[-8:]
            rest = sorted(numbers[:-8], key=lambda i: -total[i])[: BUDGET - len(newest)]
            sums[g] = {i: total[i] for i in sorted(newest + rest)}
            tokens = laws.of_head(state.slots.kv, g)
            np.testing.assert_array_equal(held(tokens), sorted(sums[g]))
            n = len(sums[g])
            want = [sums[g][i] for i in sorted(sums[g])]
            np.testing.assert_allclose(state.slots.received[:n, g], want, rtol=1e-6)


@pytest.mark.parametrize("name", MEMORIES)
def test_ample_budget_is_full_attention_in_the_decoder(name):
    """Through the loop, whatever is scored."""
    memory = dataclasses.replace(MEMORIES[name], budget=64)
    small.assert_full_attention(*small.streamed(memory))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SnapKV(8, window=0), "window of at least 1"),
        (lambda: SnapKV(8, window=2, kernel=4), "odd"),
        (lambda: H2O(8, recent=1.5), "recent"),
        (lambda: Knorm(0), "at least 1"),
        (lambda: Knorm(8, audio_share=2.0), "audio_share"),
        (lambda: Knorm(8, newest=9), "newest=9"),
        (lambda: TOVA(8, soft=0.0), "soft=0.0"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
