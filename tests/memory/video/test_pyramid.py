"""The pyramid against plain lists of frames, its laws, and what it is at its edges."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from laws import CUTS, LAWS, SPEC, cut, pick, stream

import jaxmem as jm
from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.memory.baselines import LastFrames
from jaxmem.memory.video.pyramid import Pyramid, halved, parts_of
from jaxmem.rope import Rope

GRID, P = (3, 2), 6
SIZES = {"grid": GRID, "text": 3, "audio_share": 4 / 44}
MEMORY = Pyramid(44, levels=3, **SIZES)  # 37 slots of vision: 2 frames of 6, 6 of 2, 13 of 1
KINDS = (TEXT, VISION, VISION, AUDIO, VISION, VISION, VISION, VISION)
LONG = tuple(np.random.default_rng(0).integers(0, 9, 60))


AVERAGED = ("subset", "ample_budget")
"""Laws of memories that keep tokens as they were written: those of whole frames alone."""


@pytest.mark.parametrize("law", AVERAGED)
def test_law_of_one_level(law):
    LAWS[law](Pyramid(16, levels=1, text=3, audio_share=0.25))


@pytest.mark.parametrize("law", [n for n in LAWS if n not in AVERAGED])
def test_law(law):
    LAWS[law](Pyramid(14, levels=2, text=3, audio_share=0.2))


def halve(tokens, grid):
    """Average 2 x 2 of a list of (k, v, pos, number), row by row; edges with themselves."""
    (rows, columns), out = grid, []
    for r in range(0, rows, 2):
        for c in range(0, columns, 2):
            spots = [
                (min(r + i, rows - 1), min(c + j, columns - 1)) for i in (0, 1) for j in (0, 1)
            ]
            parts = [tokens[a * columns + b] for a, b in spots]
            k, v, pos = (np.mean([p[i] for p in parts], axis=0) for i in range(3))
            out.append((k, v, np.floor(pos + 0.5), parts[-1][3]))
    return out, (-(-rows // 2), -(-columns // 2))


def plain(flat, n, counts, audio, text):
    """Return what is held of the first n tokens, oldest first, one frame at a time."""
    kv = flat.tokens
    one = lambda i: (kv.k[i].astype(float), kv.v[i].astype(float), kv.pos[i], int(kv.index[i, 0]))
    of = lambda kind: [one(i) for i in range(n) if kv.modality[i, 0] == kind]
    image, levels = of(VISION), [[] for _ in counts]
    for at in range(0, len(image), P):
        levels[0].append((image[at : at + P], GRID))
        for i, count in enumerate(counts):
            if len(levels[i]) > count:
                oldest = levels[i].pop(0)
                if i + 1 < len(counts):
                    levels[i + 1].append(halve(*oldest))
    held = [token for level in levels for frame, _ in level for token in frame]
    held += of(AUDIO)[-audio:] + of(TEXT)[-text:]
    return sorted(held, key=lambda token: token[3])


@pytest.mark.parametrize("cuts", [LONG, (8,) * 30, (1, 0, 8, 3) * 20], ids=["random", "8", "few"])
def test_plain_lists_hold_the_same(cuts):
    flat = stream(sum(cuts), kinds=np.resize(KINDS, sum(cuts)))
    trace = jax.device_get(laws.run(MEMORY, MEMORY.init(SPEC), cut(flat, cuts, 8))[1])
    for c in (3, 11, len(cuts) // 2, len(cuts) - 1):
        held, want = pick(trace, c), plain(flat, sum(cuts[: c + 1]), (2, 6, 13), 4, 3)
        n = len(want)
        assert (held.modality[:, 0] != 0).sum() == n
        np.testing.assert_array_equal(held.index[:n, 0], [token[3] for token in want])
        for name, i in (("k", 0), ("v", 1), ("pos", 2)):
            got = getattr(held, name)[:n]
            np.testing.assert_allclose(got, [token[i] for token in want], atol=1e-5)


def test_one_level_is_last_frames():
    flat = stream(sum(CUTS), kinds=np.full(sum(CUTS), VISION))
    chunks = cut(flat, CUTS, 8)
    memory = Pyramid(15, levels=1, audio_share=0.0)
    other = LastFrames(15, frames=3, tokens_per_frame=4)
    one, two = (laws.run(m, m.init(SPEC), chunks)[1] for m in (memory, other))
    laws.assert_same(one, two, "kept")


def test_equal_keys_pool_to_themselves():
    flat = stream(96, kinds=np.full(96, VISION))
    same = np.repeat(flat.tokens.k[:1], 96, axis=0)
    flat = flat._replace(tokens=flat.tokens._replace(k=same))
    memory = Pyramid(18, levels=3, grid=GRID, audio_share=0.0)
    state = laws.run(memory, memory.init(SPEC), cut(flat, [8] * 12, 8))[0]
    n = int(np.sum(state.slots.kv.modality != 0))
    assert int(state.slots.level.max()) == 2 and n == 6 + 3 * 2 + 6 * 1
    np.testing.assert_allclose(state.slots.kv.k[:n], same[:n], atol=1e-6)


def test_count_gives_a_mean_the_attention_of_its_parts():
    """With equal keys a question reads the mean value of all tokens, however few are held."""
    flat = stream(128, kinds=np.full(128, VISION))
    same = np.repeat(flat.tokens.k[:1], 128, axis=0)
    chunks = cut(flat._replace(tokens=flat.tokens._replace(k=same)), [8] * 16, 8)
    spec, own = replace(SPEC, rope=Rope((0.0, 0.0), (0, 0))), jm.embeds(np.zeros((1, 6)), axes=3)
    want = flat.tokens.v.mean(0).repeat(2, axis=0)
    # What the question says of itself is far below the rest.
    row = np.ones((1, 4, 4), np.float32), np.full((1, 2, 4), -100.0), np.zeros((1, 2, 4))

    def away(count):
        memory = Pyramid(72, grid=(4, 4), audio_share=0.0, count=count)
        assert memory.steps(spec) == [((4, 4), 1), ((2, 2), 7), ((1, 1), 28)]
        state = laws.run(memory, memory.init(SPEC), chunks)[0]
        assert np.sum(state.slots.kv.modality != 0) == 16 + 7 * 4
        got = jm.attend_question(memory, spec, state, *map(jnp.float32, row), own)
        return np.abs(got[0] - want).max()

    assert away(True) < 1e-5 < 1e-2 < away(False)
    for grid, counts in (((3, 2), ([1] * 6, [4, 2], [6])), ((5, 1), ([1] * 5, [2, 2, 1], [4, 1]))):
        steps = [(grid, 1), (halved(grid), 1), (halved(halved(grid)), 1)]
        for found, many in zip(parts_of(steps), counts, strict=True):
            np.testing.assert_array_equal(found[: len(many)], many)
    with pytest.raises(ValueError, match="takes it with count=False"):
        jm.WithBank(Pyramid(72, grid=(4, 4), count=True), 64)
    with pytest.raises(ValueError, match="takes it with count=False"):  # nor inside a wrapper
        jm.WithBank(jm.Quantized(Pyramid(72, grid=(4, 4), count=True)), 64)


def test_each_level_covers_four_times_the_one_before():
    spec = replace(SPEC, frame=(8, 8), audio_tokens=0)
    assert Pyramid(192, levels=3).steps(spec) == [((8, 8), 1), ((4, 4), 4), ((2, 2), 16)]
    assert Pyramid(192, levels=1).steps(spec) == [((8, 8), 3)]
    assert Pyramid(100, levels=3).steps(spec) == [((8, 8), 1)]  # no room for two levels
    assert Pyramid(192).parts(spec) == (192, 0, 0)
    assert Pyramid(192).parts(replace(spec, timestamps=True, audio_tokens=2)) == (148, 32, 12)


def test_less_than_a_frame_holds_its_newest_tokens():
    flat = stream(20, kinds=np.full(20, VISION))
    memory = Pyramid(5, grid=GRID, audio_share=0.0)
    trace = laws.run(memory, memory.init(SPEC), cut(flat, (8, 8, 4), 8))[1]
    np.testing.assert_array_equal((laws.held(pick(trace, 1)) - 1) // 2, [12, 13, 14, 15])
    np.testing.assert_array_equal((laws.held(pick(trace, 2)) - 1) // 2, [18, 19])


def test_positions_far_away_are_averaged_exactly():
    flat = stream(48, kinds=np.full(48, VISION))
    far = flat.tokens._replace(pos=flat.tokens.pos + 2**30)
    memory = Pyramid(18, levels=2, grid=GRID, audio_share=0.0)
    near, away = (
        laws.run(memory, memory.init(SPEC), cut(flat._replace(tokens=t), [8] * 6, 8))[0]
        for t in (flat.tokens, far)
    )
    moved = jnp.where(near.slots.kv.modality[..., None] != 0, near.slots.kv.pos + 2**30, 0)
    np.testing.assert_array_equal(away.slots.kv.pos, moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels of at least 1"),
        ({"audio_share": 2.0}, "audio_share"),
        ({"text": -1}, "text of at least 0"),
        ({"grid": (0, 4)}, "rows, columns"),
        ({"budget": 0}, "budget of at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pyramid(**{"budget": 16, **options})
    with pytest.raises(ValueError, match=r"Spec\.frame"):
        Pyramid(16).init(replace(SPEC, frame=None))
