"""Videos with questions for training, decoded ahead: shuffled, cut among hosts, resumable.

    records = QuestionFiles(["train.json"], folder="videos")
    with Clips(records, partial(open_for, model), seed=0) as clips:
        for clip in clips:
            ...  # clip.pieces, clip.record.asked; clips.state() is where to go on
    clips.skipped  # what could not be read

Needs grain (`pip install 'jaxmem[train]'`), whose threads read and decode ahead.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax

from jaxmem.data.media.types import Piece
from jaxmem.data.question_files import QuestionFiles, Record

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
"""Of videos that are named without one."""
SLACK = 1.0
"""Seconds after its end at which a video may be asked about: durations are rounded."""
SHOWN = 10  # videos that an error names


class Clip(NamedTuple):
    """A decoded video and its questions."""

    record: Record
    pieces: list[Piece]


class Skipped(NamedTuple):
    """A record that was left out."""

    where: str  # file, line and number
    video: str
    reason: str


class Clips:
    """Endless, or some epochs long: every host has as many clips, in an order that the seed says.

    Every epoch has an order of its own, and leaves out what does not divide among the hosts.

    Attributes:
      skipped: records so far whose video is missing, damaged or ends before a question, by where
        they stand.
    """

    def __init__(
        self,
        records: QuestionFiles,
        open: Callable[..., Any],
        *,
        seed: int,
        epochs: int | None = None,
        longest: float | None = None,
        host: int | None = None,
        hosts: int | None = None,
        threads: int = 2,
        ahead: int = 2,
    ):
        """Begin with the first clip.

        Args:
          records: of all hosts.
          open: given a path, `start` and `stop` in seconds, the reader of a video:
            `partial(jaxmem.feeding.open_for, model)`, or that of `open_media`.
          seed: of the order.
          epochs: how often all records come; None: without end.
          longest: seconds of a video that are read at most; questions beyond leave it out.
          host: number of this host; None: JAX's process.
          hosts: how many there are.
          threads: that read and decode.
          ahead: clips that wait at most.

        Raises:
          ValueError: if there are fewer records than hosts, or grain is not installed.
        """
        try:
            import grain
        except ImportError:
            raise ValueError(
                "question files are read by the package grain: pip install 'jaxmem[train]'."
            ) from None
        host = jax.process_index() if host is None else host
        hosts = jax.process_count() if hosts is None else hosts
        self._each = len(records) // hosts
        if not 0 <= host < hosts or not self._each:
            raise ValueError(
                f"host {host} of {hosts} with {len(records)} record(s): number hosts from 0, and "
                "give at least one record for each."
            )
        self._made = {"records": records.digest, "seed": seed, "host": host, "hosts": hosts}
        self.skipped: dict[str, Skipped] = {}
        mine = slice(host, self._each * hosts, hosts)
        found: Any = grain.MapDataset.source(records).shuffle(seed=seed)
        found = found[mine].repeat(epochs).map(_Read(open, longest))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self._items = iter(found.to_iter_dataset(options))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Clip:
        for _ in range(self._each):
            item = next(self._items)
            if isinstance(item, Clip):
                return item
            self.skipped[item.where] = item
        reasons = [f"  {each.video}: {each.reason}" for each in self.skipped.values()]
        raise ValueError(
            f"none of {self._each} videos in turn can be read; give the folder that their paths "
            "begin in:\n" + "\n".join(reasons[:SHOWN])
        )

    def state(self) -> dict[str, Any]:
        """Return where to go on after the last clip, as plain data for JSON."""
        skipped = [list(each) for each in self.skipped.values()]
        return {"made": self._made, "next": self._items.get_state(), "skipped": skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was.

        Raises:
          ValueError: if that one had other records, another seed or other hosts.
        """
        there = state["made"]
        if differ := [name for name, here in self._made.items() if there.get(name) != here]:
            named = ", ".join(f"{n} {there.get(n)!r}, here {self._made[n]!r}" for n in differ)
            raise ValueError(
                f"the clips that are to go on had {named}: give the same files, seed and hosts."
            )
        self._items.set_state(state["next"])
        self.skipped = {each[0]: Skipped(*each) for each in state["skipped"]}

    def close(self) -> None:
        """End the threads."""
        self._items.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Read:
    """Reads the video of a record."""

    open: Callable[..., Any]
    longest: float | None

    def __call__(self, record: Record) -> Clip | Skipped:
        try:
            return Clip(record, self.pieces(record))
        except (ValueError, OSError) as error:
            return Skipped(record.where, str(record.video), str(error))

    def pieces(self, record: Record) -> list[Piece]:
        """Return all pieces; ValueError if the video is damaged or ends before a question."""
        limits = [record.stop, None if self.longest is None else record.start + self.longest]
        stop = min((limit for limit in limits if limit is not None), default=None)
        with closing(self.open(_file(record.video), start=record.start, stop=stop)) as reader:
            found = list(reader)
            end = reader.end
        if end.kind in ("damaged", "stalled"):
            raise ValueError(f"it is {end.kind} at {end.time:g} s: {end.reason}")
        until = found[-1].start + found[-1].valid_seconds if found else 0.0
        late = [each.time for each in record.asked if (each.time or 0.0) > until + SLACK]
        if late or not found:
            asked = f", before a question at {late[0]:g} s" if late else ""
            raise ValueError(f"what is read of it ends at {until:g} s{asked}")
        return found


def _file(video: Path) -> Path:
    """Return the file of a video, which may be named without its suffix."""
    names = [video, *(Path(f"{video}{suffix}") for suffix in SUFFIXES)]
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"there is no file {video}")
    return found
