"""LVBench: six abilities on videos of an hour; options stand inside the question."""

from __future__ import annotations

import re

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

FILES = ("video_info.meta.jsonl", "*.meta.jsonl")


def read(reading: r.Reading) -> None:
    """Read the questions of every video. One of several types counts for each of them apart."""
    for where, record in reading.records_of_first(*FILES):
        asked = record.get("qa")
        with reading.noting(where, len(asked) if isinstance(asked, list) else 1):
            key = r.words(record, "key")
            video = reading.video(key)
            for number, one in enumerate(r.listed(record, "qa"), 1):
                with reading.noting(f"{where}, question {number}"):
                    question, options = r.split_options(r.words(one, "question"))
                    types = [str(x) for x in r.listed(one, "question_type")]
                    reading.add(
                        Item(
                            id=r.words(one, "uid", default="") or f"{key}.{number}",
                            video=video,
                            question=question,
                            right=r.right_letter(r.words(one, "answer"), options),
                            options=options,
                            evidence=span(r.words(one, "time_reference", default="")),
                            labels=(
                                *(("type", name) for name in types),
                                ("video type", r.words(record, "type", default="")),
                            ),
                        )
                    )


def span(text: str) -> tuple[float, float] | None:
    """Return "mm:ss-mm:ss" in seconds; None where it says nothing."""
    found = re.findall(r"\d+(?::\d+)+", text)
    if not found:
        return None
    ends = [sum(float(x) * 60**i for i, x in enumerate(reversed(one.split(":")))) for one in found]
    return min(ends[:2]), max(ends[:2])


BENCHMARK = Benchmark(
    name="lvbench",
    read=read,
    files=FILES,
    holds="videos with key and qa[] (uid, question, answer, question_type, time_reference)",
)
