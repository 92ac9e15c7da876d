"""Tables of a report, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from jaxmem.report.numbers import clock, milliseconds, size
from jaxmem.report.results import Accuracy, Answered, Report, Result

STYLES = {None: "bold", True: "bold green", False: "bold red"}
"""Of an answer, by whether it is right."""


def answers_line(answers: Sequence[Answered], names: Sequence[str]) -> Text:
    """Return one line for a question: what the memories of those names answered."""
    return answer_line(answers[0]) if len(answers) == 1 else compared_line(answers, names)


def answer_line(answered: Answered) -> Text:
    """Return one line: time, question, answer, truth."""
    line = _question(answered)
    line.append(f"  {answered.answer or '(no answer)'}", style=STYLES[answered.right])
    if answered.right is not None:
        truth = "correct" if answered.right else f"truth: {answered.truth}"
        line.append(f"  ({truth})", style="dim")
    if answered.wanted_time is not None:
        line.append(f"  (wanted at {clock(answered.wanted_time)})", style="yellow")
    return line


def compared_line(answers: Sequence[Answered], names: Sequence[str]) -> Text:
    """Return a question and, below it, what every memory answered."""
    line = _question(answers[0])
    if answers[0].truth is not None:
        line.append(f"  ({answers[0].truth})", style="dim")
    line.append("\n" + " " * 8)
    for name, answered in zip(names, answers, strict=True):
        line.append(f"  {name} ", style="dim")
        line.append(answered.answer or "-", style=STYLES[answered.right])
    return line


def _question(answered: Answered) -> Text:
    """Return how a line starts: time and question."""
    return Text.assemble((f"{clock(answered.time):>8}  ", "cyan"), answered.question)


def share(score: Accuracy | None) -> str:
    """Return an accuracy with its interval."""
    if score is None:
        return "-"
    return f"{score.share:.0%} ({score.right}/{score.asked}; {score.low:.0%} to {score.high:.0%})"


def summary(report: Report) -> Table:
    """Return the table of one memory on one stream."""
    result = report.results[0]
    title = f"{result.memory} on {Path(report.source).name}"
    table = Table(show_header=False, **_titled(title))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    rows = [
        *([("right answers (95 %)", share(result.accuracy))] if result.accuracy else []),
        *([("adapter", _adapter(report))] if _adapter(report) else []),
        ("streamed", f"{clock(report.seconds)} at {report.speed:.1f}x real time"),
        ("ended", _ended(report)),
        ("tokens seen", f"{report.tokens:,} per layer"),
        ("memory", slots_text(result)),
        ("held at the end", ", ".join(f"{n:,} {kind}" for kind, n in result.kept.items()) or "-"),
        ("bytes at rest", _bytes(report, result)),
        (
            "time per chunk",
            f"{pair(result.chunk_ms)} (start, end; {report.chunk_seconds:g} s each)",
        ),
        ("time to first token", f"{pair(result.first_token_ms)} (median, worst)"),
        ("compiled", compiled(report)),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _adapter(report: Report) -> str:
    """Return the adapter in the model's weights, as it was given; empty: none."""
    return str(report.config.get("adapter") or "")


def comparison(report: Report) -> Table:
    """Return the table of several memories on the same stream, one row each."""
    title = (
        f"{Path(report.source).name}: {clock(report.seconds)}, {report.tokens:,} tokens per layer"
    )
    table = Table(
        **_titled(title),
        caption="times in ms: a chunk at the start and at the end, first token median and worst\n"
        + (f"adapter {_adapter(report)}\n" if _adapter(report) else "")
        + _ended(report),
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("memory", "right", "95 %", "bytes", "slots"):
        table.add_column(name, style="cyan" if name == "memory" else None, no_wrap=True)
    for name in ("chunk", "at end", "token", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        score = result.accuracy
        table.add_row(
            result.memory,
            "-" if score is None else f"{score.share:.0%}",
            "-" if score is None else f"{score.low:.0%}-{score.high:.0%}",
            size(result.nbytes),
            slots_text(result, short=True),
            *_numbers(result.chunk_ms),
            *_numbers(result.first_token_ms),
        )
    return table


def _titled(title: str) -> dict[str, Any]:
    return {"title": title, "title_style": "bold", "title_justify": "left", "box": SIMPLE}


def pair(times: tuple[float, float] | None) -> str:
    """Return two times in milliseconds."""
    return "-" if times is None else f"{milliseconds(times[0])}, {milliseconds(times[1])}"


def slots_text(result: Result, *, short: bool = False) -> str:
    """Return slots per layer in words; short: their number, or mean where layers differ."""
    slots = result.slots
    if not slots:
        held = "states" if result.nbytes == result.state_nbytes else "features"
        return "-" if short else f"{held}, no slots"
    if len(set(slots)) == 1:
        each = f"{slots[0]:,}"
        return each if short else f"{each} slots in each of {len(slots)} layers"
    if short:
        return f"~{sum(slots) / len(slots):,.0f}"
    return f"{min(slots):,} to {max(slots):,} slots in {len(slots)} layers"


def compiled(report: Report) -> str:
    """Return what was compiled, in words."""
    c = report.compilations
    return (
        f"{c.before} programs before the stream ({c.before_seconds:.1f} s), "
        f"{c.streaming} while it ran"
    )


def _numbers(times: tuple[float, float] | None) -> tuple[str, str]:
    if times is None:
        return "-", "-"
    return f"{times[0]:#.3g}".rstrip("."), f"{times[1]:#.3g}".rstrip(".")


def _ended(report: Report) -> str:
    return f"{report.end.kind} at {clock(report.end.time)}: {report.end.reason}"


def _bytes(report: Report, result: Result) -> str:
    if result.nbytes == result.state_nbytes:
        return f"{size(result.nbytes)} of states, never changing"
    part = result.nbytes / report.full_bytes if report.full_bytes else 0.0
    states = f" ({size(result.state_nbytes)} of it states)" if result.state_nbytes else ""
    return (
        f"{size(result.nbytes)}{states}, never changing; the whole stream would need "
        f"{size(report.full_bytes)}"
        + (f" ({part:.1%} of that)" if report.full_bytes else "")
        + (f"; {size(result.host_nbytes)} in host memory" if result.host_nbytes else "")
    )
