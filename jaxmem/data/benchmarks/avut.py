"""AVUT: questions about what is heard; those without options are for a judge."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

FILES = ("AV_Human_data.json", "AV_Gemini_data.json")


def read(reading: r.Reading) -> None:
    """Read both files; the name of each is a group."""
    for where, record in reading.records(*FILES):
        with reading.noting(where):
            name = r.words(record, "video_id", "video", "video_path")
            video = reading.video(name)
            own = reading.numbered(video)
            answer = r.words(record, "answer")
            common = {
                "id": own,
                "video": video,
                "question": r.words(record, "question"),
                "kind": r.words(record, "task_type", "question_type", "task", default=""),
                "labels": (("file", where.partition("_data")[0]),),
            }
            keys = [key for key in ("options", "candidates", "choices") if record.get(key)]
            if not keys:
                reading.add(Item(right=answer, form="text", record=(("video_id", name),), **common))
                continue
            options = r.choices(record, keys[0])
            named = len(answer.strip("().")) == 1
            right = r.right_letter(answer, options) if named else r.right_text(answer, options)
            reading.add(Item(right=right, options=options, **common))


BENCHMARK = Benchmark(
    name="avut",
    read=read,
    files=FILES,
    holds="records with video_id, question, answer and, for most, options",
)
