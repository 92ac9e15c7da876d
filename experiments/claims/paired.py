"""Print differences between cells of `evaluate recall` on the same questions, paired by stream.

    python experiments/claims/paired.py omnimem_512KiB hermes_512KiB

A cell is NAME_BUDGET in `experiments/memory_comparison/cells`, or FOLDER/NAME_BUDGET below
`experiments/memory_comparison`; a third argument names another folder of `experiments`. For every
length of stream that both have: right answers of both, and the first minus the second, in % with
95 % bootstrap intervals over streams.
"""

import json
import sys
from pathlib import Path

import numpy as np

from jaxmem.report.shares import Share, mean

ROOT = Path(__file__).parents[1]
SECONDS = (64, 128, 256, 3600)


def file_of(record: str, cell: str, seconds: int) -> Path:
    """Return where a cell is, if it was measured."""
    folder, _, name = cell.rpartition("/")
    return ROOT / record / folder / "cells" / f"{name}_{seconds}s.json"


def right(path: Path) -> np.ndarray:
    """Return the share of right answers of every stream [B]."""
    answers = json.loads(path.read_text())["right"]
    one = np.array([[[c == "1" for c in row] for row in moment] for moment in answers])
    return one.mean(axis=(0, 2))


def percent(share: Share) -> str:
    return f"{100 * share.share:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def main(one: str, other: str, record: str = "memory_comparison") -> None:
    for seconds in SECONDS:
        files = [file_of(record, cell, seconds) for cell in (one, other)]
        if not all(path.is_file() for path in files):
            continue
        a, b = map(right, files)
        print(f"{seconds} s: {percent(mean(a))}, {percent(mean(b))}; {percent(mean(a - b))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
