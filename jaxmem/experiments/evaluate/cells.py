"""What comparisons share: the bar over their cells, and their tables, shown and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxmem.data.world.atomic import complete
from jaxmem.report.commit import made_by
from jaxmem.report.files import write_json


def begun(mark: str, **more: Any) -> dict[str, Any]:
    """Return a new cell: `mark`, the fingerprint of its settings, what it is made by, and more."""
    return {"fingerprint": mark, **made_by(), **more}


def reopened(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Return the cell of a file, or of one that `stored` set aside, that has the settings of `new`.

    That is `new` where there is none.

    Raises:
      ValueError: if the file is no cell.
    """
    for one in (path, _aside(path, new)):
        if one.is_file() and (held := _load(one))["fingerprint"] == new["fingerprint"]:
            return held
    return new


def stored(path: Path, cell: dict[str, Any]) -> None:
    """Write a cell, all of it or nothing; one of other settings is set aside in a file beside it.

    Raises:
      ValueError: if the file that is there is no cell.
    """
    if path.is_file() and (held := _load(path))["fingerprint"] != cell["fingerprint"]:
        path.replace(_aside(path, held))
    write_json(path, cell)
    _aside(path, cell).unlink(missing_ok=True)  # all that it held is in the file now


def _aside(path: Path, cell: dict[str, Any]) -> Path:
    return path.with_name(f"{path.name}.{cell['fingerprint']}")


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or "fingerprint" not in found:
        raise ValueError(f"{path} is no cell of this command; remove it, or give another --out.")
    return found


def settings_of(config: Any) -> dict[str, Any]:
    """Return the settings of a comparison in words: its own, and the options of memories."""
    words = lambda found: {name: str(value) for name, value in found.items()}
    options = {name: words(own) for name, own in config.options.items()}
    return {"config": words(asdict(replace(config, options={}))), "options": options}


def show_left_out(paths: Iterable[Path], console: Console) -> None:
    """Print which of the cells that `--measured-only` leaves out are there all the same."""
    if stems := [path.stem for path in paths if path.is_file()]:
        console.print(
            "left out, because their settings, weights or sizes are not those of this command: "
            f"{', '.join(stems)}. Without --measured-only they are measured again.",
            markup=False,
        )


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
