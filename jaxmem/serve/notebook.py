"""A `Session` in a notebook: picture, memory map, bytes and answers, while it streams.

A view is one output cell that changes:

    view = LiveView(Session(load("tiny"), OmniMem(96)))
    view.watch("talk.mp4", ask=[(10, "what was the last shape?")])
    view.ask("what was the last sound?")
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmem.data.media.picture import encode_png
from jaxmem.pieces import PieceLike
from jaxmem.replies import Reply
from jaxmem.report.numbers import clock, milliseconds, size
from jaxmem.report.style import GRID, INK, NEUTRAL
from jaxmem.session import Session
from jaxmem.typing import UInt

PICTURE = 192
"""Pixels of the longer side of the live picture on the screen."""
DPI = 75
"""Of the map: about 800 pixels across."""


class Line(NamedTuple):
    """A question in the history."""

    time: float  # seconds of stream when it was asked
    question: str
    answer: str
    first_seconds: float | None = None  # to the first token; None: it is still written


class Stopped(Exception):  # noqa: N818  # not an error: `LiveView.stop` ends a stream with it
    """Ends a stream that is watched."""


class LiveView:
    """What a session sees, holds and answers, as one output cell that changes.

    Attributes:
      session: what is watched and asked.
      history: questions with their answers, oldest first.
      error: what ended a stream in the background, if it failed.
    """

    def __init__(self, session: Session, *, every: float = 1.0):
        """View a session; nothing is displayed yet.

        Args:
          session: what is to be fed and asked through this view.
          every: seconds between two drawings of the map at least.

        Raises:
          ValueError: if `every` is negative.
        """
        if every < 0:
            raise ValueError(f"every is in seconds and not negative, got {every}.")
        self.session, self.every = session, every
        self.history: list[Line] = []
        self.error: Exception | None = None
        self._picture = self._map = ""
        self._due: list[tuple[float, str]] = []
        self._drawn = -np.inf
        self._update: Callable[[str], None] | None = None
        self._showing = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def watch(
        self,
        source: str | Path | Iterable[PieceLike],
        *,
        ask: Sequence[tuple[float, str]] = (),
        background: bool = False,
        **options: Any,
    ) -> None:
        """Stream a source, and show it meanwhile.

        Args:
          source: as `Session.watch` takes it.
          ask: (seconds of stream, question) pairs, each asked when the stream is there.
          background: return at once and go on in a thread, so that the next cell can ask; `stop`
            and `wait` end it.
          options: of `Session.watch`.

        Raises:
          ValueError: as `Session.watch` and `Session.ask`, or if a stream is watched already.
        """
        if self._thread is not None and self._thread.is_alive():
            raise ValueError(
                "this view watches a stream already: stop() it, or wait() for its end."
            )
        self._due, self._stopping, self.error = sorted(ask), False, None
        self._display()
        if not background:
            self._stream(source, options)
            return
        run = lambda: self._keep_error(lambda: self._stream(source, options))
        self._thread = threading.Thread(target=run, name="jaxmem-view", daemon=True)
        self._thread.start()

    def ask(self, question: str) -> Reply:
        """Ask about everything fed so far, and show the answer as it is written.

        Raises:
          ValueError: as `Session.ask`.
        """
        written = self.session.answer(question)
        line, place = Line(self.session.seconds, question, ""), len(self.history)
        self.history.append(line)
        while True:
            try:
                line = line._replace(answer=line.answer + next(written))
            except StopIteration as end:
                reply: Reply = end.value
                break
            except BaseException:
                del self.history[place]
                raise
            self.history[place] = line
            self._show()
        self.history[place] = line._replace(answer=reply.text, first_seconds=reply.first_seconds)
        self._show()
        return reply

    def stop(self) -> None:
        """End a stream in the background after its current piece; it can still be asked."""
        self._stopping = True
        self.wait()

    def wait(self) -> None:
        """Wait for the end of a stream in the background.

        Raises:
          ValueError: and what else ended it, if it failed.
        """
        if self._thread is not None:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def __call__(self, piece: PieceLike) -> None:
        """Show a piece that was fed; `Session.watch` calls it."""
        if self._stopping:
            raise Stopped
        frames = np.asarray(piece.frames)
        if len(frames):
            self._picture = picture(frames[-1])
        while self._due and self._due[0][0] <= self.session.seconds:
            self.ask(self._due.pop(0)[1])
        if time.monotonic() - self._drawn >= self.every:
            self._draw()

    def html(self) -> str:
        """Return the view as a piece of HTML; nothing in it comes from elsewhere."""
        session = self.session
        held = f"<b>{size(session.nbytes)}</b> held after {clock(session.seconds)}"
        rows = "".join(_row(line) for line in self.history)
        style = f"background:#fff;color:{INK};padding:12px;font:14px/1.5 sans-serif;max-width:860px"
        return (
            f'<div style="{style}"><div style="display:flex;gap:20px;flex-wrap:wrap">'
            f'<div style="min-width:{PICTURE}px">{self._picture}</div>'
            f'<div style="flex:1">{escape(session.memory.name)}: {held}, however long the stream'
            f'<table style="margin-top:8px;border-top:1px solid {GRID}">{rows}</table></div></div>'
            f"{self._map}</div>"
        )

    def _repr_html_(self) -> str:
        return self.html()

    def _stream(self, source: str | Path | Iterable[PieceLike], options: dict[str, Any]) -> None:
        try:
            self.session.watch(source, show=self, **options)
        except Stopped:
            pass
        finally:
            self._draw()

    def _keep_error(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # `wait` raises it; a thread could only print it
            self.error = error

    def _display(self) -> None:
        """Begin an output cell, where IPython is."""
        try:
            from IPython.display import HTML, display
        except ImportError:
            raise ValueError(
                "a live view needs the package IPython: pip install 'jaxmem[notebooks]'."
            ) from None
        handle = display(HTML(self.html()), display_id=True)
        self._update = None if handle is None else lambda text: handle.update(HTML(text))

    def _draw(self) -> None:
        """Draw the map anew, and show everything."""
        if self.session.pieces:
            self._map = embedded_figure(self.session.memory_map())
        self._show()
        self._drawn = time.monotonic()

    def _show(self) -> None:
        with self._showing:
            if self._update is not None:
                self._update(self.html())


def _row(line: Line) -> str:
    cost = "" if line.first_seconds is None else milliseconds(1000 * line.first_seconds)
    faint = f'style="color:{NEUTRAL}"'
    cells = (f"<td {faint}>{clock(line.time)}</td>", f"<td>{escape(line.question)}</td>")
    return f"<tr>{''.join(cells)}<td><b>{escape(line.answer)}</b></td><td {faint}>{cost}</td></tr>"


def picture(frame: UInt[np.ndarray, "h w 3"]) -> str:
    """Return a frame as an image in HTML, its pixels as the model sees them."""
    height, width = frame.shape[:2]
    scale = PICTURE / max(height, width)
    box = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    style = "image-rendering:pixelated;border-radius:4px"
    return f'<img {box} style="{style}" alt="the newest picture" src="{_data(encode_png(frame))}">'


def embedded_figure(figure: Any) -> str:
    """Return a matplotlib figure as an image in HTML, as wide as its place allows."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return f'<img style="width:100%" alt="the memory map" src="{_data(file.getvalue())}">'


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
