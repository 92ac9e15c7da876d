"""Sessions in a folder: saved one by one, or all at once when the server stops."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmem import saves
from jaxmem.serve.limits import NAME, RefusedError, checked_name
from jaxmem.serve.reading import Reading
from jaxmem.serve.served import Served
from jaxmem.serve.wanting import Wanted

RUNNING = "running.json"
"""Names the sessions that the server that stopped had open; a name of a session has no dot."""


class SavedSession(NamedTuple):
    """A session in the folder."""

    folder: Path
    wanted: Wanted
    questions: list[dict[str, Any]]
    standing: list[dict[str, Any]]
    gaps: list[list[int]]


class Keeping:
    """Saved sessions by name, each in a folder of `jaxmem.saves`."""

    def __init__(self, path: Path, most: int):
        """Keep at most so many in the folder `path`, which is made.

        Raises:
          OSError: if it cannot be.
        """
        self.path, self._most = path.absolute(), most
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def names(self) -> list[str]:
        """Return the names of the saved sessions."""
        return sorted(x.name for x in self.path.iterdir() if x.is_dir() and NAME.fullmatch(x.name))

    def write(self, served: Served) -> str:
        """Save a session, all of it or nothing, and return its name.

        Raises:
          RefusedError: if there are too many.
          OSError: if it cannot be written.
        """
        folder = self.path / checked_name(served.id)
        if not folder.exists() and len(self.names) >= self._most:
            raise RefusedError(
                f"{self._most} sessions are saved already: remove some of them from the server's "
                "folder.",
                "full",
                507,
            )
        session = served.live.session()
        session.made = served.live.engine.made
        wanted, questions = served.wanted, served.questions
        more = {
            "memory": wanted.memory,
            "budget": wanted.budget,
            "options": dict(wanted.options),
            "questions": questions.plain(),
            "standing": questions.standing(),
            "gaps": served.live.gaps.plain(),
        }
        saves.write(folder, {"stream": session.part()}, replace=True, more={"served": more})
        return served.id

    def read(self, name: object) -> SavedSession:
        """Return a session by the name that `write` gave.

        Raises:
          ValueError: if there is none.
        """
        folder = self.path / checked_name(name, "name of the saved session")
        if not folder.is_dir():
            raise RefusedError(f"no session {name} is saved here.", "unknown", 404)
        found = saves.read(folder).more.get("served")
        if found is None:
            raise RefusedError(
                f"what is saved as {name} is no session of a server.", "unknown", 404
            )
        options = tuple((k, _tuples(v)) for k, v in sorted(found["options"].items()))
        wanted = Wanted(found["memory"], found["budget"], options)
        return SavedSession(folder, wanted, found["questions"], found["standing"], found["gaps"])

    def write_all(self, sessions: Sequence[Served], readings: Mapping[str, Reading]) -> list[str]:
        """Save sessions, to go on with `take_list`; return what could not be, in words."""
        failed: list[str] = []
        running: dict[str, dict[str, Any]] = {}
        for one in sessions:
            try:
                one.settle()
                self.write(one)
                running[one.id] = {"peers": [x.id for x in one.peers]}
                running[one.id] |= _source(readings.get(one.id))
            except (ValueError, OSError) as error:
                failed.append(f"session {one.id} could not be saved: {error}")
        text = json.dumps(running, indent=1)
        try:
            temporary = self.path / f".{RUNNING}"
            temporary.write_text(text + "\n")
            temporary.replace(self.path / RUNNING)
        except OSError as error:
            failed.append(f"{self.path / RUNNING} could not be written: {error}")
        return failed

    def take_list(self) -> Mapping[str, dict[str, Any]]:
        """Return what `write_all` noted: sessions by id, with what they read. It is then gone."""
        path = self.path / RUNNING
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        path.unlink()
        return {checked_name(name): source for name, source in found.items()}


def _source(reading: Reading | None) -> dict[str, Any]:
    """Return what a session reads, and how far it is; nothing: clients push, or it is over."""
    if reading is None or not reading.left:
        return {}
    return {"name": reading.source.name, "pace": reading.pace, "after": reading.after}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value
