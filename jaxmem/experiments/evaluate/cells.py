"""What comparisons share: the bar over their cells, and their tables, shown and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxmem.data.world.atomic import complete
from jaxmem.report.commit import made_by


def reopened(path: Path, mark: str, new: dict[str, Any]) -> dict[str, Any]:
    """Return the cell of a file, or a new one where it is of other settings, or there is none.

    Args:
      path: of the cell.
      mark: fingerprint of the settings.
      new: what a new cell begins with besides the mark and what it is made by.
    """
    held = json.loads(path.read_text()) if path.is_file() else {}
    return held if held.get("fingerprint") == mark else {"fingerprint": mark, **made_by(), **new}


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


def show_tables(tables: Sequence[Table], path: Path, console: Console, *, width: int) -> None:
    """Print tables, and write them as text of a width to `path`, all of it or nothing."""
    for one in tables:
        console.print(one)
    with complete(path) as whole, whole.open("w") as file:
        text = Console(width=width, file=file)
        for one in tables:
            text.print(one)
