"""Qwen directories as `Model`s: a stream in chunks is the prompt that the family lays out."""

import json
import shutil
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_checkpoint
from passes import LOGITS, Reference, close, one_pass

from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.loop import ask
from jaxmem.memory.full import full
from jaxmem.models.base import for_frames
from jaxmem.models.encoders.vision_parts import patchify
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.hf.preprocessor import Limits, Pixels, smart_resize
from jaxmem.models.load import load
from jaxmem.models.qwen import qwen2_5_omni, qwen2_5_vl, qwen3_vl
from jaxmem.models.qwen import qwen2_5_omni_layout as lay
from jaxmem.models.qwen import qwen2_5_omni_stream as qwen2_5_omni_model
from jaxmem.models.qwen.clip import Clip
from jaxmem.session import Packer, Session, asked_rows

pytest.importorskip("jinja2")

SIZE, QUESTION = (16, 40), "what is shown"  # 2 x 5 tokens
OMNI = lay.OmniLayout(4, 5, 3, 1, 2, 6, 7)
CLIP = Clip(Fraction(1), 4, 2, 2, 1, Pixels(1.0, (0.0,), (1.0,)), Limits(1, 10**6))


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    root = tmp_path_factory.mktemp("qwen")
    made = {}

    def get(name):
        if name not in made:
            made[name] = write_checkpoint(golden, name, root / name)
        return made[name]

    return get


def pieces_of(model, count, seed=0):
    rng, media = np.random.default_rng(seed), model.media
    frames = (round(media.fps * media.piece_seconds), *SIZE, 3)
    return [
        SimpleNamespace(
            frames=rng.integers(0, 256, frames, np.uint8),
            samples=0.1
            * rng.normal(size=round(media.sample_rate * media.piece_seconds)).astype("f"),
        )
        for _ in range(count)
    ]


