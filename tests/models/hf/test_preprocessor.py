"""How large frames may be, by files for videos, for pictures, and by the caller."""

import json

import pytest

from jaxmem.models.hf.preprocessor import Limits, limits_of, read_settings

CELL = 28
PUBLISHED = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14}


def limits(folder, **more):
    return limits_of(read_settings(folder), cell=CELL, **{"whole_videos": False, **more})


def test_limits_of_pictures_are_not_those_of_frames(tmp_path):
    """A frame has 128 to 768 tokens in the released pipelines; smaller limits are the caller's."""
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(PUBLISHED))
    assert limits(tmp_path) == Limits(128 * CELL**2, 768 * CELL**2)
    assert limits(tmp_path, whole_videos=True) == limits(tmp_path)  # a copy without the video file
    file.write_text(json.dumps({**PUBLISHED, "max_pixels": 100_000}))
    assert limits(tmp_path) == Limits(3136, 100_000)


def test_limits_of_videos_are_as_the_file_says(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    size = {"shortest_edge": 4096, "longest_edge": 25_165_824}
    file = tmp_path / "video_preprocessor_config.json"
    file.write_text(json.dumps({"size": size, "max_pixels": None}))
    assert limits(tmp_path) == Limits(4096, 25_165_824)
    assert limits(tmp_path, whole_videos=True) == Limits(4096 // 768, 25_165_824 // 768)


def test_a_limit_of_the_caller_needs_no_file(tmp_path):
    assert limits(tmp_path, most=50_000) == Limits(50_000, 50_000)
    assert limits(tmp_path, most=500_000) == Limits(128 * CELL**2, 500_000)
    with pytest.raises(ValueError, match="does not say how large frames may be"):
        limits(tmp_path)
