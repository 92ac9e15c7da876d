"""Prose that is on every machine: the language reference that Python's own help prints.

`pydoc_data.topics` is part of the standard library, 460,000 characters. Its words change a little
from one version of Python to the next; whoever compares numbers compares the tokens first. Any
folder of text files stands in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".txt", ".md", ".rst")
LEAST = 2000  # characters of a document
MOST = 2000  # characters of a paragraph of texts of one's own


class Found(NamedTuple):
    """The documents of a folder, in the order of their names."""

    texts: list[str]
    left_out: list[str]  # in words


def documents(folder: Path | None = None) -> list[str]:
    """Return documents of at least `LEAST` characters, in the order of their names, each once.

    Args:
      folder: of text files (.txt, .md, .rst, UTF-8); None: Python's own help.

    Raises:
      ValueError: if there is none, or a file is no text.
    """
    if folder is None:
        from pydoc_data.topics import topics

        return [text for name in sorted(topics) if len(text := topics[name]) >= LEAST]
    found = read(folder).texts
    if not found:
        raise ValueError(
            f"no text of at least {LEAST} characters in {folder}: give a folder with files that "
            f"end in {', '.join(SUFFIXES)}."
        )
    return found


def read(folder: Path) -> Found:
    """Return the documents of a folder, and which files are none.

    Raises:
      ValueError: if it is no folder, or a file cannot be read as text.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one with text files.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    known: dict[str, Path] = {}
    left_out = []
    for path in paths:
        text = _read(path)
        if len(text) < LEAST:
            left_out.append(f"{path} ({len(text)} characters, at least {LEAST} are read)")
        elif known.setdefault(text, path) is not path:
            left_out.append(f"{path} (the same text as {known[text]})")
    return Found(list(known), left_out)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a mark of its beginning is no text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): leave it out.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}): leave it out.") from None


def paragraphs(texts: Sequence[str], most: int | None = None) -> list[str]:
    """Return the paragraphs of documents, one after another, without empty lines.

    Args:
      texts: the documents.
      most: characters of a paragraph; longer ones are cut behind words. None: they stay whole.
    """
    whole = [p for text in texts for p in text.replace("\r\n", "\n").split("\n\n") if p.strip()]
    return whole if most is None else [part for one in whole for part in _cut(one, most)]


def _cut(text: str, most: int) -> Iterator[str]:
    """Yield parts of at most so many characters: whole lines, or words, where there are some."""
    while len(text) > most:
        ends = (text.rfind(mark, 1, most) + 1 for mark in ("\n", " "))
        end = next((end for end in ends if end), most)
        if part := text[:end].rstrip():
            yield part
        text = text[end:].lstrip("\n")
    if text.strip():
        yield text
