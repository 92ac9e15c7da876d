"""Budget tables: made, checked, stored, rebuilt from profiles, and priced in bytes."""

import json

import numpy as np
import pytest

from jaxmem.memory.base import Spec, nbytes
from jaxmem.memory.omnimem import avba, budgets
from jaxmem.memory.omnimem.omnimem import omnimem

SPEC = Spec(layers=3, kv_heads=2, heads=4, head_dim=8, width=16)


def test_an_int_is_split_between_audio_and_vision():
    table = budgets.uniform(64, 2, 0.5)
    np.testing.assert_array_equal(table, [[32, 32]] * 2)
    np.testing.assert_array_equal(budgets.uniform(7, 1, 1 / 6), [[1, 6]])
    assert budgets.share_of_ratio(5) == pytest.approx(1 / 6)
    for bad in ((-1, 0.5), (8, 1.5)):
        with pytest.raises(ValueError):
            budgets.uniform(bad[0], 2, bad[1])


def test_resolve_takes_numbers_and_tables():
    table = [[1, 2], [3, 4], [5, 6]]
    np.testing.assert_array_equal(budgets.resolve(table, 3, audio_share=0.5, joint=False), table)
    np.testing.assert_array_equal(
        budgets.resolve(table, 3, audio_share=0.5, joint=True), [3, 7, 11]
    )
    np.testing.assert_array_equal(budgets.resolve(9, 2, audio_share=0.5, joint=True), [9, 9])
    np.testing.assert_array_equal(budgets.resolve([4, 5], 2, audio_share=0.5, joint=False), [4, 5])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1, 2, 3]], "shape"),
        ([], "shape"),
        ([[1, 2], [3]], "unequal"),
        ([[1, -2]], "whole numbers"),
        ([[1.5, 2]], "whole numbers"),
        ([[np.nan, 2]], "whole numbers"),
    ],
)
def test_bad_tables_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        budgets.check_table(table)


def test_tables_survive_a_file(tmp_path):
    path = tmp_path / "table.json"
    table = avba.table(avba.profile("salmonn-8b"), average=512)
    budgets.save_table(path, table, {"average": 512})
    np.testing.assert_array_equal(budgets.load_table(path), table)
    document = json.loads(path.read_text())
    assert document["made"] == {"average": 512}

    for change, message in (
        ({"version": 99}, "version"),
        ({"format": "other"}, "format"),
        ({"caps": [[1, -1]]}, "whole numbers"),
    ):
        path.write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=message):
            budgets.load_table(path)
    del document["caps"]
    for text, message in ((json.dumps(document), "lacks caps"), ("{", "not JSON"), ("[1]", "list")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            budgets.load_table(path)


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


def test_bytes_buy_the_most_slots():
    for factory in (omnimem, lambda s: omnimem(s, text=0, joint=True)):
        for budget in (20_000, 123_457):
            n = budgets.slots_for_bytes(factory, SPEC, budget)
            assert nbytes(factory(n), SPEC) <= budget < nbytes(factory(n + 1), SPEC)
    with pytest.raises(ValueError, match="hold no memory"):
        budgets.slots_for_bytes(omnimem, SPEC, 100)


def test_redundancy_vectors_are_paid_for():
    n = 100
    token = 2 * 2 * 8 * 4 + 4 + 4 + 1  # k, v; pos, order, kind
    extra = 4 + 16 * 4  # importance, redundancy vector
    notes = 3 * (4 + 4 + 3 * 4 + 4)
    assert nbytes(omnimem(n, text=0), SPEC) == 3 * n * (token + extra) + notes
