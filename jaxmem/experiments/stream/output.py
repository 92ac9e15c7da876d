"""What a finished run leaves behind: files, tables, and a prompt for further questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from jaxmem.experiments.stream.job import Done, screen_of, shown
from jaxmem.experiments.stream.run import Asked, put_typed, result_of
from jaxmem.experiments.stream.terminal import Terminal
from jaxmem.report import tables
from jaxmem.report.compare import comparison
from jaxmem.report.files import write_json, write_picture
from jaxmem.report.maps import memory_map
from jaxmem.report.numbers import clock, size
from jaxmem.report.results import as_dict


def write(done: Done) -> Done:
    """Collect the results, write report and pictures, and return the report with them."""
    report, streams, out = done.report, done.streams, done.job.config.out
    held = [one.session.kept(report.seconds) for one in streams]
    results = tuple(result_of(one, kept) for one, kept in zip(streams, held, strict=True))
    files = {}
    for one, layers, result in zip(streams, held, results, strict=True):
        where = out / f"memory_map_{result.memory}.png"
        figure = memory_map(
            layers,
            seconds=report.seconds,
            title=f"{result.memory}: what is held after {clock(report.seconds)}",
            subtitle=f"{tables.slots_text(result.slots)}, {size(result.nbytes)}; the whole stream "
            f"would need {size(report.full_bytes)}",
            happened=done.source.happened,
            answers=one.answers,
        )
        files[f"memory map of {result.memory}"] = str(write_picture(where, figure))
    if len(streams) > 1:
        figure = comparison(
            results,
            held,
            seconds=report.seconds,
            title=f"{len(streams)} memories on {Path(report.source).name}",
            subtitle=f"{clock(report.seconds)}, {report.tokens:,} tokens per layer; "
            f"the whole stream would need {size(report.full_bytes)}",
        )
        files["comparison"] = str(write_picture(out / "comparison.png", figure))
    files["report"] = str(out / "report.json")
    report = replace(report, results=results, files=files)
    write_json(files["report"], as_dict(report))
    return replace(done, report=report)


def show(done: Done, console: Console) -> None:
    """Print the tables of a finished run, what to know about it, and where its files are."""
    report = done.report
    console.print()
    console.print(tables.summary(report) if len(report.results) == 1 else tables.comparison(report))
    if report.end.kind in ("damaged", "stalled"):
        console.print(
            f"The media is {report.end.kind} at {clock(report.end.time)} ({report.end.reason}); "
            "what came before was streamed.",
            style="yellow",
            markup=False,
        )
    if report.unasked:
        console.print(f"{report.unasked} questions come after the end.", style="yellow")
    if report.note and not done.source.happened:
        console.print(report.note, style="yellow", markup=False)
    for what, where in report.files.items():
        console.print(f"{what}: {where}", style="dim", markup=False, soft_wrap=True)


def prompt(done: Done, console: Console, typed: Terminal | None = None) -> Done:
    """Take questions about the whole stream until an empty line; `typed` reads the terminal."""
    console.print("\nAsk about the stream; an empty line leaves.")
    asked = 0
    for text in _lines(console, typed):
        screen = screen_of(done.job, console, None)
        with Live(get_renderable=screen.__rich__, console=console, transient=True):
            for happened in put_typed(done.streams, text, done.report.seconds):
                shown(screen, happened)
                asked += isinstance(happened, Asked)
    return write(done) if asked else done


def _lines(console: Console, typed: Terminal | None) -> Iterator[str]:
    if typed is not None:
        yield from typed.until_empty(lambda: console.print(f"> {typed.unfinished}", end=""))
        return
    while True:
        try:
            text = console.input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not text:
            return
        yield text
