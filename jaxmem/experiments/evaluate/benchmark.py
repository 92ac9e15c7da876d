"""`evaluate benchmark`: the questions of a published benchmark, put to memories of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxmem.data.benchmarks import Benchmark, Item, Problem, Video, named
from jaxmem.data.benchmarks.prompts import asked, template_of
from jaxmem.data.benchmarks.rules import score
from jaxmem.experiments.evaluate import benchmark_cells as cells
from jaxmem.experiments.evaluate.benchmark_config import BenchmarkConfig, by_video, check, found_in
from jaxmem.experiments.evaluate.benchmark_output import write
from jaxmem.experiments.evaluate.benchmark_watch import Setup, UnwatchableError, watch
from jaxmem.experiments.parsing import whole_pieces
from jaxmem.experiments.stream.config import OF_CHECKPOINTS, StreamConfig
from jaxmem.experiments.stream.cost import check_chunk
from jaxmem.experiments.stream.interrupt import ABORTED, Stop, interruptible
from jaxmem.experiments.stream.source import load_model
from jaxmem.memory.by_name import parse_budget, parse_names
from jaxmem.memory.options import plain_options
from jaxmem.models.base import Model
from jaxmem.models.tiny.embedded import is_embedded
from jaxmem.report import benchmarks as report
from jaxmem.report.commit import made_by
from jaxmem.saving import fingerprint

Videos = Mapping[Video, Sequence[Item]]
Put = Mapping[str, str]
"""Id of an item -> what it is asked in."""
REPORTED = ("model", "settings", "prompt", "commit", "jax", "device")
"""Of cells, what a report says of how its replies were given."""


def benchmark(config: BenchmarkConfig, console: Console) -> list[report.Outcome]:
    """Ask what has not been asked yet, and report all replies.

    Raises:
      ValueError: if an argument makes no sense, or the folder is not one of the benchmark.
      SystemExit: 130 after the report, if Ctrl-C ended the run early.
    """
    check(config)
    found = found_in(config)
    videos = by_video(found.items, config.shard)
    names, folders = parse_names(config.memory), [config.out]
    interrupted, counted = False, Counted()
    if config.merge:
        folders = list(config.merge)
        names = merged(config.merge)
    else:
        with interruptible() as stop:
            counted = run(config, videos, names, console, stop)
            interrupted = stop.wanted
    outcomes, events = collect(config, videos, names, folders, counted)
    write(config, found, videos, outcomes, events, console)
    if interrupted:
        console.print("interrupted: the same command goes on from here", style="yellow")
        raise SystemExit(ABORTED)
    return outcomes


class Counted(NamedTuple):
    """Which replies a report is of, and what kept others from being given.

    Attributes:
      marks: memory -> of the settings that count; none: any.
      words: what an item is to be asked in; None: any words.
      failed: name of a memory and id of a video -> why it could not be watched now.
    """

    marks: Mapping[str, str] = MappingProxyType({})
    words: Callable[[Item], str] | None = None
    failed: Mapping[tuple[str, str], str] = MappingProxyType({})


def run(
    config: BenchmarkConfig, videos: Videos, names: Sequence[str], console: Console, stop: Stop
) -> Counted:
    """Stream the videos of which replies are missing, ask for these alone, and store them."""
    setup = setup_of(config, console, stop)
    model = setup.model
    weights = fingerprint(model.params)
    settings = {name: settings_of(config, model, weights, name) for name in names}
    marks = {name: cells.fingerprint(one) for name, one in settings.items()}
    template = template_of(config.prompt)
    device = str(jax.devices()[0].device_kind)
    beside = {
        "model": config.model,
        "prompt": template or config.prompt,
        "device": device,
        **made_by(),
    }
    failed: dict[tuple[str, str], str] = {}
    columns = [TextColumn("{task.fields[at]:<32}", markup=False), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=sum(map(len, videos.values())), at="")
        for video, items in videos.items():
            if stop.wanted:
                break
            put = {item.id: asked(item, template) for item in items}
            there = {name: cells.read(config.out, name, video) for name in names}
            gone = {n: cells.missing(there[n], marks[n], items, put) for n in names}
            wanted = [name for name in names if gone[name]]
            bar.update(task, at=video.id[-32:])
            if wanted:
                ids = {item.id for each in gone.values() for item in each}
                new = [item for item in items if item.id in ids]
                heard = lambda: bar.update(task, advance=1)
                before = bar.tasks[0].completed
                stored = _watched(setup, video, new, put, wanted, heard)
                bar.update(task, completed=before)
                if stop.wanted:
                    break
                for name, cell in stored.items():
                    own = {"fingerprint": marks[name], "settings": settings[name]}
                    if not cells.write(config.out, name, video, {**own, **beside, **cell}):
                        failed[name, video.id] = cell["failed"]
            bar.update(task, advance=len(items))
    return Counted(marks, lambda item: asked(item, template), failed)


def _watched(
    setup: Setup,
    video: Video,
    items: Sequence[Item],
    put: Put,
    wanted: Sequence[str],
    heard: Any,
) -> dict[str, cells.Cell]:
    """Return the cells of a video; one that cannot be watched is tried again by the next run."""
    try:
        return watch(setup, video, items, put, wanted, heard)
    except UnwatchableError as error:
        gone = {"replies": [], "failed": str(error), "lost": cells.lost(items, put, str(error))}
        return {name: gone for name in wanted}


def setup_of(config: BenchmarkConfig, console: Console, stop: Stop) -> Setup:
    """Return the model and the memories that videos are streamed through.

    Raises:
      ValueError: if the model does not load, or a chunk does not fit it or the machine.
    """
    model = model_of(config, console)
    seconds = config.chunk_seconds or model.media.piece_seconds
    pieces = whole_pieces("chunk-seconds", seconds, model.media.piece_seconds)
    check_chunk(model, pieces)
    names = parse_names(config.memory)
    return Setup(model, names, config.budget, config.options, config.bits, pieces, stop)


def model_of(config: BenchmarkConfig, console: Console) -> Model:
    """Return the model that is asked.

    Raises:
      ValueError: if it does not load.
    """
    found = StreamConfig(adapter=config.adapter, scorer=config.scorer)
    if is_embedded(config.model):
        return load_model(replace(found, weights=Path(config.model)), console)
    more = {name: getattr(config, name) for name in OF_CHECKPOINTS}
    return load_model(replace(found, model=config.model, **more), console)


def settings_of(config: BenchmarkConfig, model: Model, weights: str, name: str) -> dict[str, Any]:
    """Return what tells the replies of a memory under other settings or weights from these."""
    settings = {key: getattr(config, key) for key in (*OF_CHECKPOINTS, "chunk_seconds", "bits")}
    settings |= {"weights": weights, "memory": name, "bank": config.options.get("bank", {})}
    first = parse_names(config.memory)[0]  # slots are its own; the others take its bytes
    for one in {name} if parse_budget(config.budget).nbytes else {name, first}:
        own = {**model.presets.get(one, {}), **config.options.get(one, {})}
        settings |= {"budget": config.budget, one: plain_options(one, own)}
    return settings


def merged(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the memories of which some folders hold replies, of one setting each.

    Raises:
      ValueError: if the replies of a memory were given under different settings, or prompts.
    """
    marks: dict[str, dict[Any, Path]] = {}
    for folder in folders:
        for path in cells.files(folder):
            cell = cells.load(path)
            mark = cell["fingerprint"], cell.get("prompt")
            marks.setdefault(path.parent.name, {}).setdefault(mark, path)
    for name, each in marks.items():
        if len(each) > 1:
            one, other = list(each.values())[:2]
            raise ValueError(
                f"--merge: {one} and {other} hold replies of {name} under other settings, prompts "
                "or weights; run one of them again."
            )
    return tuple(marks)


