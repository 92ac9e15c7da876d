"""What all memories that rank by a score promise: lent slots, the newest, a gate for training."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from laws import SPEC, compiled, cut, stream

from jaxmem.kv import AUDIO, EMPTY, VISION
from jaxmem.memory import MEMORIES
from jaxmem.memory.by_name import build
from jaxmem.memory.compression.adakv import AdaKV
from jaxmem.memory.compression.criticalkv import CriticalKV, OverScore
from jaxmem.memory.compression.expected_attention import ExpectedAttention
from jaxmem.memory.compression.h2o import H2O
from jaxmem.memory.compression.keydiff import KeyDiff
from jaxmem.memory.compression.knorm import Knorm
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.compression.tova import TOVA
from jaxmem.memory.parts.scored import Scored
from jaxmem.memory.video.infinipot_v import InfiniPotV

SLOTS, AUDIO_SLOTS = 20, 5
OPTIONS = {"window": 3, "audio_share": 0.25, "newest": 4}
OF_ONE = {"retention": {"logits": False}}  # by default it is the attention of another decoder
NAMES = [n for n, kind in MEMORIES.items() if issubclass(kind, (Scored, OverScore))]


@cache
def memory_of(name, **more):
    kind = MEMORIES[name]
    known = {f.name for f in dataclasses.fields(kind)}
    if issubclass(kind, OverScore):
        known |= {"window", "audio_share", "newest"}
    options = {k: v for k, v in (OPTIONS | more).items() if k in known} | OF_ONE.get(name, {})
    return build(name, SLOTS, SPEC, options)


def watch(memory, kinds):
    """Return the modalities held after every chunk of eight, [chunks, slots, heads]."""
    chunks = cut(stream(len(kinds), 1, kinds=kinds), [8] * (len(kinds) // 8), 8)

    def body(state, chunk):
        state = laws.step(memory, state, chunk)
        return state, memory.kv(state).modality

    run = compiled(lambda state, chunks: jax.lax.scan(body, state, chunks))
    return np.asarray(run(memory.init(SPEC), chunks)[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_part_lends_its_slots_until_somebody_comes(name):
    """Pictures alone fill all slots, audio alone too, and each gets its part when it comes."""
    memory = memory_of(name)
    mixed = ([VISION] * 3 + [AUDIO] * 5) * 12
    for first in (VISION, AUDIO):
        held = watch(memory, [first] * 64 + mixed)
        share = held.shape[2] / SPEC.kv_heads
        many = (held != EMPTY).sum(axis=(1, 2)) / share
        full = SLOTS * SPEC.kv_heads
        assert (many[3:8] == full).all() and (held[7] == AUDIO).any() is not (first == VISION)
        audio = (held[8:] == AUDIO).sum(axis=(1, 2)) / share / SPEC.kv_heads
        if name == "livevlm":  # its short-term memory holds five tokens of any modality besides
            assert ((audio >= AUDIO_SLOTS - 1) & (audio <= 2 * AUDIO_SLOTS)).all()
        else:
            assert (audio == AUDIO_SLOTS).all()
        # Audio gives its slots back at once; a few pictures in each chunk fill them in time.
        assert (many[8:] == full).all() if first == VISION else many[-1] == full


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_are_held(name):
    memory = memory_of(name, audio_share=None)
    chunks = cut(stream(64, 1), [8] * 8, 8)
    final, _ = laws.compiled(lambda s, c: laws.scan(memory, s, c))(memory.init(SPEC), chunks)
    kv = jax.device_get(memory.kv(final))
    for g in range(kv.modality.shape[1]):
        index = kv.index[:, g][kv.modality[:, g] != EMPTY]
        np.testing.assert_array_equal((index[-4:] - 1) // 2, [60, 61, 62, 63])


def test_every_scoring_memory_is_here():
    assert {"snapkv", "h2o", "tova", "knorm", "keydiff", "expected_attention", "criticalkv",
            "adakv", "infinipot_v", "streammem", "livevlm"} <= {*NAMES}  # fmt: skip


@pytest.mark.parametrize("budget", [1, 2, 3])
@pytest.mark.parametrize("kind", [AdaKV, CriticalKV])
def test_few_slots_are_a_memory(kind, budget):
    memory = kind.of(budget)
    chunks = cut(stream(64, 1), [8] * 8, 8)
    final, _ = laws.compiled(lambda s, c: laws.scan(memory, s, c))(memory.init(SPEC), chunks)
    assert int((np.asarray(memory.kv(final).modality) != EMPTY).sum()) == 2 * budget


@pytest.mark.parametrize("kind", [AdaKV, CriticalKV])
def test_wrappers_are_made_from_a_number_of_slots_too(kind):
    memory = kind.of(96, window=5, audio_share=0.25, newest=3, reindex=True, first=0.25)
    inner = SnapKV(96, window=5, audio_share=0.25, newest=3, reindex=True)
    assert memory == kind(inner, first=0.25) and hash(memory) == hash(kind(inner, first=0.25))
    assert memory.budget == 96 and memory.resized(48).inner == dataclasses.replace(inner, budget=48)
    assert kind.of(96) == kind(SnapKV(96))
    with pytest.raises(ValueError, match="leave soft out"):
        kind(Knorm(96, soft=1.0))


def test_the_first_stage_fills_its_part_of_lent_slots_as_well():
    """Without audio half of all slots go to the plain score, as in a memory without parts."""
    chunks = cut(stream(64, 1, kinds=[VISION] * 64), [8] * 8, 8)
    states = []
    for share in (0.25, None):
        memory = CriticalKV(SnapKV(SLOTS, window=3, audio_share=share))
        states.append(laws.run(memory, memory.init(SPEC), chunks)[0])
    laws.assert_same(*(s.slots for s in states), "slots")


SOFT = {
    "knorm": Knorm(12, soft=0.5),
    "keydiff": KeyDiff(12, soft=0.5, audio_share=None),
    "expected": ExpectedAttention(12, soft=0.5, sinks=1),
    "shared": Knorm(12, soft=0.5, per_head=False),
}


def read_values(memory, k, chunks):
    """Return a mean of the values that are held; keys reach it through scores alone."""
    chunks = chunks._replace(tokens=chunks.tokens._replace(k=k))
    state, _ = laws.scan(memory, memory.init(SPEC), chunks)
    bias = memory.view(SPEC, state, None).bias
    weight = jnp.ones((12, 1)) if bias is None else jax.nn.softmax(bias, axis=0)
    return jnp.sum(weight[..., None] * state.slots.kv.v), state._replace(
        slots=state.slots._replace(gate=None)
    )


@pytest.mark.parametrize("name", SOFT)
def test_gradients_reach_the_scores_through_the_gate(name):
    memory, chunks = SOFT[name], cut(stream(32, 1), [8] * 4, 8)
    hard = dataclasses.replace(memory, soft=None)
    of = lambda m: jax.jit(jax.value_and_grad(lambda k: read_values(m, k, chunks), has_aux=True))
    k = jnp.asarray(chunks.tokens.k)
    (_, state), slope = of(memory)(k)
    (_, plain), none = of(hard)(k)
    laws.assert_same(state, plain, "the choice")
    assert np.isfinite(slope).all() and np.abs(slope).max() > 1e-4
    assert not np.asarray(none).any()


def test_a_gate_is_refused_where_another_choice_is_made():
    with pytest.raises(ValueError, match="soft=1.0 for InfiniPotV"):
        InfiniPotV(16, soft=1.0)
    for kind in (SnapKV, H2O, TOVA):  # reports of attention carry no gradient
        with pytest.raises(ValueError, match="soft=1.0 for"):
            kind(16, soft=1.0)
    with pytest.raises(ValueError, match="soft=-1"):
        Knorm(16, soft=-1)
