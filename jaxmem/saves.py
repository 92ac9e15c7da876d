"""Folders of saved streams: written completely or not at all, every array with a checksum.

A folder holds the last few saves, numbered. Each is a folder of two files: `arrays.bin`, and
`made.json` with what made the streams, what the host knows, and a checksum of every array. A save
appears under its number when it is complete, so a process may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.saved_form import misplaced

FORMAT = 3
"""Formats 1 and 2 were single folders of orbax; they are refused."""

KEPT = 2
"""Saves that a folder keeps: the last one, and the one before it should the last be damaged."""


class SavedPiece(NamedTuple):
    """A piece that waited for its chunk to fill."""

    frames: np.ndarray
    samples: np.ndarray


class Part(NamedTuple):
    """One stream, as it is saved."""

    made: Mapping[str, str]  # by what; empty: unknown
    numbers: Mapping[str, Any]  # what the host knows of it, as JSON
    arrays: Mapping[str, Any]


def write(
    path: str | Path,
    parts: Mapping[str, Part],
    replace: bool = False,
    keep: int = KEPT,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write streams of one moment to the folder `path`, all of it or nothing; see `save`.

    Args:
      path: of the folder.
      parts: streams by name.
      replace: as in `save`.
      keep: as in `save`.
      more: what else is known of the moment, as JSON.

    Raises:
      ValueError: as in `save`.
      OSError: as in `save`.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    target = Path(path).absolute()
    check_target(target, replace)
    target.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        for leftover in target.glob(".[wr]*-*"):  # of processes that were killed
            shutil.rmtree(leftover, ignore_errors=True)
        before = numbered(target)
        temporary = target / f".writing-{os.getpid()}-{threading.get_ident()}"
        temporary.mkdir()
        try:
            _fill(temporary, parts, more or {})
            number = int(before[-1].name) + 1 if before else 1
            temporary.rename(target / f"{number:08d}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(target)
        for old in before[: len(before) + 1 - keep]:
            gone = old.rename(target / f".removed-{old.name}")  # never half a save by its name
            shutil.rmtree(gone, ignore_errors=True)


def check_target(path: str | Path, replace: bool) -> None:
    """Refuse a folder that holds something else than saved streams, or those unless replaced.

    Raises:
      ValueError: naming the folder.
    """
    target = Path(path).absolute()
    if not target.exists():
        return
    if not target.is_dir() or [x for x in target.iterdir() if not _ours(x)]:
        raise ValueError(
            f"{target} exists already and is no folder of saved streams: name a new folder, or "
            "remove it first."
        )
    if not replace and numbered(target):
        raise ValueError(
            f"{target} exists already: name a new folder, remove it first, or replace it "
            "(replace=True)."
        )


def _ours(path: Path) -> bool:
    return re.fullmatch(r"\d{8}|\.writing-.*|\.removed-.*", path.name) is not None


def numbered(target: Path) -> list[Path]:
    """Return the complete saves in a folder, the last one last."""
    if not target.is_dir():
        return []
    return sorted(x for x in target.iterdir() if re.fullmatch(r"\d{8}", x.name))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, where the system has such locks: two never save there at once."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):  # Windows
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disc, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _fill(folder: Path, parts: Mapping[str, Part], more: Mapping[str, Any]) -> None:
    """Write the two files of a save, and have them on the disc."""
    index: dict[str, list[Any]] = {}
    with (folder / "arrays.bin").open("wb") as file:
        for part, (_, _, arrays) in parts.items():
            for name, leaf in arrays.items():
                array = np.ascontiguousarray(np.asarray(leaf))  # one at a time: banks are large
                data = array.reshape(-1).view(np.uint8).data
                shape = list(np.shape(leaf))
                index[f"{part}/{name}"] = [str(array.dtype), shape, file.tell(), _sum(data)]
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    named = {name: {"made": part.made, "numbers": part.numbers} for name, part in parts.items()}
    document = {"format": FORMAT, "parts": named, "more": more, "arrays": index}
    text = json.dumps(document)
    document["sum"] = _sum(_canonical(json.loads(text)))
    with (folder / "made.json").open("w") as file:
        file.write(json.dumps(document, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _sum(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


@dataclass(frozen=True)
class Saved:
    """A save that can be read: its document is whole, its arrays are checked as they are read.

    Attributes:
      where: its folder.
      document: what `made.json` holds.
    """

    where: Path
    document: Mapping[str, Any]

    @property
    def more(self) -> Mapping[str, Any]:
        """Return what else is known of the moment."""
        return self.document["more"]

    def head(self, name: str | None = None) -> Part:
        """Return a stream by name without its arrays: none of them is read.

        Raises:
          ValueError: if there is no such stream.
        """
        head = self.document["parts"][self._name(name)]
        return Part(head["made"], head["numbers"], {})

    def part(self, name: str | None = None) -> Part:
        """Return a stream by name; None: the only one.

        Raises:
          ValueError: if there is no such stream, or an array is damaged.
        """
        start = f"{self._name(name)}/"
        mine = {k: v for k, v in self.document["arrays"].items() if k.startswith(start)}
        self._check_sizes(mine)
        arrays = {k.removeprefix(start): self._array(k, *v) for k, v in mine.items()}
        return self.head(name)._replace(arrays=arrays)

    def _name(self, name: str | None) -> str:
        """Return the name of a stream that is there; None: of the only one."""
        names = list(self.document["parts"])
        name = names[0] if name is None and len(names) == 1 else name
        if name is None or name not in names:
            raise ValueError(
                f"{self.where} holds the streams {', '.join(names)}, not {name}: name one of them."
            )
        return name

    def _check_sizes(self, arrays: Mapping[str, Any]) -> None:
        """Refuse arrays that the file is too short for, before any of them is read."""
        try:
            size = (self.where / "arrays.bin").stat().st_size
        except OSError as error:
            raise _damaged(self.where, str(error)) from error
        for name, (dtype, shape, at, _) in arrays.items():
            if at + math.prod(shape) * jnp.dtype(dtype).itemsize > size:
                raise _damaged(self.where, f"its array {name} is longer than the file")

    def _array(self, name: str, dtype: str, shape: list[int], at: int, wanted: str) -> np.ndarray:
        kind = jnp.dtype(dtype)
        try:
            with (self.where / "arrays.bin").open("rb") as file:
                file.seek(at)
                data = bytearray(file.read(math.prod(shape) * kind.itemsize))
        except OSError as error:
            raise _damaged(self.where, str(error)) from error
        if _sum(data) != wanted:
            raise _damaged(self.where, f"its array {name} has another checksum")
        try:
            return np.frombuffer(data, np.uint8).view(kind).reshape(shape)
        except ValueError as error:  # a shape that no array has
            raise _damaged(self.where, f"its array {name}: {error}") from error


def _damaged(where: Path, what: str) -> ValueError:
    """Return the refusal of a save, which offers the last whole one before it."""
    offered = "there is none before it: begin anew"
    for old in reversed(numbered(where.parent)):
        if old.name < where.name and _is_whole(old):
            offered = f"the one before it is whole: restore {old}"
            break
    return ValueError(f"the stream saved at {where} is damaged ({what}); {offered}.")


def _is_whole(where: Path) -> bool:
    try:
        saved = Saved(where, _document(where))
        saved._check_sizes(saved.document["arrays"])
        for name, found in saved.document["arrays"].items():
            saved._array(name, *found)
    except ValueError:
        return False
    return True


def _document(where: Path) -> dict[str, Any]:
    """Return the document of a save.

    Raises:
      ValueError: if it is damaged or of another format.
    """
    try:
        document = json.loads((where / "made.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(where, f"made.json: {error}") from error
    if not isinstance(document, dict):
        raise _damaged(where, "made.json is no document")
    found, form = document.pop("sum", None), document.get("format")
    if found is None and form in (1, 2):
        raise ValueError(
            f"the stream at {where} has format {form}, this release reads {FORMAT}: save the "
            "stream again with this release."
        )
    if found != _sum(_canonical(document)):
        raise _damaged(where, "made.json has another checksum")
    if form != FORMAT:
        raise ValueError(
            f"the stream at {where} has format {form}, this release reads {FORMAT}: restore it "
            "with the release that saved it."
        )
    if (wrong := misplaced(document)) is not None:
        raise _damaged(where, f"made.json: {wrong} is not what a save has there")
    return document


def read(path: str | Path) -> Saved:
    """Return the last save in a folder, or the one that `path` names itself.

    Raises:
      ValueError: if there is none, or it is damaged; the one before it is then offered.
    """
    source = Path(path).absolute()
    if not source.is_dir():
        raise ValueError(f"there is no saved stream at {source}: check the path.")
    found = numbered(source)
    if re.fullmatch(r"\d{8}", source.name) or (source / "made.json").exists():
        found = [source]
    if not found:
        raise ValueError(
            f"{source} is no saved stream of format {FORMAT}: none was ever completed there."
        )
    return Saved(found[-1], _document(found[-1]))
