"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name once everything went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_json(path: str | Path, document: Any) -> Path:
    """Write plain data as JSON, without NaN or infinity, and return the path."""
    path = Path(path)
    text = json.dumps(document, indent=1, allow_nan=False, default=str) + "\n"
    with complete(path) as temporary:
        temporary.write_text(text)
    return path


def write_picture(path: str | Path, figure: Figure, *, dpi: int = 150) -> Path:
    """Write a figure (the suffix chooses the format) and return the path."""
    path = Path(path)
    with complete(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    return path
