"""MLVU: seven tasks with options, two for a judge; its M-Avg is the mean over tasks."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item, Video

OPEN = ("sub_scene", "summary", "subPlot")
"""Task names of the open questions."""
FILES = ("[1-9]_*.json", "mlvu*.json", "*.parquet")
FOLDERS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "findNeedle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
    "sub_scene": "8_sub_scene",
    "subPlot": "8_sub_scene",
    "summary": "9_summary",
}
"""Task -> folder of its videos, and name of its file."""


def read(reading: r.Reading) -> None:
    """Read the files of the tasks, or one table in the layout of the copies for lmms-eval."""
    for where, record in reading.records_of_first(*FILES):
        with reading.noting(where):
            kind = r.words(record, "question_type", "task_type")
            name = r.words(record, "video", "video_name")
            video = _video(reading, where, kind, name)
            own = reading.numbered(video)
            question = r.words(record, "question")
            answer = r.words(record, "answer")
            length = r.entry(record, "duration") if "duration" in record else None
            item = Item(own, video, question, answer, kind=kind)
            if isinstance(length, int | float):
                minutes = "10 min and more" if length >= 600 else "below 10 min"
                item = replace(item, labels=(("duration", minutes),))
            if kind in OPEN:
                reading.add(replace(item, form="text", record=_told(record, name)))
                continue
            if record.get("candidates"):
                options = r.choices(record, "candidates")
                right = r.right_text(answer, options)
            else:
                question, options = r.split_options(question)
                right = r.right_letter(answer, options)
            reading.add(replace(item, question=question, options=options, right=right))


def _video(reading: r.Reading, where: str, kind: str, name: str) -> Video:
    """Return a video of a task: several tasks have videos of the same name."""
    file = where.rpartition(".json")[0].rpartition("/")[2]
    folder = file if re.match(r"\d_", file) else FOLDERS.get(kind, kind)
    return reading.video(f"{folder}/{name}", name)


def _told(record: r.Json, name: str) -> tuple[tuple[str, Any], ...]:
    """Return what a judge of the open tasks reads besides question, answer and reply."""
    points = record.get("scoring_points")
    return (("video_name", name), *((("scoring_points", points),) if points is not None else ()))


BENCHMARK = Benchmark(
    name="mlvu",
    read=read,
    files=FILES,
    holds="records with video, question, candidates, answer and question_type",
    average="kinds",
)
