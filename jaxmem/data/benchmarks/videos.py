"""Where the videos of a benchmark lie in a folder, by the paths or ids that annotations give."""

from __future__ import annotations

import os
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", ".npy", ".wav", ".mp3", ".gif")
"""Of what may be watched or heard; pictures lie in folders of their own."""
PICTURES = (".jpg", ".jpeg", ".png")


class Folder:
    """The videos below a folder, looked for once."""

    def __init__(self, root: Path):
        """Look nowhere yet."""
        self.root = root

    @cached_property
    def _known(self) -> dict[str, list[Path]]:
        """Names with and without their suffix -> videos of that name."""
        found = defaultdict[str, list[Path]](list)
        for at, folders, files in os.walk(self.root, followlinks=True):
            folders.sort()
            for name in sorted(files):
                path = Path(at, name)
                if path.suffix.lower() in SUFFIXES:
                    found[name].append(path)
                    found[path.stem].append(path)
            if any(map(_is_picture, files)):
                found[Path(at).name].append(Path(at))
        return dict(found)

    def find(self, name: str) -> Path | None:
        """Return the video that a path or an id names; None if there is none, or no single one.

        A folder is a video if it holds pictures. Where several have the name, the one with the
        longest common end of its path is meant; a video goes before sound alone.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        parts = [part for part in wanted.parts if part not in (".", "/")]
        exact = self.root.joinpath(*parts)
        # A folder of another kind may be that in which the video lies: abc/abc.mp4.
        if exact.is_file() or (parts and _holds_pictures(exact)):
            return exact
        if not parts:
            return None
        known = self._known.get(parts[-1]) or self._known.get(wanted.stem) or []
        ranked = sorted(known, key=lambda path: self._rank(path, parts), reverse=True)
        if len(ranked) > 1 and self._rank(ranked[0], parts) == self._rank(ranked[1], parts):
            return None
        return ranked[0] if ranked else None

    def _rank(self, path: Path, parts: list[str]) -> tuple[int, int]:
        """Return how many names at the end of a path are the wanted ones, and how good it is."""
        mine = path.relative_to(self.root).parts
        same = 1  # the last one is, but for a suffix
        while same < min(len(mine), len(parts)) and mine[-same - 1] == parts[-same - 1]:
            same += 1
        suffix = path.suffix.lower()
        return same, -(SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES))


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(_is_picture(name) for name in os.listdir(folder))


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURES
