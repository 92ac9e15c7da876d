"""TimeScope and LongTimeScope: something short is hidden in a long video, at a known time."""

from __future__ import annotations

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item
from jaxmem.data.benchmarks.lvbench import span

FILES = ("*.parquet", "timescope*.json")


def read(reading: r.Reading) -> None:
    """Read the rows of the table. Where the needle lies tells the age of the evidence."""
    for where, record in reading.records_of_first(*FILES):
        with reading.noting(where):
            question, options = r.split_options(r.words(record, "input"))
            reading.add(
                Item(
                    id=r.words(record, "index", "id"),
                    video=reading.video(r.words(record, "video")),
                    question=question,
                    right=r.right_letter(r.words(record, "answer"), options),
                    options=options,
                    kind=r.words(record, "type"),
                    labels=(("length", f"{r.words(record, 'length')} s"),),
                    evidence=_needle(record),
                )
            )


def _needle(record: r.Json) -> tuple[float, float] | None:
    """Return when the needle is shown: a time, or several of which the span counts."""
    found = record.get("replace_time")
    if found is None:
        return None
    if isinstance(found, str) and ":" in found:
        return span(found)
    each = found if isinstance(found, list) else [found]
    times = [r.seconds({"replace_time": one}, "replace_time") for one in each]
    return (min(times), max(times)) if times else None


BENCHMARK = Benchmark(
    name="timescope",
    read=read,
    files=FILES,
    holds="rows with video, input, length, replace_time, type and answer",
)
