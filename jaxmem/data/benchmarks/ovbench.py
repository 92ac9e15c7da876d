"""OVBench and ODV-Bench: the stream is a part of a video, and the question comes at its end."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item


def read(reading: r.Reading) -> None:
    """Read all files of the folder; with "fps" a video is a folder of pictures."""
    for where, record in reading.records("*.json"):
        with reading.noting(where):
            name, start = r.words(record, "video"), r.seconds(record, "start")
            fps = r.seconds(record, "fps") if record.get("fps") is not None else None
            video = reading.video(name, start=start, fps=fps or None)
            own, end = reading.numbered(video), r.seconds(record, "end")
            if end <= start:
                raise r.MalformedError(f'"end" is {end:g} s, not after "start", {start:g} s')
            options = r.choices(record, "candidates")
            kind = r.words(record, "task", "question_type", default="") or where.partition(".")[0]
            parts = [r.words(record, key, default="") for key in ("subtask", "subsubtask")]
            reading.add(
                Item(
                    id=own,
                    video=video,
                    question=r.words(record, "question"),
                    right=r.right_text(r.words(record, "answer"), options),
                    options=options,
                    asked_at=end,
                    kind=kind,
                    labels=tuple(("subtask", part) for part in parts if part),
                )
            )


HOLDS = "records with video, start, end, question, candidates and answer"
OVBENCH = Benchmark(name="ovbench", read=read, files=("*.json",), holds=HOLDS)
ODV_BENCH = Benchmark(name="odv-bench", read=read, files=("*.json",), holds=HOLDS)
