"""How large frames may be: by files, by the released pipeline, by hand."""

import json
import math
from types import SimpleNamespace

import pytest

import jaxmem as jm
from jaxmem.models.hf.preprocessor import limits_of
from jaxmem.models.qwen.qwen2_5_omni import read_mel
from jaxmem.models.qwen.tiny_checkpoint import write_tiny

CELL = 8**2  # pixels of a token of the tiny model


@pytest.fixture
def sized(tmp_path):
    """Return what loads a tiny Qwen2.5-VL with other limits and gives the size of its frames."""
    folder = write_tiny(tmp_path)
    name = folder / "preprocessor_config.json"
    settings = json.loads(name.read_text())

    def size(native, *, file="preprocessor_config.json", limits=None, **more):
        found = {k: v for k, v in settings.items() if not k.endswith("_pixels")} | (limits or {})
        (folder / file).write_text(json.dumps(found))
        return jm.load(folder, abstract=True, **more).media.size(*native)

    return size


def tokens(size):
    return size[0] * size[1] // CELL


def test_frames_of_videos_are_not_pictures(sized):
    """768 tokens at most and 128 at least, as released, whatever the limits for pictures."""
    pictures = {"min_pixels": 4 * CELL, "max_pixels": 16_384 * CELL}
    assert 700 < tokens(sized((1080, 1920), limits=pictures)) <= 768
    assert 128 <= tokens(sized((24, 32), limits=pictures)) < 160
    assert sized((160, 240), limits=pictures) == (160, 240)
    # Narrower limits of the file count, and so does a file for videos.
    assert tokens(sized((1080, 1920), limits=pictures | {"max_pixels": 300 * CELL})) <= 300
    assert sized((24, 32), limits={"min_pixels": CELL, "max_pixels": 10 * CELL}) == (16, 24)
    videos = {"file": "video_preprocessor_config.json", "limits": pictures}
    assert tokens(sized((1080, 1920), **videos)) > 4_000
    assert sized((24, 32), **videos) == (24, 32)


def test_a_limit_by_hand_needs_no_file(sized):
    assert tokens(sized((1080, 1920), max_pixels=200 * CELL)) <= 200
    null = {"min_pixels": None, "max_pixels": None, "size": {}}
    assert tokens(sized((1080, 1920), limits=null, max_pixels=200 * CELL)) <= 200
    assert 700 < tokens(sized((1080, 1920), limits=null)) <= 768


def test_a_size_for_other_patches_blames_the_right_file(sized):
    with pytest.raises(
        ValueError, match=r"patch_size is 5 in .* \(preprocessor_config\.json\), but"
    ):
        sized((24, 32), limits={"patch_size": 5, "min_pixels": 1, "max_pixels": 10})


def test_without_settings_the_files_are_asked_for(tmp_path):
    folder = write_tiny(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="download the preprocessor files too, or give max_pixels"):
        jm.load(folder)
    assert jm.load(folder, max_pixels=10 * CELL).media.size(24, 32) == (16, 24)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        *(("min_pixels", x) for x in ("x", [1], True, -1, math.inf)),
        *(("max_pixels", x) for x in ("640", {}, 0, 0.5)),
        *(("image_mean", x) for x in (0.5, "x", [0.5], [0.5, 0.5, "x"], [0.5, 0.5, math.inf])),
        *(("image_std", x) for x in (0.3, [0.3, 0.3], [0.3, 0.3, 0])),
        *(("rescale_factor", x) for x in ("1/255", [1], -1)),
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_what_is_no_such_number_is_refused_by_its_key_and_file(sized, file, key, wrong):
    limits = {"min_pixels": CELL, "max_pixels": 10 * CELL, key: wrong}
    repair = f"use the {file} of the checkpoint"
    with pytest.raises(ValueError, match=f"^{key} is .* in {file}, expected .*: {repair}.$"):
        sized((24, 32), file=file, limits=limits)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_frames": 0}, "max_frames is 0 in .*, expected a whole number from 1 on"),
        ({"max_frames": "x"}, "max_frames is 'x' in .*, expected a whole number from 1 on"),
        ({"size": {"shortest_edge": 1, "longest_edge": "x"}}, "longest_edge is 'x' in "),
        (
            {"size": {"shortest_edge": 1, "longest_edge": 99}},
            "longest_edge is 99 in .*, expected at least one pixel of each of 100 frames",
        ),
    ],
)
def test_limits_of_whole_videos(more, said):
    size = {"shortest_edge": 100, "longest_edge": 10**6}
    with pytest.raises(ValueError, match=f"^{said}"):
        limits_of({"max_frames": 100, "size": size} | more, whole_videos=True)


def test_settings_in_one_file_are_objects(tmp_path):
    folder = write_tiny(tmp_path)
    (folder / "processor_config.json").write_text('{"video_processor": [1]}')
    with pytest.raises(ValueError, match=r"^video_processor is \[1\] in processor_config.json, "):
        jm.load(folder)


@pytest.mark.parametrize("key", ["sampling_rate", "n_fft", "hop_length"])
def test_settings_of_sound_are_whole_numbers(key):
    for wrong in (0, "x", 160.5, [160]):
        with pytest.raises(ValueError, match=f"^{key} is .* in preprocessor_config.json, expected"):
            read_mel({key: wrong}, SimpleNamespace(mel_bins=128))