def patches_of(pieces):
    """Patches of all frames, and their grid."""
    frames = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 255
    pixels = (frames - np.array([0.4, 0.5, 0.6], "f")) / np.array([0.3, 0.25, 0.2], "f")
    found = patchify(jnp.asarray(pixels), patch=4, temporal=2, merge=2)
    return found, (len(frames) // 2, SIZE[0] // 4, SIZE[1] // 4)


def encoded(ref, family, config, patches, grid, **more):
    """What the encoders make of everything at once."""
    run = jax.jit(partial(family.encode, config=config, grids=[grid]))
    return run(ref.params, patches=patches, **more)


def prompt_2_5(ref, folder, model, pieces, answer):
    """The plan of one prompt over everything, and its features."""
    family, config = qwen2_5_vl, ref.config
    patches, grid = patches_of(pieces)
    count = grid[0] * grid[1] * grid[2] // 4
    ids = [*model.prefix, *[config.video] * count, *model.tokenize(QUESTION), *answer]
    assert ids.count(config.vision_start) == ids.count(config.vision_end) == 1
    gap = Fraction(2) / Fraction(model.media.fps)
    plan = family.prompt_plan(config, ids, videos=[grid], seconds=[gap])
    return plan, encoded(ref, family, config, patches, grid)


def prompt_3(ref, folder, model, pieces, answer):
    family, config, chat = qwen3_vl, ref.config, read_chat(folder)
    patches, grid = patches_of(pieces)
    video = []
    for frame in range(grid[0]):
        first = 2 * frame / model.media.fps
        words = f"<{first + 0.5 / model.media.fps:.1f} seconds>"
        seen = [config.video] * (grid[1] * grid[2] // 4)
        video += [*chat.ids(words), config.vision_start, *seen, config.vision_end]
    ids = [*model.prefix, *video, *model.tokenize(QUESTION), *answer]
    plan = family.prompt_plan(config, ids, videos=[grid])
    seen = encoded(ref, family, config, patches, grid)
    return plan, seen.tokens, seen.deep


def prompt_omni(ref, folder, model, pieces, answer):
    family, config = (
        qwen2_5_omni,
        qwen2_5_omni.read_config(json.loads((folder / "config.json").read_text())),
    )
    patches, grid = patches_of(pieces)
    mel, sound = LogMel(16), np.concatenate([p.samples for p in pieces])
    n = len(pieces[0].samples)
    parts = [mel(sound[i : i + n], sound[:i] if i else None) for i in range(0, len(sound), n)]
    gap, count = 2 / model.media.fps, 50 * len(pieces)
    video = lay.mixed_ids(config.layout, grid, gap, count)
    question = model.tokenize(QUESTION)
    assert model.prefix[-2:].tolist() == video[:2].tolist()
    assert question[:2].tolist() == video[-2:].tolist()
    ids = [*model.prefix[:-2], *video, *question[2:], *answer]
    plan = lay.prompt_plan(config.layout, ids, videos=[grid], seconds=[gap], sounds=[count])
    found = encoded(ref, family, config, patches, grid, clips=[jnp.concatenate(parts)])
    return plan, found


CASES = {
    "qwen2_5_vl": ("qwen2_5_vl", qwen2_5_vl, prompt_2_5),
    "qwen3_vl": ("qwen3_vl", qwen3_vl, prompt_3),
    "qwen2_5_omni": ("qwen2_5_omni_thinker", qwen2_5_omni, prompt_omni),
}


@pytest.mark.parametrize(
    ("name", "fps"), [("qwen2_5_vl", 3.0), ("qwen3_vl", 2.0), ("qwen2_5_omni", 2.0)]
)
def test_stream_is_the_offline_prompt(golden, folder, name, fps):
    """One piece and padding, then two: logits and tokens of one pass."""
    where, family, prompt = CASES[name]
    ref = Reference(golden / "hf" / where, family)
    model = fit(load(folder(name), dtype="float32", fps=fps, max_new=3), SIZE)
    assert model.end == (9, 1)
    pieces = pieces_of(model, 3)
    session = Session(model, full(3 * model.tokens_per_piece), chunk_pieces=2)
    session.watch(pieces[:1]).watch(pieces[1:])
    rows = asked_rows(model, session.program, model.tokenize(QUESTION), session.pieces)
    more = {"program": session.program, "max_new": 3, "prefix": session.prefix}
    answer = ask(model.params, session.carry, rows, **more)
    whole = prompt(ref, folder(name), model, pieces, answer.ids[:-1].tolist())
    out = one_pass(ref.params["decoder"], ref.config.decoder, *whole).logits[-3:]
    close(answer.first, out[0], LOGITS)
    np.testing.assert_array_equal(answer.ids, out.argmax(-1))


@pytest.fixture(scope="module")
def silent(folder):
    return load(folder("qwen3_vl"), dtype="bfloat16", fps=2.0)


@pytest.fixture(scope="module")
def omni(folder):
    return load(folder("qwen2_5_omni"), dtype="float32", fps=1.0)


def test_stamps_are_text_and_know_where_the_chunk_lies(silent):
    model = fit(silent, SIZE)
    assert model.params["decoder"]["norm"]["scale"].dtype == jnp.bfloat16
    assert model.tokens_per_piece == 10 + 11 + 2  # "<999999.9 seconds>" has 11 tokens
    pack = Packer(model, 2)
    pieces = pieces_of(model, 12)
    plans = [pack(pieces[i : i + 2]).plan for i in range(0, 12, 2)]
    last = plans[-1]  # 10.2 s and 11.2 s
    ids = read_ids(model, "<10.2 seconds>")
    assert last.ids[: len(ids)].tolist() == ids and len(ids) == 7
    assert np.bincount(last.modality, minlength=3).tolist() == [8, 2 * 9, 20]
    assert last.modality[-8:].tolist() == [0] * 8 and plans[0].modality[-10:].tolist() == [0] * 10
    assert plans[0].advance.tolist() == [2 * (6 + 2 + 5)] * 3 and last.advance.tolist() == [28] * 3
    assert set(last.modality[:27][last.place[:27] < 0].tolist()) == {TEXT}
    assert last.place[last.modality == VISION].tolist() == list(range(20))


def read_ids(model, text):
    """Ids of a text: a question's, without what the template writes around it."""
    plain, asked = model.tokenize("what").tolist(), model.tokenize("what " + text).tolist()
    return asked[1 : len(asked) - len(plain) + 1]


def test_padding_and_chunks_change_no_row(omni):
    """Pieces one by one, or two at a time with padding: the same positions and sound."""
    model = fit(omni, SIZE)
    pieces = pieces_of(model, 3)
    one, two = Packer(model, 1), Packer(model, 2)
    single = [one([piece]) for piece in pieces]
    double = [two(pieces[:2]), two(pieces[2:])]
    mel = np.concatenate([single[0].mel, single[1].mel])
    np.testing.assert_array_equal(double[0].mel, mel)
    np.testing.assert_array_equal(double[1].mel[:200], single[2].mel)
    span, n = single[0].plan.advance, model.tokens_per_piece
    assert n == 60 and span.tolist() == [50, 0, 0]
    np.testing.assert_array_equal(double[0].plan.pos[n:], single[1].plan.pos + span)
    np.testing.assert_array_equal(double[1].plan.pos[:n], single[2].plan.pos)
    assert (
        not double[1].plan.modality[n:].any() and double[1].plan.advance.tolist() == span.tolist()
    )
    place = double[0].plan.place[double[0].plan.modality == AUDIO]
    assert place.tolist() == list(range(20, 120))  # behind the features of all frames
    assert double[1].plan.place[n - 1] == 69  # also where half the frames are padding


def test_text_after_a_video_does_not_grow(folder):
    """It is where `after_video` puts text, and bounded: memories may number positions anew."""
    config = qwen2_5_vl.read_config(json.loads((folder("qwen2_5_vl") / "config.json").read_text()))
    for seconds in (Fraction(1), Fraction(2, 3), Fraction(1, 7)):
        for frames in (1, 2, 7, 36_000):
            shift = qwen2_5_vl.text_after(config, frames, 8, 20, seconds)
            begin = 7 + np.array([int(frames * seconds * 2), 0, 0])
            expected = begin + qwen2_5_vl.after_video(config, frames, 8, 20, seconds)
            assert [np.max(begin + shift)] * 3 == expected.tolist()
            assert np.abs(shift).max() <= 10
    assert qwen2_5_vl.text_after(config, 0, 8, 20, Fraction(1)).tolist() == [0, 0, 0]


def test_text_after_a_video_with_sound():
    """It stands behind the last token of sound, also where frames reach further."""
    layout = qwen2_5_omni_model.Layout(OMNI, CLIP)
    for pieces, size in ((1, (16, 40)), (1, (8, 8 * 60)), (3, (8 * 170, 16))):
        grid = (pieces, size[0] // 4, size[1] // 4)
        expected = lay.after_video(OMNI, pieces, grid, Fraction(2), 50 * pieces)
        base = np.array([50 * pieces, 0, 0])
        assert [np.max(base + layout.after(size, pieces))] * 3 == (base + expected).tolist()
    assert layout.after((16, 40), 0).tolist() == [0, 0, 0]


def test_ten_hours(silent, omni):
    """A chunk after ten hours is laid out like the first, with its own time in words."""
    model, hours = fit(silent, SIZE), 36_000  # pieces of 1 s
    pieces = pieces_of(model, 1)
    packed = [model.pack(*one_chunk(model, pieces[0]), start) for start in (0, hours)]
    words = read_ids(model, "<36000.2 seconds>")
    assert packed[1].plan.ids[: len(words)].tolist() == words and len(words) == 10
    assert (
        packed[0].plan.advance.tolist() == [13] * 3 and packed[1].plan.advance.tolist() == [17] * 3
    )
    model = fit(omni, SIZE)
    chunk = one_chunk(model, pieces_of(model, 1)[0])
    first, late = (model.pack(*chunk, start).plan for start in (0, 18_000))
    away = np.where(late.modality == AUDIO, 18_000 * 50, 0)  # sound is at its tick on every axis
    np.testing.assert_array_equal(late.pos - away[:, None] * np.array([[0, 1, 1]]), first.pos)
    np.testing.assert_array_equal(late.advance, [50, 0, 0])
    assert late.pos.dtype == np.int32


def one_chunk(model, piece):
    """What `Model.pack` takes of one piece, but for the pieces before it."""
    past = np.zeros(model.media.past_samples, np.float32)
    return piece.frames[None], piece.samples[None], np.array([True]), past


def test_sizes(silent, omni):
    assert omni.media.size(16, 40) == (16, 40)
    assert omni.media.size(3, 3) == (8, 8)
    assert omni.media.size(168, 400) == (16, 32)  # sides / 10.25, rounded down to cells
    assert silent.media.size(168, 400) == (16, 32)  # the same, of limits for 100 frames
    full_hd = smart_resize(1080, 1920, cell=28, limits=Limits(128 * 28**2, 768 * 28**2))
    assert full_hd == (560, 1008)  # sides / 1.856
    for height, width in ((1080, 1920), (37, 51), (8, 9)):
        sides = omni.media.size(height, width)
        assert 64 <= np.prod(sides) <= 640 and not any(side % 8 for side in sides)
    with pytest.raises(ValueError, match="too narrow"):
        omni.media.size(1, 201)
    with pytest.raises(ValueError, match=r"multiples of 8 pixels, got \(16, 41\)"):
        fit(silent, (16, 41))
    with pytest.raises(ValueError, match="depend on the size of its frames"):
        Session(silent, full(8))


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
    silent, sound = folder("qwen2_5_vl"), folder("qwen2_5_omni")
    name = "preprocessor_config.json"
    with pytest.raises(ValueError, match="does not say how large frames may be"):
        load(changed(silent, tmp_path / "a", name))
    with pytest.raises(ValueError, match="patch_size of the preprocessor is 14"):
        load(changed(silent, tmp_path / "b", name, patch_size=14))
    with pytest.raises(ValueError, match="fps must be positive"):
        load(silent, fps=0)
    with pytest.raises(
        ValueError, match=r"pieces of 2 s, which must hold a multiple of 2 pictures"
    ):
        load(sound, fps=1.5)
    other = changed(sound, tmp_path / "c", "config.json", position_id_per_seconds=5)
    with pytest.raises(ValueError, match=r"200 log-mel frames, expected .* becomes 10 tokens"):
        load(other)
