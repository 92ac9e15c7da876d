"""What `evaluate benchmark` leaves behind: tables, report, all replies, and files for a judge."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxmem.data.benchmarks import Found, Item, Video, named
from jaxmem.data.benchmarks.reading import own_id
from jaxmem.data.world.atomic import complete
from jaxmem.experiments.evaluate.benchmark_config import BenchmarkConfig
from jaxmem.experiments.evaluate.cells import show_tables
from jaxmem.report import benchmarks as report
from jaxmem.report.commit import made_by
from jaxmem.report.files import write_json

FORMAT, VERSION = "jaxmem-benchmark", 1
MERGED = ("name", "data", "videos", "only", "rule", "merge", "out")
"""Options that say something where replies were given by other commands."""


def write(
    config: BenchmarkConfig,
    found: Found,
    videos: Mapping[Video, Sequence[Item]],
    outcomes: Sequence[report.Outcome],
    events: Sequence[Mapping[str, Any]],
    console: Console,
) -> None:
    """Print the tables; write them, the report, all replies, and what a judge is to read."""
    rules, out = named(config.name), config.out
    out.mkdir(parents=True, exist_ok=True)
    parts = [rules.name, *filter(None, (config.only, config.shard and f"shard {config.shard}"))]
    title = f"{', '.join(parts)}: mean over {rules.average} (%), 95 % intervals over videos"
    tables = report.tables(outcomes, rules, title)
    show_tables(tables, out / "tables.txt", console, width=200)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": {k: str(v) for k, v in vars(config).items() if not config.merge or k in MERGED},
        "rule": config.rule or rules.rule,
        "average": rules.average,
        **made_by(),
        "questions": sum(map(len, videos.values())),
        "videos": len(videos),
        "memories": [report.as_dict(one, rules) for one in outcomes],
        "problems": [one._asdict() for one in found.problems],
        "mended": [one._asdict() for one in found.mended],
        "events": list(events),
    }
    write_json(out / "results.json", document)
    _write_replies(out, outcomes)
    for line in _lost(found, outcomes):
        console.print(line, style="yellow", markup=False)
    console.print(f"written to {out}", markup=False)


def _write_replies(out: Path, outcomes: Sequence[report.Outcome]) -> None:
    """Write all replies with their scores, and for a judge those of open questions."""
    with complete(out / "replies.jsonl") as path, path.open("w") as file:
        for one in outcomes:
            for each in one.replied:
                item = each.item
                file.write(json.dumps({
                    "memory": one.memory, "id": item.id, "video": item.video.id,
                    "kind": item.kind, "group": item.group, "question": item.question,
                    "options": item.options, "right": item.right, "reply": each.reply,
                    "time": each.time, "official": each.score.official, "safe": each.score.safe,
                }) + "\n")  # fmt: skip
    for one in outcomes:
        judged = [
            {"id": own_id(each.item), "question": each.item.question, "answer": each.item.right,
             "answer_type": each.item.kind, **dict(each.item.record), "pred": each.reply}
            for each in one.replied if each.item.form == "text"
        ]  # fmt: skip
        if judged:
            write_json(out / "judge" / f"{one.memory}.json", judged)


def _lost(found: Found, outcomes: Sequence[report.Outcome]) -> Iterator[str]:
    """Yield in words what questions were lost to, and what was mended."""
    if found.problems:
        cost = sum(one.questions for one in found.problems)
        first = found.problems[0]
        yield (
            f"{len(found.problems)} malformed record(s) cost {cost} question(s), the first: "
            f"{first.where}: {first.reason}"
        )
    if found.mended:
        yield f"{len(found.mended)} record(s) were mended, the first: {found.mended[0].reason}"
    shared = set.intersection(*(set(one.lost) for one in outcomes)) if outcomes else set()
    for who, lost in (
        ("all memories", [each for each in outcomes[0].lost if each in shared] if outcomes else []),
        *((one.memory, [each for each in one.lost if each not in shared]) for one in outcomes),
    ):
        if lost:
            cost = sum(each.questions for each in lost)
            first = f"{lost[0].where}: {lost[0].reason}"
            yield f"{who}: {cost} question(s) were not asked, the first: {first}"
    for one in outcomes:
        if late := sum(each.late for each in one.replied):
            yield f"{one.memory}: {late} question(s) come after the end and were asked there"
        if early := sum(map(report.moved, one.replied)):
            yield f"{one.memory}: {early} question(s) come before the first piece had been seen"
