"""Damaged files, each streamed in a child process with limits: what becomes of them.

A child streams many files one after the other, so that a leak or a corrupted heap shows; it is
replaced when it dies, hangs, grows beyond the limit, or has had its share.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxmem.experiments.benchmark.faults_child import ANSWERED, REFUSED
from jaxmem.experiments.benchmark.faults_clips import clean_clips, damaged
from jaxmem.experiments.benchmark.faults_record import BAD, OUTCOMES

CRASHED, HUNG, BEYOND = BAD
_START = 180.0  # s that a child may take to start
_POLL = 0.05  # s between two looks at a child's memory
_SETTLED = 20  # files after which a child's memory should not grow any more


@dataclass(frozen=True)
class FaultsConfig:
    """Damage clips in many ways and stream each: answered, refused, or worse."""

    files: int = 1000  # how many
    seed: int = 0  # of the damage
    first: int = 0  # number of the first file: a failure is repeated with --first N --files 1
    clips: Path | None = None  # folder of clips to damage; else one of the synthetic world
    each: int = 500  # files that a child streams
    workers: int = 2  # children side by side
    limit_seconds: float = 30.0  # of one file
    limit_mib: int = 2048  # of resident memory
    keep: Path | None = None  # folder that gets the files which are neither answered nor refused
    record: Path | None = None  # folder that gets README.md and results.json
    json: bool = False  # print JSON instead of a table


@dataclass(frozen=True)
class Fate:
    """What became of one file."""

    number: int
    container: str
    damage: str
    outcome: str
    detail: str
    seconds: float
    pieces: int = 0
    resident: int = 0  # bytes of the child afterwards


@dataclass(frozen=True)
class Faults:
    """What became of all files."""

    files: int
    seed: int
    counts: dict[str, int]
    by_container: dict[str, dict[str, int]]
    by_damage: dict[str, dict[str, int]]
    longest_seconds: float
    most_pieces: int
    resident: tuple[int, int]  # bytes of a child, median: after its first 20 files, and at its end
    resident_growth: float
    failures: list[dict[str, Any]] = field(default_factory=list)


class Child:
    """A process that streams files, with a limit on time and memory."""

    def __init__(self, config: FaultsConfig) -> None:
        """Start the process and wait until its model is compiled."""
        self.config, self.done, self._detail = config, 0, ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        late = 0.9 * config.limit_seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxmem.experiments.benchmark.faults_child", f"{late}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
        )
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        found, _ = self._wait(_START)
        if not found:
            raise RuntimeError(f"the child did not start: {self._ended()}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # a library that prints
                self._said.put(json.loads(line))
        self._said.put(None)

    def _wait(self, seconds: float) -> tuple[dict[str, Any] | None, str]:
        """Return what the child says next, or None and why it says nothing."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                said = self._said.get(timeout=_POLL)
                return said, CRASHED
            if self._resident() > self.config.limit_mib << 20:
                return None, BEYOND
        return None, HUNG

    def _resident(self) -> int:
        status = Path(f"/proc/{self._process.pid}/statm")
        try:
            return int(status.read_text().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):
            return 0

    def stream(self, path: Path) -> dict[str, Any]:
        """Return what becomes of a file; after a failure the child is over."""
        assert self._process.stdin is not None
        self.done += 1
        try:
            self._process.stdin.write(f"{path}\n".encode())
            self._process.stdin.flush()
            said, why = self._wait(self.config.limit_seconds)
        except OSError:
            said, why = None, CRASHED
        if said is not None:
            return said
        self.close()
        return {"outcome": why, "detail": self._detail, "seconds": self.config.limit_seconds}

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self.done = self.config.each
        if not self._errors.closed:
            self._detail = self._ended()
            self._errors.close()

    def _ended(self) -> str:
        self._errors.seek(0)
        return (
            f"status {self._process.poll()}: {self._errors.read().decode(errors='replace')[-2000:]}"
        )


def run_faults(config: FaultsConfig, progress: Callable[[], None] = lambda: None) -> Faults:
    """Damage files and stream them; `progress` is called after each.

    Raises:
      ValueError: if a number makes no sense, or there are no clips.
    """
    for name in ("files", "each", "workers", "limit_seconds", "limit_mib"):
        if getattr(config, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = clean_clips(config.clips, folder, config.seed)
        numbers = range(config.first, config.first + config.files)
        shares = [numbers[i :: config.workers] for i in range(config.workers)]
        work = lambda share: _share(config, clips, share, folder, progress)
        with ThreadPoolExecutor(config.workers) as pool:
            fates = [fate for share in pool.map(work, shares) for fate in share]
    return _summary(config, fates)


def _share(
    config: FaultsConfig,
    clips: Sequence[Path],
    numbers: Sequence[int],
    folder: Path,
    progress: Callable[[], None],
) -> list[Fate]:
    """Stream files in one child after the other."""
    child: Child | None = None
    fates = []
    try:
        for number in numbers:
            if child is None or child.done >= config.each:
                if child is not None:
                    child.close()
                child = Child(config)
            path, damage = damaged(clips, number, config.seed, folder)
            fate = Fate(number, path.suffix[1:], damage, **child.stream(path))
            if config.keep is not None and fate.outcome not in (ANSWERED, REFUSED):
                config.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, config.keep)
            path.unlink()
            fates.append(fate)
            progress()
    finally:
        if child is not None:
            child.close()
    return fates


def _summary(config: FaultsConfig, fates: Sequence[Fate]) -> Faults:
    def counts(chosen: Sequence[Fate]) -> dict[str, int]:
        found = Counter(fate.outcome for fate in chosen)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    containers = sorted({fate.container for fate in fates})
    damages = sorted({part for fate in fates for part in fate.damage.split(" + ")})
    known = sorted((f for f in fates if f.resident), key=lambda fate: fate.number)
    settled = min(_SETTLED * config.workers, len(known) // 2)
    window = max(min(settled, len(known)), 1)
    middle = lambda some: sorted(f.resident for f in some)[len(some) // 2] if some else 0
    early, late = middle(known[settled : settled + window]), middle(known[-window:])
    return Faults(
        files=len(fates),
        seed=config.seed,
        counts=counts(fates),
        by_container={c: counts([f for f in fates if f.container == c]) for c in containers},
        by_damage={d: counts([f for f in fates if d in f.damage.split(" + ")]) for d in damages},
        longest_seconds=max(fate.seconds for fate in fates),
        most_pieces=max(fate.pieces for fate in fates),
        resident=(early, late),
        resident_growth=late / early - 1 if early else 0.0,
        failures=[vars(fate) for fate in fates if fate.outcome not in (ANSWERED, REFUSED)],
    )


def faults_table(result: Faults) -> Table:
    """Return the counts by container and by kind of damage."""
    table = Table(title=f"{result.files} damaged files, seed {result.seed}")
    table.add_column("")
    for outcome in OUTCOMES:
        table.add_column(outcome, justify="right")
    row = lambda name, counts: table.add_row(name, *(str(counts[o]) for o in OUTCOMES))
    for name, counts in (*result.by_container.items(), ("all", result.counts)):
        row(name, counts)
    table.add_section()
    for name, counts in result.by_damage.items():
        row(name, counts)
    early, late = result.resident
    table.caption = (
        f"memory {early:,} to {late:,} bytes ({result.resident_growth:+.1%}); longest "
        f"{result.longest_seconds:.1f} s, most pieces {result.most_pieces}"
    )
    for failure in result.failures:
        last = (failure["detail"].strip().splitlines() or [""])[-1]
        table.caption += f"\nfile {failure['number']}: {failure['outcome']}: {last}"
    return table
