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
FORMAT, VERSION = "jaxmem-benchmark-cell", 2
KEYS = ("fingerprint", "replies", "lost")
"""What every cell has beside its head."""
LONGEST = 160
"""Bytes of a file's name that are a video's."""


def path_of(out: Path, memory: str, video: Video) -> Path:
    """Return the file of a cell; names of videos that make no good file name are hashed."""
    name = re.sub(r"[^\w.@-]+", "_", video.id)[-80:].encode()[-LONGEST:].decode(errors="ignore")
    mark = hashlib.sha256(video.id.encode()).hexdigest()[:8]
    return out / "cells" / memory / f"{name.lstrip('.')}-{mark}.json"


def files(out: Path) -> list[Path]:
    """Return the files of all cells in a folder, without what a run is still writing."""
    found = sorted((out / "cells").glob("*/*.json"))
    return [path for path in found if not path.name.startswith(".")]


def write(out: Path, memory: str, video: Video, cell: Cell) -> bool:
    """Write a cell, all of it or nothing, and lose no reply that was stored before.

    Those to other questions stay in the cell; those under other settings or another prompt are set
    aside in a file beside it; and a video that could not be watched takes no place from replies.

    Args:
      out: folder of the run.
      memory: name of the memory.
      video: which was watched.
      cell: replies to some questions about it, with the settings they were given under.

    Returns: whether it was written.
    """
    path = path_of(out, memory, video)
    held = load(path) if path.is_file() else {"replies": ()}
    if held["replies"]:
        if "failed" in cell:
            return False
        if all(held.get(key) == cell.get(key) for key in ("fingerprint", "prompt")):
            cell = _joined(held, cell)
        else:
            path.replace(path.with_name(f"{path.name}.{held['fingerprint']}"))
    head = {"format": FORMAT, "version": VERSION, "video": video.id, "memory": memory}
    write_json(path, {**head, **cell})
    return True


def _joined(held: Cell, new: Cell) -> Cell:
    """Return a new cell with what an older one has of other questions."""
    asked = {one["id"] for one in (*new["replies"], *new["lost"])}
    rest = {x: [one for one in held[x] if one["id"] not in asked] for x in ("replies", "lost")}
    most = {x: max(held.get(x, 0), new.get(x, 0)) for x in ("nbytes", "host_nbytes", "seconds")}
    return {**new, **most, **{x: [*rest[x], *new[x]] for x in rest}}


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
    head = {"format": FORMAT, "version": VERSION}
    if (
        not isinstance(found, dict)
        or not set(KEYS) <= set(found)
        or {key: found.get(key) for key in head} != head
    ):
        raise ValueError(f"{path} holds no replies of this version; remove it, or give --out.")
    return found


def missing(
    cell: Cell | None, mark: str, items: Sequence[Item], asked: Mapping[str, str]
) -> list[Item]:
    """Return the items to which a cell has no reply of these settings, words and times.

    Args:
      cell: as it was read.
      mark: of the settings.
      items: about its video.
      asked: id of an item -> what it is asked in.
    """
    if cell is None or cell["fingerprint"] != mark or "failed" in cell:
        return list(items)
    there = {one["id"]: one for one in (*cell["replies"], *cell["lost"])}
    return [x for x in items if x.id not in there or not put_so(there[x.id], x, asked[x.id])]


def put_so(one: Mapping[str, Any], item: Item, words: str) -> bool:
    """Return whether what is stored of an item was asked in these words, at its time."""
    return (one["asked"], one.get("asked_at")) == (words, asked_at(item))


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
