"""A `Session` in a notebook: what the output cell says while a stream runs."""

import re
from types import SimpleNamespace

import IPython.display
import numpy as np
import pytest

from jaxmem.memory.baselines import Recent
from jaxmem.serve.notebook import LiveView
from jaxmem.session import Session

LAST = "what was the last shape?"


def pieces(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        frames = rng.integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
        yield SimpleNamespace(frames=frames, samples=np.zeros(16000, np.float32))


@pytest.fixture
def cells(monkeypatch):
    """What every version of the output cell says."""
    found = []

    def display(html, display_id):
        assert display_id
        found.append(html.data)
        return SimpleNamespace(update=lambda html: found.append(html.data))

    monkeypatch.setattr(IPython.display, "display", display)
    return found


def test_the_cell_grows_with_the_stream(model, cells):
    view = LiveView(Session(model, Recent(40)), every=0.0)
    view.watch(pieces(4), ask=[(3, "was the bell heard?"), (2, LAST)])
    times = [re.search(r"held after ([\d:]+)", cell)[1] for cell in cells]
    assert times == sorted(times) and times[0] == "00:00" and times[-1] == "00:04"
    assert [line.time for line in view.history] == [2.0, 3.0]  # each at its time
    assert len({re.search(r"<b>([\d.]+ KiB)</b>", cell)[1] for cell in cells}) == 1
    assert cells[0].count("data:image/png") == 0 and cells[-1].count("data:image/png") == 2
    assert cells[-1] == view._repr_html_() and "http" not in cells[-1]
    assert view.ask(LAST).text == view.session.ask(LAST).text == view.history[-1].answer
    assert cells[-1].count(LAST) == 2  # of this question, and of the first one


def test_a_stream_in_the_background_is_asked_and_stopped(model, cells):
    view = LiveView(Session(model, Recent(40)), every=100.0)
    view.watch(pieces(1000), background=True)
    with pytest.raises(ValueError, match="watches a stream already"):
        view.watch(pieces(1))
    assert view.ask(LAST).text
    view.stop()
    assert 0 < view.session.seconds < 1000
    seconds = view.session.seconds
    view.watch(pieces(2))  # goes on where it was
    assert view.session.seconds == seconds + 2


def test_what_ends_a_stream_in_the_background_is_told(model, cells):
    view = LiveView(Session(model, Recent(40)))
    view.watch(
        [SimpleNamespace(frames=np.zeros((1, 8, 8, 3), np.uint8), samples=None)], background=True
    )
    with pytest.raises(ValueError, match="no samples"):
        view.wait()
    with pytest.raises(ValueError, match="elephants"):
        view.ask("what about <b>elephants</b>?")
    assert not view.history
    with pytest.raises(ValueError, match="not negative"):
        LiveView(view.session, every=-1)


def test_text_is_only_ever_text(model, cells, monkeypatch):
    view = LiveView(Session(model, Recent(40)))
    monkeypatch.setattr(Session, "answer", lambda self, question: _written("<script>"))
    view.ask("<img src=x>")
    assert "<script>" not in view.html() and "<img src=x>" not in view.html()
    assert "&lt;script&gt;" in view.html()


def _written(text):
    yield text
    return SimpleNamespace(text=text, first_seconds=0.001)
