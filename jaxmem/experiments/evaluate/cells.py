"""The bar of a comparison: how many of its cells are measured, and which one."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class CellBar:
    """A progress bar over cells, as a context."""

    def __init__(self, total: int, console: Console):
        columns = [TextColumn("{task.fields[at]:<28}"), BarColumn(), MofNCompleteColumn()]
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self.task = self.progress.add_task("cells", total=total, at="")

    def advance(self, at: str) -> None:
        """Count one more; `at` is the last one's name."""
        self.progress.update(self.task, advance=1, at=at)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *why: object) -> None:
        self.progress.stop()
