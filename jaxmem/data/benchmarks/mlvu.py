"""MLVU: seven tasks with options, two for a judge; its M-Avg is the mean over tasks."""

from __future__ import annotations

from dataclasses import replace

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

OPEN = ("sub_scene", "summary", "subPlot")
"""Task names of the open questions."""
FILES = ("[1-9]_*.json", "mlvu*.json", "*.parquet")


def read(reading: r.Reading) -> None:
    """Read the files of the tasks, or one table in the layout of the copies for lmms-eval."""
    for where, record in reading.records(*FILES):
        with reading.noting(where):
            kind = r.words(record, "question_type", "task_type")
            name = r.words(record, "video", "video_name")
            question = r.words(record, "question")
            answer = r.words(record, "answer")
            length = r.entry(record, "duration") if "duration" in record else None
            video = reading.video(f"{where.partition('.json')[0]}/{name}", name)
            item = Item(where, video._replace(name=name), question, answer, kind=kind)
            if isinstance(length, int | float):
                minutes = "10 min and more" if length >= 600 else "below 10 min"
                item = replace(item, labels=(("duration", minutes),))
            if kind in OPEN:
                reading.add(replace(item, form="text"))
                continue
            if record.get("candidates"):
                options = r.choices(record, "candidates")
                right = r.right_text(answer, options)
            else:
                question, options = r.split_options(question)
                right = r.right_letter(answer, options)
            reading.add(replace(item, question=question, options=options, right=right))


BENCHMARK = Benchmark(
    name="mlvu",
    read=read,
    files=FILES,
    holds="records with video, question, candidates, answer and question_type",
    average="kinds",
)
