"""Qwen directories as `Model`s: a stream in chunks is the prompt that the family lays out."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import LEAST, MEAN, MOST, STD, ids_of, write_checkpoint
from passes import (
    Reference,
    after_video,
    after_video_with_sound,
    answers_alike,
    one_pass,
    pieces_of,
    streamed,
)

from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.memory.baselines import Full
from jaxmem.models.base import for_frames
from jaxmem.models.encoders.vision_parts import patchify
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import Uncoded, read_chat
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.preprocessor import Limits, Pixels, smart_resize
from jaxmem.models.load import load
from jaxmem.models.qwen import qwen2_5_omni, qwen2_5_vl, qwen3_5, qwen3_vl
from jaxmem.models.qwen import qwen2_5_omni_layout as lay
from jaxmem.models.qwen.clip import Clip
from jaxmem.models.qwen.qwen2_5_omni import Qwen25Omni
from jaxmem.pieces import Preprocessor
from jaxmem.programs import compile, model_spec

pytest.importorskip("jinja2")

CELLS, QUESTION = (2, 5), "what is shown"  # tokens of a frame
SEEN = CELLS[0] * CELLS[1]
FAMILIES = {
    "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "qwen3_5": qwen3_5,
    "qwen2_5_omni": qwen2_5_omni,
}  # fmt: skip
# Frames of patches in a second; of Omni, in a piece.
RATES = dict.fromkeys(FAMILIES, Fraction(1))
RATES |= {"qwen2_5_vl": Fraction(3, 2), "qwen2_5_omni": Fraction(2)}


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    root = tmp_path_factory.mktemp("qwen")
    made = {}

    def get(name):
        if name not in made:
            made[name] = write_checkpoint(golden, name, root / name)
        return made[name]

    return get


def config_of(folder, name):
    return FAMILIES[name].read_config(read_json(folder(name)))


def cell_of(folder, name):
    vision = config_of(folder, name).vision
    return vision.patch * vision.merge


def size_of(folder, name):
    """(height, width) of frames of `CELLS` cells."""
    cell = cell_of(folder, name)
    return CELLS[0] * cell, CELLS[1] * cell


def fps_of(folder, name, rate=None):
    """Pictures per second for so many frames of patches in a second, or in a piece of Omni."""
    config, rate = config_of(folder, name), RATES[name] if rate is None else rate
    if name == "qwen2_5_omni":
        rate = rate * config.layout.ticks_per_second / config.layout.chunk_ticks
    return float(rate * config.vision.temporal)


def patches_of(pieces, vision):
    """Patches of all frames, and their grid."""
    frames = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 255
    pixels = (frames - np.array(MEAN, "f")) / np.array(STD, "f")
    shape = {"patch": vision.patch, "temporal": vision.temporal, "merge": vision.merge}
    found, sides = patchify(jnp.asarray(pixels), **shape), frames.shape[1:3]
    return found, (len(frames) // vision.temporal, *(side // vision.patch for side in sides))


def encoded(ref, family, config, patches, grid, **more):
    """What the encoders make of everything at once."""
    run = jax.jit(partial(family.encode, config=config, grids=[grid]))
    return run(ref.params, patches=patches, **more)


def prompt_2_5(ref, folder, model, pieces, answer):
    """The plan of one prompt over everything, and its features."""
    family, config = qwen2_5_vl, ref.config
    patches, grid = patches_of(pieces, config.vision)
    count = grid[0] * SEEN
    ids = [*model.prefix, *[config.video] * count, *model.tokenize(QUESTION), *answer]
    assert ids.count(config.vision_start) == ids.count(config.vision_end) == 1
    gap = Fraction(config.vision.temporal) / Fraction(model.media.fps)
    plan = family.prompt_plan(config, ids, videos=[grid], seconds=[gap])
    return plan, encoded(ref, family, config, patches, grid)


def prompt_3(ref, folder, model, pieces, answer):
    family, config, chat = qwen3_vl, ref.config, read_chat(folder)
    patches, grid = patches_of(pieces, config.vision)
    video, temporal = [], config.vision.temporal
    for frame in range(grid[0]):
        middle = (frame * temporal + (temporal - 1) / 2) / model.media.fps
        words = f"<{middle:.1f} seconds>"
        video += [*chat.ids(words), config.vision_start, *[config.video] * SEEN, config.vision_end]
    ids = [*model.prefix, *video, *model.tokenize(QUESTION), *answer]
    plan = family.prompt_plan(config, ids, videos=[grid])
    seen = encoded(ref, family, config, patches, grid)
    return plan, seen.tokens, seen.deep


def prompt_omni(ref, folder, model, pieces, answer):
    family, config = qwen2_5_omni, qwen2_5_omni.read_config(read_json(folder))
    patches, grid = patches_of(pieces, config.vision)
    mel, sound = LogMel(config.sound.mel_bins), np.concatenate([p.samples for p in pieces])
    n = len(pieces[0].samples)
    parts = [mel(sound[i : i + n], sound[:i] if i else None) for i in range(0, len(sound), n)]
    gap = config.vision.temporal / model.media.fps
    count = config.layout.chunk_ticks * len(pieces)
    video = lay.mixed_ids(config.layout, grid, gap, count)
    question = model.tokenize(QUESTION)
    assert model.prefix[-2:].tolist() == video[:2].tolist()
    assert question[:2].tolist() == video[-2:].tolist()
    ids = [*model.prefix[:-2], *video, *question[2:], *answer]
    plan = lay.prompt_plan(config.layout, ids, videos=[grid], seconds=[gap], sounds=[count])
    found = encoded(ref, family, config, patches, grid, clips=[jnp.concatenate(parts)])
    return plan, found


PROMPTS = {
    "qwen2_5_vl": ("qwen2_5_vl", prompt_2_5),
    "qwen3_vl": ("qwen3_vl", prompt_3),
    "qwen3_5": ("qwen3_5", prompt_3),
    "qwen2_5_omni": ("qwen2_5_omni_thinker", prompt_omni),
}

QUICK = ("qwen2_5_vl", "qwen3_5")  # one of each rule of positions


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_stream_is_the_offline_prompt(golden, folder, name):
    """One piece and padding, then two: logits and tokens of one pass."""
    where, prompt = PROMPTS[name]
    ref, fps = Reference(golden / "hf" / where, FAMILIES[name]), fps_of(folder, name)
    model = load(folder(name), dtype="float32", fps=fps, max_new=3)
    model = for_frames(model, size_of(folder, name))
    assert model.end == (*ids_of(folder(name), "<|im_end|>"), 1) and model.frame == CELLS
    pieces = pieces_of(model, size_of(folder, name), 3)
    answer = streamed(model, pieces, QUESTION, 3)
    whole = prompt(ref, folder(name), model, pieces, answer.ids[:-1].tolist())
    answers_alike(answer, one_pass(ref.params["decoder"], ref.config.decoder, *whole))


@pytest.fixture(scope="module")
def stamped(folder):
    return load(folder("qwen3_vl"), dtype="bfloat16", fps=fps_of(folder, "qwen3_vl"))


@pytest.fixture(scope="module")
def omni(folder):
    fps = fps_of(folder, "qwen2_5_omni", Fraction(1))
    return load(folder("qwen2_5_omni"), dtype="float32", fps=fps)


def test_stamps_are_text_and_know_where_the_chunk_lies(folder, stamped):
    size = size_of(folder, "qwen3_vl")
    model = for_frames(stamped, size)
    assert model.params["decoder"]["norm"]["scale"].dtype == jnp.bfloat16
    assert model.tokens_per_piece == SEEN + 11 + 2  # "<999999.9 seconds>" has 11 tokens
    pack = Preprocessor(model, 2)
    pieces = pieces_of(model, size, 12)
    plans = [pack(pieces[i : i + 2]).plan for i in range(0, 12, 2)]
    first, last = (stamp_ids(folder, model, i) for i in (0, 10))  # from 10 s on: a digit more
    assert plans[-1].ids[: len(last)].tolist() == last and len(last) == len(first) + 1 == 7
    assert np.bincount(plans[-1].modality, minlength=3).tolist() == [8, 2 * 9, 2 * SEEN]
    assert not plans[-1].modality[-8:].any() and not plans[0].modality[-10:].any()
    assert plans[0].advance.tolist() == [2 * (6 + 2 + max(CELLS))] * 3
    assert plans[-1].advance.tolist() == [2 * (7 + 2 + max(CELLS))] * 3
    words = plans[-1].place < 0
    words[-8:] = False
    assert set(plans[-1].modality[words].tolist()) == {TEXT}
    assert plans[-1].place[plans[-1].modality == VISION].tolist() == list(range(2 * SEEN))


def stamp_ids(folder, model, piece):
    """Ids of the time stamp of a piece of one frame."""
    temporal = config_of(folder, "qwen3_vl").vision.temporal
    return ids_of(folder("qwen3_vl"), qwen3_vl.stamp(piece, temporal, Fraction(model.media.fps)))


def test_padding_and_chunks_change_no_row(folder, omni):
    """Pieces one by one, or two at a time with padding: the same positions and audio."""
    size, ticks = size_of(folder, "qwen2_5_omni"), omni_ticks(folder)
    model = for_frames(omni, size)
    pieces = pieces_of(model, size, 3)
    one, two = Preprocessor(model, 1), Preprocessor(model, 2)
    single = [one([piece]) for piece in pieces]
    double = [two(pieces[:2]), two(pieces[2:])]
    mel = np.concatenate([single[0].mel, single[1].mel])
    np.testing.assert_array_equal(double[0].mel, mel)
    np.testing.assert_array_equal(double[1].mel[: len(single[2].mel)], single[2].mel)
    advance, n = single[0].plan.advance, model.tokens_per_piece
    assert n == SEEN + ticks and advance.tolist() == [ticks, 0, 0]
    np.testing.assert_array_equal(double[0].plan.pos[n:], single[1].plan.pos + advance)
    np.testing.assert_array_equal(double[1].plan.pos[:n], single[2].plan.pos)
    padded = double[1].plan
    assert not padded.modality[n:].any() and padded.advance.tolist() == advance.tolist()
    place = double[0].plan.place[double[0].plan.modality == AUDIO]
    after = 2 * SEEN  # the features of all frames
    assert place.tolist() == list(range(after, after + 2 * ticks))
    assert padded.place[n - 1] == after + ticks - 1  # also where half the frames are padding


def omni_ticks(folder):
    return config_of(folder, "qwen2_5_omni").layout.chunk_ticks


def test_text_after_a_video_does_not_grow(folder):
    """It is where `after_video` puts text, and bounded: memories may number positions anew."""
    config = config_of(folder, "qwen2_5_vl")
    per_second, merge = config.ticks_per_second, config.vision.merge
    rows, columns = 4 * merge, 10 * merge
    for seconds in (Fraction(1), Fraction(2, 3), Fraction(1, 7)):
        for frames in (1, 2, 7, 36_000):
            shift = qwen2_5_vl.text_after(config, frames, rows, columns, seconds)
            begin = 7 + np.array([int(frames * seconds * per_second), 0, 0])
            expected = begin + after_video(config, frames, rows, columns, seconds)
            assert [np.max(begin + shift)] * 3 == expected.tolist()
            assert np.abs(shift).max() <= max(10, per_second)
    assert qwen2_5_vl.text_after(config, 0, 8, 20, Fraction(1)).tolist() == [0, 0, 0]


def test_text_after_a_video_with_sound(folder):
    """It stands after the last token of audio, also where frames reach further."""
    layout = lay.OmniLayout(4, 5, 3, 1, 2, 6, 7)
    clip = Clip(Fraction(1), 4, 2, 2, 1, Pixels(1.0, (0.0,), (1.0,)), Limits(1, 10**6))
    config = replace(config_of(folder, "qwen2_5_omni"), layout=layout)
    family = Qwen25Omni(config, Uncoded(), clip, LogMel(8))
    for pieces, size in ((1, (16, 40)), (1, (8, 8 * 60)), (3, (8 * 170, 16))):
        grid = (pieces, size[0] // 4, size[1] // 4)
        expected = after_video_with_sound(layout, pieces, grid, Fraction(2), 50 * pieces)
        base = np.array([50 * pieces, 0, 0])
        start = base + family.question_start(size, pieces)
        assert [np.max(start)] * 3 == (base + expected).tolist()
    assert family.question_start((16, 40), 0).tolist() == [0, 0, 0]


def test_windows_of_sound_that_do_not_divide_a_chunk(folder, tmp_path):
    """A piece is then as many chunks as hold whole windows: rows as laid out offline."""
    found = []
    for name, seconds in (("three halves", 0.24), ("three", 0.48)):  # of a window of 16 frames
        other = shutil.copytree(folder("qwen2_5_omni"), tmp_path / name)
        config = read_json(folder("qwen2_5_omni")) | {"seconds_per_chunk": seconds}
        config["audio_config"]["n_window"] = 8
        (other / "config.json").write_text(json.dumps(config))
        model = load(other, dtype=jnp.float32, fps=25 / 3)
        model = for_frames(model, size_of(folder, "qwen2_5_omni"))
        assert model.media.piece_seconds == pytest.approx(0.48)
        pieces = pieces_of(model, model.media.size, 2)
        past = np.zeros(model.media.past_samples, np.float32)
        frames, samples = (np.stack([getattr(p, x) for p in pieces]) for x in ("frames", "samples"))
        inputs = model.preprocess(frames, samples, np.array([True] * 2), past, 0)
        found.append((model, model.encode(model.params, inputs)))
    (model, rows), (_, whole) = found
    heard = [np.asarray(x.x)[np.asarray(x.modality) == AUDIO] for x in (rows, whole)]
    np.testing.assert_allclose(heard[0], heard[1], atol=2e-5)
    family = model.encode.of
    grid = family.clip.grid(model.media.size, 2)
    expected = lay.mixed(family.config.layout, grid, family.clip.seconds, 24)
    np.testing.assert_array_equal(np.asarray(rows.modality) == AUDIO, expected.sound)
    np.testing.assert_array_equal(rows.pos, expected.pos)


def test_ten_hours(folder, stamped, omni):
    """A chunk after ten hours is laid out like the first, with its own time in words."""
    size = size_of(folder, "qwen3_vl")
    model, hours = for_frames(stamped, size), 36_000  # pieces of 1 s
    chunk = one_chunk(model, pieces_of(model, size, 1)[0])
    first, late = (model.preprocess(*chunk, start).plan for start in (0, hours))
    words = stamp_ids(folder, model, hours)
    assert late.ids[: len(words)].tolist() == words and len(words) == 10
    assert first.advance.tolist() == [6 + 2 + max(CELLS)] * 3
    assert late.advance.tolist() == [10 + 2 + max(CELLS)] * 3
    size, ticks = size_of(folder, "qwen2_5_omni"), omni_ticks(folder)
    model = for_frames(omni, size)
    hours = round(36_000 / model.media.piece_seconds)
    chunk = one_chunk(model, pieces_of(model, size, 1)[0])
    first, late = (model.preprocess(*chunk, start).plan for start in (0, hours))
    away = np.where(late.modality == AUDIO, hours * ticks, 0)  # audio is at its tick on every axis
    np.testing.assert_array_equal(late.pos - away[:, None] * np.array([[0, 1, 1]]), first.pos)
    np.testing.assert_array_equal(late.advance, [ticks, 0, 0])
    assert late.pos.dtype == np.int32


def one_chunk(model, piece):
    """What `Model.preprocess` takes of one piece, but for the pieces before it."""
    past = np.zeros(model.media.past_samples, np.float32)
    return piece.frames[None], piece.samples[None], np.array([True]), past


def test_sizes(folder, stamped, omni):
    for name, model in (("qwen2_5_omni", omni), ("qwen3_vl", stamped)):
        cell = cell_of(folder, name)
        assert model.media.size(2 * cell, 5 * cell) == (2 * cell, 5 * cell)
        assert model.media.size(cell // 2 - 1, cell // 2 - 1) == (cell, cell)
        # 21 x 50 cells: sides / 10.25, rounded down to cells.
        assert model.media.size(21 * cell, 50 * cell) == (2 * cell, 4 * cell)
        for height, width in ((1080, 1920), (37, 51), (8, 9)):
            sides = model.media.size(height, width)
            assert LEAST <= np.prod(sides) / cell**2 <= MOST
            assert not any(side % cell for side in sides)
    full_hd = smart_resize(1080, 1920, cell=28, limits=Limits(128 * 28**2, 768 * 28**2))
    assert full_hd == (560, 1008)  # sides / 1.856
    with pytest.raises(ValueError, match="too narrow"):
        omni.media.size(1, 201)
    cell = cell_of(folder, "qwen3_vl")
    odd = (2 * cell, 5 * cell + 1)
    message = rf"multiples of {cell} pixels, got \({odd[0]}, {odd[1]}\)"
    with pytest.raises(ValueError, match=message):
        for_frames(stamped, odd)
    with pytest.raises(ValueError, match="depend on the size of its frames"):
        model_spec(stamped)


def test_equal_directories_are_one_program(folder):
    """Two loads are equal in all that is static, so that nothing compiles a second time."""
    for name in FAMILIES:
        more = {"dtype": "float32", "fps": fps_of(folder, name)}
        one, two = (
            for_frames(load(folder(name), **more, abstract=lazy), size_of(folder, name))
            for lazy in (True, False)
        )
        assert one.encode == two.encode and hash(one.encode) == hash(two.encode)
        assert compile(one, Full(64)) == compile(two, Full(64))
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), one.params)
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), two.params)
        other = load(folder(name), **more, abstract=True, max_pixels=cell_of(folder, name) ** 2)
        assert other.encode != one.encode


def changed(folder, target, file, **values):
    """A copy of a directory with other settings; None removes the file."""
    shutil.copytree(folder, target)
    path = target / file
    raw = json.loads(path.read_text())
    path.unlink()
    if values:
        path.write_text(json.dumps(raw | values))
    return target


def test_refusals(folder, tmp_path):
    silent, heard = folder("qwen2_5_vl"), folder("qwen2_5_omni")
    name, vision = "preprocessor_config.json", config_of(folder, "qwen2_5_vl").vision
    with pytest.raises(ValueError, match="does not say how large frames may be"):
        load(changed(silent, tmp_path / "a", name))
    cell = cell_of(folder, "qwen2_5_vl")
    native = (50 * cell, 80 * cell)
    assert load(tmp_path / "a", abstract=True).media.size(*native) == native
    other = vision.patch + 1
    with pytest.raises(ValueError, match=f"patch_size is {other} in .*preprocessor_config.json"):
        load(changed(silent, tmp_path / "b", name, patch_size=other))
    with pytest.raises(ValueError, match="fps must be between"):
        load(silent, fps=0)
    fps = fps_of(folder, "qwen2_5_omni", Fraction(3, 2))
    temporal = config_of(folder, "qwen2_5_omni").vision.temporal
    with pytest.raises(ValueError, match=f"which must hold a multiple of {temporal} pictures"):
        load(heard, fps=fps)
    other = changed(heard, tmp_path / "c", "config.json", position_id_per_seconds=5)
    seconds = read_json(heard)["seconds_per_chunk"]
    made = int(5 * seconds)
    message = rf"{made * 20} log-mel frames and {made} tokens"
    with pytest.raises(ValueError, match=message):
        load(other, fps=temporal / (made / 5))
