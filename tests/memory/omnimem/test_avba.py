"""AVBA: recorded signals, profiles, and the tables made of them."""

from functools import partial

import jax
import numpy as np
import pytest
from laws import CUTS, SPEC, compiled, pick, run, see, standard

from jaxmem.kv import AUDIO, VISION
from jaxmem.memory.baselines import Recent
from jaxmem.memory.omnimem import avba
from jaxmem.memory.omnimem.omnimem import OmniMem, gather


def test_recorder_streams_as_its_memory_and_averages_its_signals():
    plain, recorded = OmniMem(16, text=4), avba.Recorder(OmniMem(16, text=4), skip=2)
    chunks = standard()
    want, _ = run(plain, plain.init(SPEC), chunks)
    got, _ = run(recorded, recorded.init(SPEC), chunks)
    jax.tree.map(np.testing.assert_array_equal, got.slots, want.slots)
    jax.tree.map(np.testing.assert_array_equal, got.aux.inner, want.aux)
    assert int(got.aux.chunks) == sum(c > 0 for c in CUTS)

    state, rows = plain.init(SPEC), []
    write, pooled = compiled(partial(plain.write, SPEC)), compiled(gather)
    for c in range(len(CUTS)):
        seen = see(plain, state, pick(chunks, c))
        pool = pooled(state.slots, seen)
        if CUTS[c] and sum(n > 0 for n in CUTS[:c]) >= 2:
            kind = np.asarray(pool.modality)
            rows.append([signal(pool, g) for g in ([AUDIO], [VISION], [AUDIO, VISION])])
            assert np.sum(kind == AUDIO) >= 2
        state, _ = write(state, seen)
    mean = np.mean(rows, axis=0)
    stacked = got._replace(aux=jax.tree.map(lambda x: x[None], got.aux))
    signals = avba.signals_of([stacked, stacked])
    np.testing.assert_allclose(signals.entropy_audio, mean[0, :1], rtol=1e-5)
    np.testing.assert_allclose(signals.entropy_visual, mean[1, :1], rtol=1e-5)
    np.testing.assert_allclose(signals.entropy_all, mean[2, :1], rtol=1e-5)
    np.testing.assert_allclose(signals.cosine_audio, mean[0, 1:], rtol=1e-5)
    np.testing.assert_allclose(signals.cosine_visual, mean[1, 1:], rtol=1e-5)


def signal(pool, group):
    """Return the normalised entropy of importance and the mean cosine of a group's tokens."""
    mine = np.isin(np.asarray(pool.modality), group)
    p = np.asarray(pool.importance, np.float64)[mine]
    p = p[p > 0] / p.sum()
    return -np.sum(p * np.log(p)) / np.log(mine.sum()), np.asarray(pool.redundancy)[mine].mean()


def test_recorder_refuses_what_it_cannot_record():
    for memory in (OmniMem(16, lam=0.0), Recent(16)):
        with pytest.raises(ValueError, match="lam > 0"):
            avba.Recorder(memory)
    recorded = avba.Recorder(OmniMem(16, text=4), skip=99)
    final, _ = run(recorded, recorded.init(SPEC), standard())
    with pytest.raises(ValueError, match="no chunk was recorded"):
        avba.signals_of(final._replace(aux=jax.tree.map(lambda x: x[None], final.aux)))


def test_released_caps_of_the_8b_model():
    """Entries of the published table: T 0.2, r 5, 8192 slots per layer on average."""
    table = avba.table(avba.profile("salmonn-8b"), average=8192)
    want = {0: (3193, 15376), 10: (1015, 5717), 18: (1116, 6599), 30: (737, 2060), 35: (1812, 8118)}
    for layer, caps in want.items():
        assert np.abs(table[layer] - caps).max() <= 1
    assert table.sum() / 36 == pytest.approx(8191, abs=1)


def test_released_profile_of_the_4b_model():
    table = avba.table(avba.profile("salmonn-4b"), average=8192, low=0.2)
    assert table.shape == (36, 2) and table.sum() / 36 == pytest.approx(8192, rel=0.01)
    with pytest.raises(ValueError, match="salmonn-8b"):
        avba.profile("other")


def test_settings_move_the_table_as_they_say():
    profile = avba.profile("salmonn-8b")
    ends = {"low": 0.0, "high": 100.0}
    even = avba.table(profile, average=1000, temperature=100.0, **ends)
    assert np.abs(even.sum(axis=1) - 1000).max() < 10
    for ratio in (2.0, 20.0):
        caps = avba.table(profile, average=10_000, ratio=ratio, **ends)
        np.testing.assert_allclose(caps[:, 1] / caps[:, 0], ratio * profile.rho, rtol=0.05)
    clipped = avba.table(profile, average=1000, ratio=5.0, low=0.5, high=1.0)
    assert clipped[:, 1].min() == 500 and clipped[:, 1].max() == 1000
    assert clipped[:, 0].min() >= 100 and clipped[:, 0].max() == 200
    for bad in ({"average": 0}, {"average": 9, "low": 3.0}, {"average": 9, "temperature": 0}):
        with pytest.raises(ValueError):
            avba.table(profile, **bad)


def test_stretch_keeps_the_shape_over_depth():
    profile = avba.profile("salmonn-8b")
    same = avba.stretch(profile, 36)
    np.testing.assert_allclose(same.delta, profile.delta, atol=1e-12)
    short = avba.stretch(profile, 4)
    assert len(short.delta) == len(short.rho) == 4 and short.delta.max() == 0.0
    np.testing.assert_allclose(short.rho[[0, -1]], profile.rho[[0, -1]])


def test_profiles_come_from_signals():
    half, one = np.full(3, 0.5), np.asarray([0.2, 0.4, 0.6])
    signals = avba.Signals(half, one, half, np.full(3, 0.19), np.full(3, 0.64))
    root = avba.profile_of(signals)
    np.testing.assert_allclose(root.rho, one * 0.6 / (0.5 * 0.9))
    np.testing.assert_allclose(root.delta, 0.0, atol=1e-12)
    np.testing.assert_allclose(avba.profile_of(signals, root=False).rho, one * 0.36 / (0.5 * 0.81))
    with pytest.raises(ValueError, match=r"layers \[1\]"):
        avba.profile_of(signals._replace(entropy_audio=np.asarray([0.5, 0.0, 0.5])))
    with pytest.raises(ValueError, match="average over chunks"):
        avba.profile_of(signals._replace(entropy_audio=np.ones((2, 3))))


def test_first_chunks_of_every_video_are_skipped():
    rows = np.asarray([[9.0], [1.0], [9.0], [3.0], [5.0]])
    video = np.asarray([0, 0, 1, 1, 1])
    np.testing.assert_allclose(avba.average_rows(rows, video, skip=1), [3.0])
    with pytest.raises(ValueError, match="first 9"):
        avba.average_rows(rows, video, skip=9)
