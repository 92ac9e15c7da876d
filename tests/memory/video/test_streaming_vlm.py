"""StreamingVLM against plain lists and a prompt numbered from scratch, its laws, the decoder."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, pick, standard

from jaxmem import kv as tk
from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.kv import AUDIO, KV, TEXT, VISION
from jaxmem.loop import stream as small_stream
from jaxmem.memory.video.streaming_vlm import StreamingVLM, contiguous

BUDGET = 16
SIZES = {"sinks": 1, "text": 3, "audio_share": 0.25}
KEEP = StreamingVLM(BUDGET, reindex=False, **SIZES)


@pytest.mark.parametrize("law", LAWS)
def test_law(law):
    LAWS[law](KEEP)


def plain(written, now, sinks, text, window, vision, audio):
    """Return the numbers held of `written`, a list of (number, kind, chunk), oldest first."""
    words = [o for o, kind, _ in written if kind == TEXT]
    near = [(o, kind) for o, kind, chunk in written if kind != TEXT and chunk > now - window]
    if audio is None:
        groups = [([o for o, _ in near], vision)]
    else:
        sound = [o for o, kind in near if kind == AUDIO]
        groups = [([o for o, kind in near if kind != AUDIO], vision), (sound, audio)]
    groups += [(words[sinks:], text), (words[:sinks], sinks)]
    lent = sum(count for group, count in groups if not group)
    held = []
    for group, count in groups:
        if group:
            count, lent = count + lent, 0  # what empty parts lend goes to the first that is not
            held += group[max(len(group) - count, 0) :]
    return sorted(held)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("window", [2, 16])
def test_kept_tokens_against_plain_lists(shared, window):
    sizes = SIZES if shared else {**SIZES, "audio_share": None}
    memory = StreamingVLM(BUDGET, window=window, reindex=False, **sizes)
    trace = jax.device_get(laws.run(memory, memory.init(SPEC), standard())[1])
    sizes = (1, 3, window, *((9, 3) if shared else (12, None)))
    kinds, orders = standard().tokens.modality[..., 0], standard().tokens.index[..., 0]
    written, now = [], 0
    for c, rows in enumerate(CUTS):
        now += rows > 0  # a chunk of padding is no second of video
        written += [(orders[c, t], kinds[c, t], now) for t in range(rows)]
        np.testing.assert_array_equal(laws.held(pick(trace, c)), plain(written, now, *sizes))


class Piece(NamedTuple):
    """A part of a prompt: words, or frames (and sound that begins with them)."""

    words: int = 0
    grid: tuple = (0, 0, 0)  # frames, rows, columns
    every: int = 1  # positions between frames
    sound: int = 0


def numbered(pieces, first):
    """Return the positions [n, 3] and kinds of a prompt, as M-RoPE numbers it from scratch."""
    pos, kinds, p = [], [], first
    for piece in pieces:
        here = [(p + i,) * 3 for i in range(piece.words)]
        kinds += [TEXT] * piece.words
        frames, rows, columns = piece.grid
        image = [
            (p + t * piece.every, p + h, p + w)
            for t in range(frames)
            for h in range(rows)
            for w in range(columns)
        ]
        kinds += [VISION] * len(image) + [AUDIO] * piece.sound
        here += image + [(p + i,) * 3 for i in range(piece.sound)]
        pos += here
        p = max((max(x) for x in here), default=p - 1) + 1
    return np.asarray(pos, np.int32).reshape(-1, 3), kinds, p


def chunk_of(pieces, view, order, width):
    """Return what the decoder would report of a chunk that begins at the view's base."""
    rel, kinds, end = numbered(pieces, 0)
    n, rng = len(kinds), np.random.default_rng(order)
    base = np.asarray(view.base)
    pad = lambda x: np.pad(x, [(0, width - n)] + [(0, 0)] * (x.ndim - 1))
    tokens = KV(
        k=rng.normal(size=(width, 2, 4)).astype(np.float32),
        v=rng.normal(size=(width, 2, 4)).astype(np.float32),
        pos=pad(rel)[:, None] + base.astype(np.int32),
        index=pad(order + np.arange(n, dtype=np.int32))[:, None],
        modality=pad(np.asarray(kinds, np.int8))[:, None],
    )
    return laws.Stream(tokens, np.zeros((width, 6), np.float32), base, base + np.int32(end))


