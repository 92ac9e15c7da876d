"""What is stored of a benchmark: the raw replies of a memory to the questions of one video."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmem.data.benchmarks import Item, Video
from jaxmem.report.files import write_json

Cell = dict[str, Any]
FORMAT, VERSION = "jaxmem-benchmark-cell", 1


def path_of(out: Path, memory: str, video: Video) -> Path:
    """Return the file of a cell; names of videos that make no good file name are hashed."""
    name = re.sub(r"[^\w.@-]+", "_", video.id)[-80:].lstrip(".")
    mark = hashlib.sha256(video.id.encode()).hexdigest()[:8]
    return out / "cells" / memory / f"{name}-{mark}.json"


def write(out: Path, memory: str, video: Video, cell: Mapping[str, Any]) -> None:
    """Write a cell, all of it or nothing."""
    head = {"format": FORMAT, "version": VERSION, "video": video.id, "memory": memory}
    write_json(path_of(out, memory, video), {**head, **cell})


def read(out: Path, memory: str, video: Video) -> Cell | None:
    """Return a cell; None if it is not there.

    Raises:
      ValueError: if the file is not one of this command.
    """
    path = path_of(out, memory, video)
    return load(path) if path.is_file() else None


def load(path: Path) -> Cell:
    """Return the cell of a file.

    Raises:
      ValueError: if the file is not one of this command.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise ValueError(f"{path} holds no replies of this version; remove it, or give --out.")
    return found


def complete(cell: Cell | None, mark: str, items: Sequence[Item], asked: Mapping[str, str]) -> bool:
    """Return whether a cell has all replies, of the same settings, to the same words in time.

    Args:
      cell: as it was read.
      mark: of the settings.
      items: about its video.
      asked: id of an item -> what it is asked in.
    """
    if cell is None or cell["fingerprint"] != mark or "failed" in cell:
        return False
    there = {
        one["id"]: (one["asked"], one.get("asked_at")) for one in (*cell["replies"], *cell["lost"])
    }
    return all(there.get(x.id) == (asked[x.id], asked_at(x)) for x in items)


def asked_at(item: Item) -> float | None:
    """Return when an item is first asked."""
    return item.polls[0] if item.polls else item.asked_at


def lost(items: Sequence[Item], asked: Mapping[str, str], reason: str) -> list[dict[str, Any]]:
    """Return items that could not be asked as they are stored."""
    return [
        {"id": item.id, "asked": asked[item.id], "asked_at": asked_at(item), "reason": reason}
        for item in items
    ]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
