"""Prose that is on every machine: the language reference that Python's own help prints.

`pydoc_data.topics` is part of the standard library, 460,000 characters. Its words change a little
from one version of Python to the next; whoever compares numbers compares the tokens first. Any
folder of text files stands in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".txt", ".md", ".rst")
LEAST = 2000  # characters of a document


def documents(folder: Path | None = None) -> list[str]:
    """Return documents of at least `LEAST` characters, in the order of their names.

    Args:
      folder: of text files (.txt, .md, .rst, UTF-8); None: Python's own help.

    Raises:
      ValueError: if there is none, or a file is no text.
    """
    if folder is None:
        from pydoc_data.topics import topics

        found = [topics[name] for name in sorted(topics)]
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        found = [_read(path) for path in paths]
    found = [text for text in found if len(text) >= LEAST]
    if not found:
        raise ValueError(
            f"no text of at least {LEAST} characters in {folder}: give a folder with files that "
            f"end in {', '.join(SUFFIXES)}."
        )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): leave it out.") from None


def paragraphs(texts: Sequence[str]) -> list[str]:
    """Return the paragraphs of documents, one after another, without empty lines."""
    return [p for text in texts for p in text.replace("\r\n", "\n").split("\n\n") if p.strip()]