SECOND = (Piece(words=2), Piece(grid=(2, 2, 3), every=5, sound=3), Piece(words=2))
SHORT = (Piece(grid=(1, 2, 2)), Piece(words=1), Piece(grid=(1, 1, 2), sound=1))
SILENT = (Piece(words=1), Piece(grid=(1, 3, 2)))


@pytest.mark.parametrize("prefix", [0, 7])
def test_positions_are_those_of_the_surviving_prompt(prefix):
    """Two adjacent runs of vision, old text whose vision is gone, sinks, and a window of two."""
    spec = replace(SPEC, chunk=24, prefix=prefix)
    memory = StreamingVLM(60, sinks=3, text=6, window=2)
    stream = (SECOND, SHORT, SHORT, SILENT, SHORT, SECOND, SHORT, SECOND, SILENT, SILENT)
    state, words, order = memory.init(spec), 0, 1
    step = compiled(lambda s, chunk: memory.write(spec, s, laws.see(memory, s, chunk))[0])
    for c, pieces in enumerate(stream):
        chunk = chunk_of(pieces, memory.view(spec, state, None), order, 24)
        state = step(state, chunk)
        order += 24
        words += sum(piece.words for piece in pieces)
        # Text before the window loses its vision: of all words the first 3 and the last 6 stay.
        near = sum(piece.words for pieces in stream[max(c - 1, 0) : c + 1] for piece in pieces)
        old = min(words, 9) - near
        assert old >= 0
        prompt = [Piece(words=old), *stream[c - 1], *pieces] if c else pieces
        pos, kinds, end = numbered(prompt, prefix)
        for view in (memory.view(spec, state, None), memory.recall(spec, state, None)):
            n = len(kinds)
            np.testing.assert_array_equal(view.kv.modality[:n, 0], kinds)
            assert not np.asarray(view.kv.modality[n:]).any()
            np.testing.assert_array_equal(view.kv.pos[:n, 0], pos, err_msg=f"chunk {c}")
            np.testing.assert_array_equal(view.base, [end] * 3)
    assert words > 9
    np.testing.assert_array_equal(state.aux.next_pos, [prefix] * 3)


def test_axes_that_text_does_not_advance_stay():
    """Image coordinates of a model whose text moves the clock alone; fractions keep their parts."""
    kind = np.asarray([TEXT, VISION, VISION, AUDIO, TEXT, VISION, 0], np.int8)[:, None]
    clock = np.asarray([3, 9, 9.5, 11.25, 12, 40, 7], np.float32)
    image = np.asarray([0, 5, 6, 0, 0, 2, 7], np.float32)
    pos = np.stack([clock, image], axis=1)[:, None]
    tokens = KV(np.zeros((7, 1, 2)), np.zeros((7, 1, 2)), pos, kind.astype(np.int32), kind)
    chunk = jnp.asarray([0, 1, 1, 1, 1, 1, 0])
    first = jnp.asarray([2.0, 2.0])
    tokens, base = contiguous(tokens, chunk, first, jnp.asarray([1, 0]))
    np.testing.assert_array_equal(tokens.pos[:6, 0, 0], [2, 3, 3.5, 5.25, 6, 7])
    np.testing.assert_array_equal(tokens.pos[:6, 0, 1], image[:6])
    np.testing.assert_array_equal(base, [8, 2])


def test_far_positions_never_grow():
    memory = StreamingVLM(BUDGET, **SIZES)
    chunk = pick(standard(), 0)
    state = memory.init(SPEC)
    step = compiled(lambda state, chunk: laws.step(memory, state, chunk))
    tops = []
    for _ in range(12):
        base = np.asarray(memory.view(SPEC, state, None).base)
        rel = np.arange(8, dtype=np.int32)[:, None, None]
        tokens = chunk.tokens._replace(pos=rel + base)
        state = step(state, chunk._replace(tokens=tokens, base=base, end=base + 8))
        tops.append(int(memory.view(SPEC, state, None).base[0]))
    assert max(tops) <= BUDGET + 8 and len(set(tops[4:])) == 1


