"""LongVideoBench: questions about a moment of a video of up to an hour, without its subtitles."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

FILES = ("lvb_val.json", "*.parquet")
ABSENT = "N/A"
"""Of options that a row of the table does not have."""


def read(reading: r.Reading) -> None:
    """Read the validation file, or the table. The test file has no answers."""
    for where, record in reading.records_of_first(*FILES):
        with reading.noting(where):
            if "candidates" in record:
                options = r.choices(record, "candidates")
            else:
                each = [record.get(f"option{i}") for i in range(5)]
                there = [None if x == ABSENT else x for x in each]
                options = r.choices({"options": there}, "options")
            path = r.words(record, "video_path", "video_id")
            group = f"{r.words(record, 'duration_group')} s"
            reading.add(
                Item(
                    id=r.words(record, "id"),
                    video=reading.video(path, f"videos/{path}", r.words(record, "video_id")),
                    question=r.words(record, "question"),
                    right=r.right_number(r.entry(record, "correct_choice"), options),
                    options=options,
                    kind=r.words(record, "question_category"),
                    labels=(
                        ("duration", group),
                        ("topic", r.words(record, "topic_category", default="")),
                        ("level", r.words(record, "level", default="")),
                    ),
                )
            )


BENCHMARK = Benchmark(
    name="longvideobench",
    read=read,
    files=FILES,
    holds="records with video_path, candidates, correct_choice and duration_group",
)
