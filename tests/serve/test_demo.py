"""The gradio demo: what it shows of a video, and what it says where something is missing."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxmem.data.world.files import held_out
from jaxmem.serve import demo


def test_a_video_is_watched_and_asked(model, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "EVERY", 0.0)
    video, _ = held_out(3, 3, tmp_path, count=1, scale=1)
    steps = list(demo.watch(model, str(video), "recent", "40"))
    assert len(steps) == 4  # one a second, and the end
    assert "after 00:01" in steps[0][2] and "after 00:03" in steps[-1][2]
    assert len({held.partition(" held")[0] for _, _, held, _ in steps}) == 1
    frame, figure, _, session = steps[-1]
    assert frame.shape == (240, 240, 3) and isinstance(figure, Figure)
    text = "what was the last shape?"
    history, box = demo.ask(session, text, [])
    assert [one["role"] for one in history] == ["user", "assistant"] and box == ""
    assert history[0]["content"] == f"00:03  {text}"
    assert history[1]["content"] == session.ask(text).text
    with pytest.raises(ValueError, match="elephants"):
        demo.ask(session, "elephants?", history)


def test_what_is_missing_is_said(model, monkeypatch):
    with pytest.raises(ValueError, match="no video yet"):
        next(demo.watch(model, None, "recent", "40"))
    with pytest.raises(ValueError, match="watch a video first"):
        demo.ask(None, "what was the last shape?", [])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"jaxmem\[demo\]"):
        demo.app()


def test_small_pictures_get_larger_pixels():
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = demo.magnified(frame)
    assert large.shape == (240, 240, 3)
    np.testing.assert_array_equal(large[::120, ::120], frame)
    assert demo.magnified(np.zeros((300, 400, 3), np.uint8)).shape == (300, 400, 3)


@pytest.mark.slow
def test_the_demo_is_built():
    pytest.importorskip("gradio")
    blocks = demo.app()
    labels = {
        component.label for component in blocks.blocks.values() if hasattr(component, "label")
    }
    assert {"Video", "Memory", "Question"} <= labels