def test_in_the_decoder():
    """One axis: while nothing is dropped both rules are the same; questions are answered."""
    cfg = small.config(axes=1)
    weights, rows = small.params(cfg), small.stream_rows(cfg, 3, 8, lengths=[8, 5, 7])
    more = {"sinks": 10, "text": 10, "audio_share": 0.5}
    logits = []
    for reindex in (True, False):
        memory = StreamingVLM(60, reindex=reindex, **more)
        program = make_program(cfg, memory, spec_of(cfg, chunk=8))
        carry = small_stream(weights, init_carry(program), rows, program=program)
        assert int(tk.count(carry.state.slots.kv)) == 2 * 20
        question = question_rows(weights, [1, 2, 3], program=program)
        logits.append(ask(weights, carry, question, program=program).first)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


def test_text_slots_are_those_of_the_stream():
    """Published sizes where text comes with the stream, clamped; none where there is no text."""
    stamped = replace(SPEC, timestamps=True)
    assert StreamingVLM(6000, audio_share=None).parts(stamped) == (4976, 512, 512)
    assert StreamingVLM(100, audio_share=0.2).parts(stamped) == (40, 10, 25, 25)
    assert StreamingVLM(100, audio_share=0.2).parts(SPEC) == (80, 20, 0, 0)
    assert StreamingVLM(100, audio_share=None, text=3).parts(stamped) == (72, 3, 25)
    for budget in (1, 2, 3, 8, 96):
        for sizes in ({}, {"sinks": 512, "text": 512}, {"sinks": 0, "text": 9}):
            parts = StreamingVLM(budget, **sizes).parts(stamped)
            assert sum(parts) == budget and min(parts) >= 0 and sum(parts[:2]) >= 1


def test_time_stamps_are_kept():
    """With the defaults, in few slots: the first and the newest words of a stamped stream."""
    spec, memory = replace(SPEC, timestamps=True), StreamingVLM(BUDGET, reindex=False)
    step = compiled(lambda s, chunk: memory.write(spec, s, laws.see(memory, s, chunk))[0])
    state = memory.init(spec)
    for c in range(len(CUTS)):
        state = step(state, pick(standard(), c))
    kept, written = laws.held(state.slots.kv), laws.stream(sum(CUTS)).tokens
    words = written.index[written.modality[:, 0] == TEXT, 0]
    want = {*words[:4], *words[-4:]}
    assert len(words) > 4 and want == set(words) & set(kept.tolist())


def silent(chunks=6):
    return laws.cut(laws.stream(8 * chunks, kinds=np.full(8 * chunks, VISION)), [8] * chunks, 8)


@pytest.mark.parametrize("sizes", [{}, {"sinks": 2, "text": 4}, {"audio_share": 0.5}])
def test_slots_that_nothing_competes_for_are_lent(sizes):
    """Without sound and text all slots hold pictures, the newest ones."""
    memory = StreamingVLM(BUDGET, **sizes)
    state, _ = laws.run(memory, memory.init(SPEC), silent())
    want = np.arange(48 - BUDGET, 48)
    np.testing.assert_array_equal((laws.held(state.slots.kv) - 1) // 2, want)


@pytest.mark.parametrize("budget", [1, 2, 8])
def test_few_slots_are_a_memory(budget):
    memory = StreamingVLM(budget)
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    assert int(tk.count(state.slots.kv)) == budget == int(state.aux.capacity)


def test_equal_options_are_equal():
    assert StreamingVLM(8) == StreamingVLM(8) != StreamingVLM(8, text=2)
    assert len({StreamingVLM(8), StreamingVLM(8)}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sinks": -1, "text": 4}, "sinks of at least 0"),
        ({"sinks": 1, "text": 4, "window": 0}, "window of at least 1"),
        ({"sinks": 1, "text": 4, "audio_share": -1.0}, "audio_share"),
        ({"budget": 0}, "budget of at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StreamingVLM(**{"budget": BUDGET, **options})
