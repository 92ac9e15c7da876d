"""LVOmniBench: videos of 10 to 90 minutes, questions that need both senses."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

LABELS = (
    ("audio", "audio_type"), ("difficulty", "difficulty"), ("category", "video_category"),
)  # fmt: skip


def read(reading: r.Reading) -> None:
    """Read all records."""
    for where, record in reading.records("data.json"):
        with reading.noting(where):
            name = r.words(record, "video_id")
            video = reading.video(f"videos/{name}.mp4", name)
            own, options = reading.numbered(video), r.choices(record, "options")
            labels = tuple((label, r.words(record, key, default="")) for label, key in LABELS)
            reading.add(
                Item(
                    id=own,
                    video=video,
                    question=r.words(record, "question"),
                    right=r.right_letter(r.words(record, "correct_option"), options),
                    options=options,
                    kind=r.words(record, "question_type"),
                    labels=labels,
                )
            )


BENCHMARK = Benchmark(
    name="lvomnibench",
    read=read,
    files=("data.json",),
    holds="records with video_id, question_type, difficulty, options and correct_option",
    empty_counts=False,
)
