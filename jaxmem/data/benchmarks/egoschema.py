"""EgoSchema: five options about three minutes of somebody's day; 500 answers are public."""

from __future__ import annotations

from typing import Any

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

FILES = ("questions.json", "*.parquet")


def read(reading: r.Reading) -> None:
    """Read the questions that have a public answer, or the table of the hub."""
    answers: dict[str, Any] = {}
    for where, record in reading.records("subset_answers.json"):
        with reading.noting(where):
            answers[r.words(record, "_id")] = record.get("_value")
    for where, record in reading.records_of_first(*FILES):
        with reading.noting(where):
            if "q_uid" in record:
                name = r.words(record, "q_uid")
                if name not in answers:
                    continue  # 4,531 answers are not public
                options = tuple(r.words(record, f"option {i}") for i in range(5))
                right = r.right_number(answers[name], options)
            else:
                if record.get("answer") is None:
                    continue
                name, options = r.words(record, "video_idx"), r.choices(record, "option")
                right = r.right_number(r.entry(record, "answer"), options)
            video = reading.video(name)
            question = r.words(record, "question")
            reading.add(Item(id=name, video=video, question=question, right=right, options=options))
    if not answers and not reading.found.items:
        raise ValueError(
            f"{reading.folder}: there is no subset_answers.json beside questions.json: the answers "
            "of EgoSchema are public for 500 questions."
        )


BENCHMARK = Benchmark(
    name="egoschema",
    read=read,
    files=FILES,
    holds="questions with q_uid and option 0 to option 4, and subset_answers.json",
)
