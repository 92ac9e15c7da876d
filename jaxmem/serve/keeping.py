"""Sessions in a folder that clients save by name, and begin anew from."""

from __future__ import annotations

from pathlib import Path

from jaxmem.serve.limits import NAME, RefusedError, checked_name
from jaxmem.serve.saved import SavedSession, read_sessions, write_sessions
from jaxmem.serve.served import Served


def folders(path: Path) -> list[str]:
    """Return the names of what is saved in a folder."""
    return sorted(x.name for x in path.iterdir() if NAME.fullmatch(x.name) and x.is_dir())


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
        return folders(self.path)

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
        write_sessions(folder, [served], {}, padded=True)
        return served.id

    def read(self, name: object) -> SavedSession:
        """Return a session by the name that `write` gave.

        Raises:
          ValueError: if there is none.
        """
        folder = self.path / checked_name(name, "name of the saved session")
        if not folder.is_dir():
            raise RefusedError(f"no session {name} is saved here.", "unknown", 404)
        (saved,) = read_sessions(folder)
        return saved
