"""Published benchmarks, read from the user's copy of their own files; none is shipped."""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from jaxmem.data.benchmarks.item import (
    Average,
    Benchmark,
    Form,
    Found,
    Item,
    Problem,
    Rule,
    Video,
)
from jaxmem.data.benchmarks.reading import MalformedError, Reading

__all__ = [
    "BENCHMARKS", "Average", "Benchmark", "Form", "Found", "Item", "Problem", "Reading", "Rule",
    "Video", "named", "read",
]  # fmt: skip

SHOWN = 3  # malformed records that an error names
_TABLE = {
    "streamingbench": "streamingbench.BENCHMARK",
    "ovo-bench": "ovo_bench.BENCHMARK",
    "rvs-ego": "rvs.EGO",
    "rvs-movie": "rvs.MOVIE",
    "vstream-qa": "vstream_qa.BENCHMARK",
    "video-mme": "video_mme.BENCHMARK",
    "mlvu": "mlvu.BENCHMARK",
    "longvideobench": "longvideobench.BENCHMARK",
    "egoschema": "egoschema.BENCHMARK",
    "lvbench": "lvbench.BENCHMARK",
    "mvbench": "mvbench.BENCHMARK",
    "timescope": "timescope.BENCHMARK",
    "worldsense": "worldsense.BENCHMARK",
    "daily-omni": "daily_omni.BENCHMARK",
    "omnivideobench": "omnivideobench.BENCHMARK",
    "lvomnibench": "lvomnibench.BENCHMARK",
    "ovbench": "ovbench.OVBENCH",
    "odv-bench": "ovbench.ODV_BENCH",
    "avut": "avut.BENCHMARK",
}
"""Name on the command line -> where it is; a new benchmark is one line here."""


class _Benchmarks(Mapping[str, Benchmark]):
    """The table, each module imported when it is first asked for."""

    def __getitem__(self, name: str) -> Benchmark:
        module, _, found = _TABLE[name].partition(".")
        return getattr(import_module(f"{__name__}.{module}"), found)

    def __iter__(self) -> Iterator[str]:
        return iter(_TABLE)

    def __len__(self) -> int:
        return len(_TABLE)


BENCHMARKS: Mapping[str, Benchmark] = _Benchmarks()
"""Name -> benchmark."""


def named(name: str) -> Benchmark:
    """Return a benchmark by its name in `BENCHMARKS`, or the `BENCHMARK` of a Python file.

    Raises:
      ValueError: if there is no such name or file, or the file makes something else.
    """
    if not name.endswith(".py"):
        if name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            raise ValueError(f"unknown benchmark {name!r}: use {known}, or a file (mine.py).")
        return BENCHMARKS[name]
    try:
        found = runpy.run_path(name).get("BENCHMARK")
    except Exception as error:  # whatever the user's file raises
        raise ValueError(_raised(name, error)) from error
    if not isinstance(found, Benchmark):
        raise ValueError(f"{name} has no BENCHMARK that is a jaxmem.data.benchmarks.Benchmark.")
    return found


def read(name: str, folder: str | Path, videos: str | Path | None = None) -> Found:
    """Return the questions of a benchmark.

    Args:
      name: see `named`.
      folder: of the user's copy, with the annotation files.
      videos: folder of the videos; None: somewhere below the same one.

    Raises:
      ValueError: if there is no such benchmark or folder, the folder is one of another benchmark,
        a file is damaged, no record can be read, or a benchmark of the user's own raises anything.
    """
    benchmark, where, given = named(name), Path(folder), name
    name = benchmark.name
    reading = Reading(benchmark, where, None if videos is None else Path(videos))
    expected = f"expected {', '.join(benchmark.files[:5])}: {benchmark.holds}"
    if not reading.files(*benchmark.files):
        found = sorted(path.name for path in where.iterdir())[:5]
        held = f"it holds {', '.join(found)}" if found else "it is empty"
        raise ValueError(f"{where} is no copy of {name}: {expected}; {held}.{_instead(where)}")
    try:
        benchmark.read(reading)
    except Exception as error:  # whatever the user's file raises
        if not given.endswith(".py"):
            raise
        raise ValueError(_raised(given, error)) from error
    if not reading.found.items:
        reasons = "; ".join(f"{one.where}: {one.reason}" for one in reading.found.problems[:SHOWN])
        raise ValueError(
            f"{where} holds no question of {name}: {expected}; {reasons or 'its files are empty'}."
        )
    return reading.found


def _raised(file: str, error: Exception) -> str:
    """Return in words what a Python file of the user's raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f", line {frame.lineno}" for frame in frames if frame.filename == file]
    repair = ""
    if isinstance(error, MalformedError):
        repair = ". Read each record within `with reading.noting(where)`, and the others are read."
    return f"{file}{''.join(lines[-1:])}: {type(error).__name__}: {error}{repair}"


def _instead(folder: Path) -> str:
    """Return in words which benchmarks a folder may be a copy of."""
    names = [
        name
        for name, one in BENCHMARKS.items()
        if any(next(folder.glob(p), None) for p in one.files if not p.startswith("*."))
    ]
    return f" It may be a copy of {' or '.join(names)}." if names else ""
