"""Video-MME: four options about videos of three lengths, without their subtitles."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

FILES = ("*.parquet", "videomme*.json", "video_mme*.json")


def read(reading: r.Reading) -> None:
    """Read the rows of the table, or the same as JSON."""
    for where, record in reading.records_of_first(*FILES):
        with reading.noting(where):
            options = r.choices(record, "options")
            names = ("duration", "domain", "sub_category")
            reading.add(
                Item(
                    id=r.words(record, "question_id"),
                    video=reading.video(f"data/{r.words(record, 'videoID')}.mp4"),
                    question=r.words(record, "question"),
                    right=r.right_letter(r.words(record, "answer"), options),
                    options=options,
                    kind=r.words(record, "task_type"),
                    labels=tuple((name, r.words(record, name)) for name in names),
                )
            )


BENCHMARK = Benchmark(
    name="video-mme",
    read=read,
    files=FILES,
    holds="rows with videoID, question_id, duration, task_type, options and answer",
)
