"""What a finished run leaves behind: files, tables, and a prompt for further questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.live import Live

from jaxmem.experiments.stream.job import Done, screen_of, shown
from jaxmem.experiments.stream.run import Asked, put_typed, result_of
from jaxmem.experiments.stream.terminal import Terminal
from jaxmem.report import tables
from jaxmem.report.compare import comparison
from jaxmem.report.files import write_json, write_picture
from jaxmem.report.kept import Kept
from jaxmem.report.maps import memory_map
from jaxmem.report.numbers import clock, size
from jaxmem.report.results import as_dict


def collect(done: Done) -> tuple[Done, list[list[Kept]]]:
    """Return a run with its results, and what each memory holds of every layer."""
    report, streams = done.report, done.streams
    held = [one.session.kept(report.seconds) for one in streams]
    results = tuple(result_of(one, kept) for one, kept in zip(streams, held, strict=True))
    return replace(done, report=replace(report, results=results)), held


def write(done: Done, held: Sequence[Sequence[Kept]]) -> Done:
    """Write report and pictures of a collected run; note in the run what could not be written."""
    report, out, files = done.report, done.job.config.out, {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for what, name, figure in _figures(done, held):
            files[what] = str(write_picture(out / name, figure))
        files["report"] = str(out / "report.json")
        report = replace(report, files=files)
        write_json(files["report"], as_dict(report))
    except OSError as error:
        files.pop("report", None)
        report = replace(report, files=files)
        return replace(done, report=report, unwritten=f"the report could not be written: {error}")
    return replace(done, report=report)


def _figures(done: Done, held: Sequence[Sequence[Kept]]) -> Iterator[tuple[str, str, Figure]]:
    """Yield the pictures of a run: what each is, its file name, and the figure."""
    report = done.report
    for one, layers, result in zip(done.streams, held, report.results, strict=True):
        if not one.session.spec.layers:  # no layer attends, so none holds tokens
            continue
        figure = memory_map(
            layers,
            seconds=report.seconds,
            title=f"{result.memory}: what is held after {clock(report.seconds)}",
            subtitle=f"{tables.slots_text(result)}, {size(result.nbytes)}; the whole stream "
            f"would need {size(report.full_bytes)}",
            happened=done.source.happened,
            answers=one.answers,
        )
        yield f"memory map of {result.memory}", f"memory_map_{result.memory}.png", figure
    if len(report.results) > 1:
        figure = comparison(
            report.results,
            held,
            seconds=report.seconds,
            title=f"{len(report.results)} memories on {Path(report.source).name}",
            subtitle=f"{clock(report.seconds)}, {report.tokens:,} tokens per layer; "
            f"the whole stream would need {size(report.full_bytes)}",
        )
        yield "comparison", "comparison.png", figure


def show(done: Done, console: Console) -> None:
    """Print the tables of a finished run, and what to know about it."""
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


def show_files(done: Done, console: Console) -> None:
    """Print where the files of a written run are."""
    for what, where in done.report.files.items():
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
    return write(*collect(done)) if asked else done


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