def collect(
    config: BenchmarkConfig,
    videos: Videos,
    names: Sequence[str],
    folders: Sequence[Path],
    counted: Counted,
) -> tuple[list[report.Outcome], list[dict[str, Any]]]:
    """Return what the stored replies are worth, and what happened to the videos.

    Args:
      config: how replies are read.
      videos: with their questions.
      names: of the memories.
      folders: where the replies lie.
      counted: which replies count.

    Raises:
      ValueError: if a file holds no replies.
    """
    rules = named(config.name)
    outcomes, events = [], {}
    for name in names:
        replied, lost, held = list[report.Replied](), list[Problem](), [(0, 0)]
        made: dict[str, Any] = {}
        mark = counted.marks.get(name)
        for video, items in videos.items():
            there = (cells.read(folder, name, video) for folder in folders)
            found = [x for x in there if x and mark in (None, x["fingerprint"])]
            replies, reasons = known_of(found, items, counted)
            for cell in {id(cell): cell for cell, _, _ in replies}.values():
                held.append((cell.get("nbytes", 0), cell.get("host_nbytes", 0)))
                for key in REPORTED:
                    if (value := cell.get(key)) not in made.setdefault(key, []):
                        made[key].append(value)
            for cell in found:
                events |= {(video.id, *one.values()): one for one in cell.get("events", ())}
            replied += [_replied(config, rules, video, *each) for each in replies]
            rest = "it has not been asked yet" if found else "it has not been watched yet"
            rest = counted.failed.get((name, video.id), rest)
            answered = {item.id for _, _, item in replies}
            why = Counter(reasons.get(x.id, rest) for x in items if x.id not in answered)
            lost += [Problem(video.id, reason, count) for reason, count in why.items()]
        nbytes, host = (max(column) for column in zip(*held, strict=True))
        outcomes.append(report.Outcome(name, replied, lost, nbytes, host, made))
    told = [{"video": key[0], **one} for key, one in events.items()]
    return outcomes, told


def known_of(
    found: Sequence[cells.Cell], items: Sequence[Item], counted: Counted
) -> tuple[list[tuple[cells.Cell, Mapping[str, Any], Item]], dict[str, str]]:
    """Return the replies that cells of one video hold, each once, and why there are no others.

    Args:
      found: cells of one memory and video, from any number of folders.
      items: about the video.
      counted: which replies count.
    """
    here, words = {item.id: item for item in items}, counted.words

    def counts(one: Mapping[str, Any]) -> bool:
        item = here.get(one["id"])
        return item is not None and (words is None or cells.put_so(one, item, words(item)))

    replies: dict[str, tuple[cells.Cell, Mapping[str, Any], Item]] = {}
    reasons: dict[str, str] = {}
    for cell in found:
        for one in filter(counts, cell["replies"]):
            replies.setdefault(one["id"], (cell, one, here[one["id"]]))
        reasons |= {one["id"]: one["reason"] for one in filter(counts, cell["lost"])}
    return list(replies.values()), reasons


def _replied(
    config: BenchmarkConfig,
    rules: Benchmark,
    video: Video,
    cell: cells.Cell,
    one: Mapping[str, Any],
    item: Item,
) -> report.Replied:
    how = {"rule": config.rule or rules.rule, "empty_counts": rules.empty_counts}
    return report.Replied(
        item=item,
        score=score(item, one["reply"], at=one["time"], **how),
        reply=one["reply"],
        time=one["time"],
        late=one["wanted_time"] is not None and not item.polls,
        seen=None if "seen" not in one else video.start + one["seen"],
        end=video.start + cell["seconds"],
        frames=one["frames"],
        tokens=one["tokens"],
        first_token_ms=one["first_token_ms"],
    )
