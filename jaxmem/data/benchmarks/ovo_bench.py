"""OVO-Bench: questions about the past, the present, and whether it is time to answer yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

GROUPS = {
    **dict.fromkeys(("EPM", "HLD", "ASI"), "Backward"),
    **dict.fromkeys(("OCR", "ACR", "ATR", "STU", "FPD", "OJR"), "Real-time"),
    **dict.fromkeys(("REC", "SSR", "CRR"), "Forward"),
}
"""Task -> the group whose mean counts."""
YES, NO = "Yes", "No"
FILES = ("ovo_bench_new.json", "ovo_bench*.json")


def read(reading: r.Reading) -> None:
    """Read all records; a forward one is as many questions as it has probes, in order of time."""
    for where, record in reading.records_of_first(*FILES):
        probes = record.get("test_info")
        with reading.noting(where, len(probes) if isinstance(probes, list) else 1):
            kind = r.words(record, "task")
            if kind not in GROUPS:
                raise r.MalformedError(f'"task" is {kind!r}, expected one of {", ".join(GROUPS)}')
            common: dict[str, Any] = {
                "video": reading.video(r.words(record, "video")),
                "kind": kind,
                "group": GROUPS[kind],
            }
            if GROUPS[kind] == "Forward":
                _forward(reading, where, record, kind, common)
                continue
            options = r.choices(record, "options")
            reading.add(
                Item(
                    id=r.words(record, "id"),
                    question=r.words(record, "question"),
                    # "answer" is other words than the right option in many records.
                    right=r.right_number(r.entry(record, "gt"), options),
                    options=options,
                    asked_at=r.seconds(record, "realtime"),
                    **common,
                )
            )


def _forward(
    reading: r.Reading, where: str, record: r.Json, kind: str, common: dict[str, Any]
) -> None:
    """Add every probe of a record."""
    name = r.words(record, "id")
    for number, (at, question, right, form, evidence) in _probes(reading, where, record, kind):
        one = {"question": question, "right": right, "form": form, "evidence": evidence}
        reading.add(Item(id=f"{name}.{number}", asked_at=at, **one, **common))


def _probes(reading: r.Reading, where: str, record: r.Json, kind: str) -> Iterator[Any]:
    """Yield number, time, question, right reply, form and evidence of the probes, by time."""
    found = []
    for number, probe in enumerate(r.listed(record, "test_info"), 1):
        with reading.noting(f"{where}, probe {number}"):
            at = r.seconds(probe, "realtime")
            found.append((number, (at, *_probe(record, probe, kind))))
    yield from sorted(found, key=lambda one: one[1][0])


def _probe(record: r.Json, probe: r.Json, kind: str) -> tuple[str, str, str, Any]:
    if kind == "REC":
        question = f"How many times has this been done so far: {r.words(record, 'activity')}?"
        count = r.right_number(r.entry(probe, "count"), range(1 << 20))  # type: ignore[arg-type]
        return question, str(count), "count", None
    right = _yes_or_no(r.entry(probe, "type"))
    if kind == "SSR":
        topic, step = r.words(record, "tutorial"), r.words(probe, "step")
        return f'In "{topic}", is this step being done now: {step}?', right, "yes_no", None
    clue = r.seconds(record, "clue_time")
    question = r.words(record, "question")
    asked = f"Has enough been seen to answer this question yet: {question}"
    return asked, right, "yes_no", (clue, clue) if right == YES else None


def _yes_or_no(value: Any) -> str:
    if value in (0, 1):
        return YES if value else NO
    if str(value).strip().lower() in ("yes", "no", "1", "0"):
        return YES if str(value).strip().lower() in ("yes", "1") else NO
    raise r.MalformedError(f'"type" is {r.short(value)}, expected 1 for yes or 0 for no')


BENCHMARK = Benchmark(
    name="ovo-bench",
    read=read,
    files=FILES,
    holds="records with task, video, realtime, options and gt, or test_info",
    rule="contains",
    average="groups",
)
