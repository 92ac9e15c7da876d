"""What small copies of benchmarks are made of, and what `read` is to find in them."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ABCD = ["circle", "square", "star", "cross"]
LETTERED = [f"{letter}. {text}" for letter, text in zip("ABCD", ABCD, strict=True)]
WITHIN = "Which shape? \n(A) circle\n(B) square\n(C) star\n(D) cross"


@dataclass
class Expected:
    """Number and first of the items by (kind, asked at, right, options, form); what is wrong."""

    items: list
    problems: list[str] = field(default_factory=list)  # parts of their reasons
    mended: list[str] = field(default_factory=list)
    labels: list = field(default_factory=list)  # of the first item
    evidence: list = field(default_factory=list)
    groups: set = field(default_factory=set)
    videos: list = field(default_factory=list)  # paths of the items below the folder, None: missing
    streams: list = field(default_factory=list)  # start and pictures a second; []: 0, None for all


def dump(path: Path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def touch(folder: Path, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def parquet(path: Path, rows):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as file

    file.write_table(arrow.Table.from_pylist(rows), path)


def write_rows(path: Path, rows):
    """Write a CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
