"""StreamingBench: questions while a video streams, and answers that come at the right time."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item, Video

OMNI = (
    "Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment",
)  # fmt: skip
"""Types of the omni file that are its own group; its others are contextual."""
REAL, OMNI_SOURCE, CONTEXTUAL = "Real-time", "Omni-source", "Contextual"
PARTS = ("real", "omni", "sqa", "proactive")
NAMED = (*(f"questions_{part}.json" for part in PARTS), "*_stream.json")
KINDS = {"sqa": "Sequential Question Answering", "proactive": "Proactive Output"}
MISLEADING = ("Anomaly Context Understanding", "Misleading Context Understanding")
"""Types of the omni file that are contextual."""
BEFORE, AFTER = 1.0, 4.0
"""Seconds after the question at which a proactive one is first put, and after its time at last."""


def read(reading: r.Reading) -> None:
    """Read the questions of all parts that are there; the spoken ones only without the others.

    The hub's table holds the same questions as the files, and is read where there are none.
    """
    for part in PARTS:
        names = f"questions_{part}.json", f"*{part}_stream.json"
        files = reading.files(names[0]) or reading.files(names[1])
        for path in files:
            for number, record in enumerate(r.records_of(path), 1):
                where = f"{path.name}, record {number}"
                _entries(reading, part, where, record if isinstance(record, list) else [record])
    if reading.files(*NAMED):
        return
    told: dict[str, list[str]] = {}
    for where, record in reading.records("*.csv"):
        with reading.noting(where):
            _row(reading, where, record, told)


def _entries(reading: r.Reading, part: str, where: str, entries: Sequence[Any]) -> None:
    """Read entries about one video; earlier ones are told to those of the sequential part."""
    told: list[str] = []
    for entry in entries:
        held = entry.get("questions") if isinstance(entry, dict) else None
        asked = held if isinstance(held, list) else [held]
        for number, question in enumerate(asked, 1):
            with reading.noting(f"{where}, question {number}"):
                video = reading.video(r.words(entry, "video_path"))
                own = reading.numbered(video)
                said = r.words(question, "time", default="") or r.words(entry, "time", default="")
                window = window_of(said)
                place = f"{where}, question {number}"
                _add(reading, part, place, own, video, question, window, told)


def _add(
    reading: r.Reading,
    part: str,
    where: str,
    own: str,
    video: Video,
    record: Any,
    window: tuple[float, float] | None,
    told: list[str],
) -> None:
    kind = KINDS.get(part) or r.words(record, "task_type")
    group = REAL if part == "real" else OMNI_SOURCE if kind in OMNI else CONTEXTUAL
    question = r.words(record, "question")
    at = stamp(reading, where, r.words(record, "time_stamp"), window)
    common: dict[str, Any] = {"id": own, "video": video, "kind": kind, "group": group}
    ability = r.words(record, "required_ability", default="")
    common["labels"] = (("ability", ability),) if ability else ()
    if part == "proactive":
        due = stamp(reading, where, r.words(record, "ground_truth_time_stamp"), None)
        polls = tuple(at + i for i in range(int(BEFORE), int(due + AFTER - at) + 1))
        right = r.words(record, "ground_truth_output")
        more = {"form": "proactive", "polls": polls, "due": due, "asked_at": at}
        reading.add(Item(question=question, right=right, **more, **common))
        return
    options = _options(record)
    right = r.right_letter(r.words(record, "answer"), options)
    before = "\n".join(told)
    if part == "sqa":
        told.append(f"Question: {question}\nAnswer: {options[right]}")
        question = f"Asked before:\n{before}\n\n{question}" if before else question
    reading.add(Item(question=question, right=right, options=options, asked_at=at, **common))


def _row(reading: r.Reading, where: str, record: r.Json, told: dict[str, list[str]]) -> None:
    """Read a row of the hub's CSV, whose id names the video, and whose type the part."""
    name = r.words(record, "question_id")
    sample = re.search(r"sample_\d+", name)
    if sample is None:
        raise r.MalformedError(f'"question_id" is {r.short(name)}, expected one with sample_N')
    kind = r.words(record, "task_type")
    omni = "omni" if kind in (*OMNI, *MISLEADING) else "real"
    part = {name: part for part, name in KINDS.items()}.get(kind, omni)
    video = reading.video(f"{sample[0]}_{part}", sample[0])
    _add(reading, part, where, name, video, record, None, told.setdefault(video.id, []))


def _options(record: r.Json) -> tuple[str, ...]:
    """Return the options: a list, or a list that is written as text."""
    found = r.entry(record, "options")
    if isinstance(found, str):
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError):
            found = r.split_options(found)[1]
    return r.choices({"options": found}, "options")


def stamp(reading: r.Reading, where: str, text: str, window: tuple[float, float] | None) -> float:
    """Return a time stamp in seconds; one that is malformed is read as its window says.

    "00:12450" in a window from 12:00 to 13:00 is 12:45, and "05:11:00" in one from 5:00 to 6:10 is
    5:11. Officially they would be 12,450 s and 18,660 s. "00:24" is 24 s, whatever its window.
    """
    whole = re.fullmatch(r"(?:(\d\d):)?([0-5]\d):([0-5]\d)(?:\.0+)?", text.strip())
    parts = whole.groups() if whole else ()
    written = float(sum(int(x or 0) * s for x, s in zip(parts, (3600, 60, 1), strict=False)))
    official = whole is not None and whole[1] is not None
    if official and (window is None or _inside(written, window)):
        return written
    others = [x for x in _readings(text) if window is not None and _inside(x, window)]
    if not others and whole is not None:
        if official:  # the window is what is wrong
            return written
        others = [written]
    if not others:
        raise r.MalformedError(f'"time_stamp" is {text!r}, expected hours:minutes:seconds')
    reading.mend(where, f"the time stamp {text!r} is read as {others[0]:g} s")
    return others[0]


def _readings(text: str) -> Iterator[float]:
    """Yield what the digits of a stamp may mean: hhmmss, mmss or hhmm, and zeros behind."""
    digits = "".join(re.findall(r"\d", text))
    for units in ((3600, 60, 1), (60, 1), (3600, 60)):
        size = 2 * len(units)
        if len(digits) >= size and not digits[size:].strip("0"):
            pairs = (int(digits[i : i + 2]) for i in range(0, size, 2))
            yield float(sum(a * b for a, b in zip(pairs, units, strict=True)))


def _inside(time: float, window: tuple[float, float]) -> bool:
    return window[0] <= time <= window[1]


def window_of(text: str) -> tuple[float, float] | None:
    """Return the stretch of time that a question was written about: "[0:12:0 - 0:13:0]"."""
    found = re.findall(r"\d+(?::\d+){1,2}", text)
    if len(found) != 2:
        return None
    low, high = (
        sum(float(x) * 60**i for i, x in enumerate(reversed(one.split(":")))) for one in found
    )
    return (low, high) if low <= high else None


BENCHMARK = Benchmark(
    name="streamingbench",
    read=read,
    files=(*NAMED, "*.csv"),
    holds="entries with video_path and questions[] (time_stamp, options, answer)",
    rule="first_character",
    empty_counts=False,
)
