"""The files of a report: JSON and pictures, complete or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxmem.data.world.atomic import complete


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
