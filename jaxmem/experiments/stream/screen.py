"""What changes on the terminal: the bar, the answer being written, and the line being typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from jaxmem.report import tables
from jaxmem.report.results import Answered

SHOWN_LINES = 4
"""Of a long answer while it is written; it is printed in full when it is finished."""


class Screen:
    """Prints answers, and shows the one that is being written below what was printed."""

    def __init__(
        self, console: Console, names: Sequence[str], typing: Callable[[], str] = lambda: ""
    ):
        """Show nothing yet; `typing` returns what has been typed of a line that is not finished."""
        self.console, self.names, self._typing = console, tuple(names), typing
        self._writing: tuple[str, str, str] | None = None  # memory, question, text so far

    def wrote(self, name: str, question: str, part: str) -> None:
        """Show a new part of the answer that memory `name` gives."""
        before = self._writing
        same = before is not None and before[:2] == (name, question)
        self._writing = (name, question, (before[2] if before and same else "") + part)

    def answered(self, answers: list[Answered]) -> None:
        """Print the finished answers to one question."""
        self._writing = None
        self.console.print(tables.answers_line(answers, self.names))

    def refused(self, reason: str) -> None:
        """Print why a typed question cannot be asked."""
        self.console.print(reason, style="yellow", markup=False)

    def __rich__(self) -> Text:
        """Return the lines below the bar."""
        text, typing = Text(), self._typing()
        if self._writing is not None:
            name, question, written = self._writing
            text.append(f"  {question}  " if len(self.names) == 1 else f"  {question}  {name} ")
            most = SHOWN_LINES * self.console.width - len(text.plain)
            text.append(
                written if len(written) <= most else f"… {written[2 - most :]}", style="bold"
            )
        if typing:
            text.append("\n> " if text.plain else "> ", style="cyan").append(typing)
        return text


class Bar(Progress):
    """A progress bar of stream time with a screen's lines below it."""

    def __init__(self, screen: Screen):
        """Return a bar on the screen's console."""
        self._screen = screen
        super().__init__(
            TextColumn("{task.fields[at]:>8}", style="cyan"),
            BarColumn(bar_width=40),
            TextColumn("{task.fields[speed]}"),
            console=screen.console,
            transient=not screen.console.is_terminal,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is shown: the bar, and the screen's lines if there are any."""
        yield from super().get_renderables()
        below = self._screen.__rich__()
        if below.plain:
            yield below
