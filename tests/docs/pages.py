"""The pages that people read, and what is in them: code blocks, inline code."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INVISIBLE = re.compile(r"<!--.*?-->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    return [Block(m[2], m[3], text[: m.start()].count("\n") + 1) for m in FENCE.finditer(text)]


def inline_code(page: Path) -> list[str]:
    """What stands in backticks, outside of fenced blocks and invisible comments."""
    text = FENCE.sub("", INVISIBLE.sub("", page.read_text()))
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]
