"""OmniVideoBench: thirteen types of question about sound and pictures."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item


def read(reading: r.Reading) -> None:
    """Read the questions of every video; some options have no letters."""
    for where, record in reading.records("data.json"):
        asked = record.get("questions")
        with reading.noting(where, len(asked) if isinstance(asked, list) else 1):
            name = r.words(record, "video")
            video = reading.video(name, f"videos/{name}")
            for number, one in enumerate(r.listed(record, "questions"), 1):
                with reading.noting(f"{where}, question {number}"):
                    options = r.choices(one, "options")
                    reading.add(
                        Item(
                            id=f"{name}.{number}",
                            video=video,
                            question=r.words(one, "question"),
                            right=r.right_letter(r.words(one, "correct_option"), options),
                            options=options,
                            kind=r.words(one, "question_type"),
                            labels=(
                                ("audio", r.words(one, "audio_type", default="")),
                                ("video type", r.words(record, "video_type", default="")),
                            ),
                        )
                    )


BENCHMARK = Benchmark(
    name="omnivideobench",
    read=read,
    files=("data.json",),
    holds="videos with questions[] (question_type, audio_type, options, correct_option)",
)
