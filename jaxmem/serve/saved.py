"""Sessions as they are saved: their streams of one moment, with what clients know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from jaxmem import saves
from jaxmem.serve.reading import Reading
from jaxmem.serve.served import Served
from jaxmem.serve.wanting import Wanted


class SavedSession(NamedTuple):
    """A session of a save."""

    where: Path  # the save
    id: str
    wanted: Wanted
    questions: list[dict[str, Any]]
    standing: list[dict[str, Any]]
    gaps: list[list[int]]
    source: dict[str, Any] | None  # name, pace, and how many pieces of it were seen; None: pushed


def write_sessions(
    folder: Path,
    sessions: Sequence[Served],
    readings: Mapping[str, Reading],
    *,
    padded: bool = False,
) -> None:
    """Save sessions that see one stream to a folder, all of it or nothing.

    Args:
      folder: of the saves.
      sessions: that are open.
      readings: what sessions read by themselves, by their ids.
      padded: with what was pushed and does not fill a piece yet.

    Raises:
      ValueError: if one of them has ended.
      OSError: if it cannot be written.
    """
    parts, about = {}, {}
    with ExitStack() as still:
        mine = {one.id: readings[one.id] for one in sessions if one.id in readings}
        for reading in set(mine.values()):
            still.enter_context(reading.still)
        for one in sessions:
            source = _source(mine.get(one.id))  # first: what is over by now is fed
            session = one.session() if padded else one.live.session()
            session.made = one.live.engine.made
            parts[one.id] = session.part()
            about[one.id] = _about(one) | {"source": source}
    saves.write(folder, parts, replace=True, more={"served": about})


def _about(one: Served) -> dict[str, Any]:
    return {
        "memory": one.wanted.memory,
        "budget": one.wanted.budget,
        "options": dict(one.wanted.options),
        "questions": one.questions.plain(),
        "standing": one.questions.standing(),
        "gaps": one.live.gaps.plain(),
    }


def _source(reading: Reading | None) -> dict[str, Any] | None:
    """Return what a session reads; None: clients push, or it is over."""
    if reading is None or not reading.left:
        return None
    return {"name": reading.source.name, "pace": reading.pace, "after": reading.after}


def read_sessions(folder: Path) -> list[SavedSession]:
    """Return the sessions of the last save in a folder.

    Raises:
      ValueError: if there is none, it is damaged, or something else wrote it.
    """
    saved = saves.read(folder)
    found = saved.more.get("served")
    if found is None:
        raise ValueError(f"what is saved at {folder} is no session of a server.")
    return [_read(saved.where, id, one) for id, one in found.items()]


def _read(where: Path, id: str, one: Mapping[str, Any]) -> SavedSession:
    options = tuple((k, _tuples(v)) for k, v in sorted(one["options"].items()))
    wanted = Wanted(one["memory"], one["budget"], options)
    rest = (one[name] for name in ("questions", "standing", "gaps", "source"))
    return SavedSession(where, id, wanted, *rest)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value
