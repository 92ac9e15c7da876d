"""VStream-QA: open questions about clips of Ego4D and MovieNet, for a judge."""

from __future__ import annotations

from typing import Any

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

VIDEO = ("video", "video_path", "source_video", "source", "video_uid")
START, END = ("start", "start_time", "clip_start_time"), ("end", "end_time", "clip_end_time")


def read(reading: r.Reading) -> None:
    """Read the questions; `vs_*.json` and `rvs_*.json` say what of which video a clip is.

    A clip of a whole video (RVS) streams from its beginning and is asked about at the clip's end;
    a video of its own (VS) is asked about at its end.
    """
    clips: dict[str, Any] = {}
    for where, record in reading.records("vs_*.json", "rvs_*.json"):
        with reading.noting(where):
            clips[r.words(record, "video_id", "_id")] = record
    for where, record in reading.records("test_qa_*.json"):
        with reading.noting(where):
            name = r.words(record, "video_id")
            clip = clips.get(name, {})
            cut = any(clip.get(key) is not None for key in END)
            end = r.seconds(clip, *END) if cut else None
            begin = r.seconds(clip, *START) if end is not None else 0.0
            source = r.words(clip, *VIDEO, default=name)
            reading.add(
                Item(
                    id=r.words(record, "id"),
                    video=reading.video(source) if cut else reading.video(source, name),
                    question=r.words(record, "question"),
                    right=r.words(record, "answer"),
                    asked_at=end,
                    kind=r.words(record, "answer_type", default=""),
                    evidence=None if end is None else (begin, end),
                    form="text",
                    record=(("video_id", name),),
                )
            )


BENCHMARK = Benchmark(
    name="vstream-qa",
    read=read,
    files=("test_qa_*.json",),
    holds="records with video_id, question, answer and answer_type",
)
