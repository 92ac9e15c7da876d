"""WorldSense: questions that need sound and pictures."""

from __future__ import annotations

import re

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item


def read(reading: r.Reading) -> None:
    """Read the tasks of every video."""
    for where, record in reading.records("worldsense_qa.json"):
        tasks = [key for key in record if re.fullmatch(r"task\d+", key)]
        with reading.noting(where, len(tasks) or 1):
            name = r.words(record, "_id")
            if not tasks:
                raise r.MalformedError('it has no "task0"')
            video = reading.video(f"videos/{name}.mp4", name)
            classes = record.get("audio_class") or []
            classes = classes if isinstance(classes, list) else str(classes).split(",")
            for key in tasks:
                with reading.noting(f"{where}, {key}"):
                    task = r.entry(record, key)
                    options = r.choices(task, "candidates")
                    reading.add(
                        Item(
                            id=f"{name}.{key}",
                            video=video,
                            question=r.words(task, "question"),
                            right=r.right_letter(r.words(task, "answer"), options),
                            options=options,
                            kind=r.words(task, "task_type"),
                            labels=(
                                ("domain", r.words(record, "domain", default="")),
                                *(("audio", str(one).strip()) for one in classes),
                            ),
                        )
                    )


BENCHMARK = Benchmark(
    name="worldsense",
    read=read,
    files=("worldsense_qa.json",),
    holds="videos by id, each with domain, audio_class and task0 (question, candidates, answer)",
    rule="a_on_failure",
)
