"""RVS-Ego and RVS-Movie in the layout that ReKV and HERMES use: open questions while it streams."""

from __future__ import annotations

from functools import partial

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

FPS = 1.0
"""Of videos that are stored as arrays of frames."""


def read(reading: r.Reading, *, which: str) -> None:
    """Read the conversations of all videos. Times are of the whole video, also in clips of it."""
    for where, record in reading.records_of_first(*_files(which)):
        turns = record.get("conversations")
        with reading.noting(where, len(turns) if isinstance(turns, list) else 1):
            name, path = r.words(record, "video_id"), r.words(record, "video_path", "video_id")
            video = reading.video(path, name, fps=FPS if path.endswith(".npy") else None)
            for number, turn in enumerate(r.listed(record, "conversations"), 1):
                with reading.noting(f"{where}, question {number}"):
                    start, end = r.seconds(turn, "start_time"), r.seconds(turn, "end_time")
                    reading.add(
                        Item(
                            id=f"{name}.{number}",
                            video=video,
                            question=r.words(turn, "question"),
                            right=r.words(turn, "answer"),
                            asked_at=end,
                            evidence=(min(start, end), end),
                            form="text",
                            record=(("video_id", name),),
                        )
                    )


def _files(which: str) -> tuple[str, ...]:
    # The last may also be what says of which videos the clips of VStream-QA are.
    return f"{which}/*.json", f"{which}*.json", f"*rvs*{which}*.json"


def _benchmark(which: str) -> Benchmark:
    return Benchmark(
        name=f"rvs-{which}",
        read=partial(read, which=which),
        files=_files(which),
        holds="videos with video_path and conversations[] (question, answer, end_time)",
    )


EGO, MOVIE = _benchmark("ego"), _benchmark("movie")
