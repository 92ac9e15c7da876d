"""MovieChat, MA-LMM and MemoryVLA against plain loops, and audio beside frames."""

from dataclasses import replace
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from feature_streams import FRAMES, SPEC, E, P, chunk, merge_once, watch

from jaxmem.kv import AUDIO, VISION
from jaxmem.memory.baselines import Recent
from jaxmem.memory.features.ma_lmm import MALMM
from jaxmem.memory.features.memory_vla import MemoryVLA
from jaxmem.memory.features.moviechat import MovieChat
from jaxmem.memory.features.with_audio import WithAudio
from jaxmem.memory.sizes import nbytes


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def mean_dot(a, b):
    return np.mean(a @ b.T)


def test_ma_lmm_merges_every_place_by_itself():
    slots = watch(MALMM(4))[-1].slots
    for place in range(P):
        entries, sizes = [], []
        for frame in FRAMES:
            entries.append(frame[place].astype(np.float64))
            sizes.append(1)
            if len(entries) > 4:
                merge_once(entries, sizes, cosine, weighted=True)
        np.testing.assert_allclose(slots.x[:, place], entries, atol=1e-5)
        np.testing.assert_array_equal(slots.size[:, place], sizes)


def test_memory_vla_merges_frames_and_keeps_the_earlier_time():
    memory, lengths = MemoryVLA(4), (3, 3, 2, 0, 3, 3)
    entries, places, base, at = [], [], 0, 0
    for n in lengths:
        rows = chunk(FRAMES[at : at + n])
        place = base + np.flatnonzero(np.asarray(rows.modality) == VISION).reshape(n, P)
        for frame, here in zip(FRAMES[at : at + n], place, strict=True):
            entries.append(frame.astype(np.float64))
            places.append(here)
            if len(entries) > 4:
                near = [np.mean([*map(cosine, a, b)]) for a, b in pairwise(entries)]
                i = int(np.argmax(near))
                entries[i : i + 2] = [(entries[i] + entries[i + 1]) / 2]
                del places[i + 1]
        base, at = base + int(rows.advance[0]), at + n
    state = watch(memory, lengths)[-1]
    rows = memory.read(SPEC, state)
    np.testing.assert_allclose(rows.x, np.concatenate(entries), atol=1e-5)
    np.testing.assert_array_equal(rows.pos, np.concatenate(places)[:, None].repeat(3, 1))
    np.testing.assert_array_equal(rows.advance, [base] * 3)
    numbered = MemoryVLA(4, reindex=True).read(SPEC, state)
    np.testing.assert_array_equal(numbered.pos[:, 0], np.arange(4 * P))
    np.testing.assert_array_equal(numbered.advance, [4 * P] * 3)


def test_moviechat_averages_fragments():
    long = []
    for at in range(0, 12, 4):
        part = [f.astype(np.float64) for f in FRAMES[at : at + 4]]
        while len(part) > 2:
            merge_once(part, [1] * len(part), mean_dot, weighted=False)
        for frame in part:
            long.append(frame)
            if len(long) > 3:
                merge_once(long, [1] * len(long), mean_dot, weighted=False)
    slots = watch(MovieChat(4, long=3))[-1].slots
    np.testing.assert_allclose(slots.long.x, long, atol=1e-5)
    assert int(slots.short.count) == 2
    now = MovieChat(4, long=3, mode="breakpoint")
    rows = now.read(SPEC, watch(now)[-1])
    want = np.concatenate([np.concatenate(long), FRAMES[12], FRAMES[13]])
    np.testing.assert_allclose(rows.x[: 5 * P], want, atol=1e-5)
    assert int(rows.advance[0]) == 5 * P


def test_audio_is_kept_beside_frames():
    """Chunks hold one row of audio, or none; the two most similar neighbours are averaged."""
    loud = WithAudio(MALMM(4), 2)
    spec = replace(SPEC, audio_tokens=1)  # of which a piece is made where `tokens` is not given
    state, (a, b, c) = loud.init(spec), np.eye(3, E, dtype=np.float32)
    for row in (a, b, b + 0.1 * c):
        rows = chunk(FRAMES[:1])
        x = rows.x.at[jnp.argmax(rows.modality == AUDIO)].set(row)
        state = loud.write(spec, state, rows._replace(x=x))
    prompt = loud.read(spec, state)
    modality = np.asarray(prompt.modality)
    np.testing.assert_array_equal(modality, [2] * 3 * P + [3] * 2 + [0] * P)
    np.testing.assert_array_equal(prompt.pos[:14, 0], np.arange(14))
    assert int(prompt.advance[0]) == 14
    np.testing.assert_allclose(prompt.x[3 * P : 3 * P + 2], [a, b + 0.05 * c], atol=1e-6)
    assert nbytes(loud, spec) > nbytes(MALMM(4), spec) + 2 * E * 4
    assert loud.name == "MALMM"


def test_errors_of_audio_name_the_repair():
    with pytest.raises(ValueError, match="keep audio themselves"):
        WithAudio(Recent(8), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pieces of at least 1"):
        WithAudio(MALMM(4), 0)
    with pytest.raises(ValueError, match=r"Spec\.audio_tokens is 0.*tokens="):
        WithAudio(MALMM(4), 2).init(SPEC)
