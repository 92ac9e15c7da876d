"""Daily-Omni: clips of 30 and 60 seconds, with sound."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item


def read(reading: r.Reading) -> None:
    """Read all questions."""
    for where, record in reading.records("qa.json"):
        with reading.noting(where):
            name = r.words(record, "video_id")
            video = reading.video(f"Videos/{name}/{name}_video.mp4", f"{name}_video")
            own, options = reading.numbered(video), r.choices(record, "Choice")
            reading.add(
                Item(
                    id=own,
                    video=video,
                    question=r.words(record, "Question"),
                    right=r.right_letter(r.words(record, "Answer"), options),
                    options=options,
                    kind=r.words(record, "Type"),
                    labels=(
                        ("duration", r.words(record, "video_duration")),
                        ("category", r.words(record, "video_category", default="")),
                    ),
                )
            )


BENCHMARK = Benchmark(
    name="daily-omni",
    read=read,
    files=("qa.json",),
    holds="records with video_id, Type, Question, Choice, Answer and video_duration",
)
