"""Many live streams at once: throughput against one stream alone, lateness, and bytes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import jax
import numpy as np
from rich.table import Table

from jaxmem.experiments.benchmark.second_session import noise, noise_chunk
from jaxmem.experiments.memories import MemoryOptions
from jaxmem.loop import advance, start
from jaxmem.memory.by_name import contestants, parse_budget, parse_names
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec
from jaxmem.serve.engine import Engine
from jaxmem.serve.lanes import advance_lanes, start_lanes
from jaxmem.serve.live import Live
from jaxmem.serve.stepper import stacked


@dataclass(frozen=True)
class StreamsConfig:
    """Step many live streams together, against one alone, and at a chunk a second each."""

    streams: int = 32  # side by side
    memory: str = "omnimem"  # its name; set it with --NAME.OPTION
    budget: str = "64"  # slots per layer, or bytes over all layers (64KiB)
    # Tokens per layer of `full`, and of banks of rekv and flexmem whose options do not say.
    capacity: int = 4096
    seconds: float = 60.0  # of the run at a chunk a second
    questions: float = 4.0  # a second, over all streams
    rounds: int = 21  # of the throughput: one stream alone and all together, in turn
    json: bool = False  # print JSON instead of a table
    memories: MemoryOptions = field(default_factory=dict)


@dataclass(frozen=True)
class Streams:
    """What many streams at once cost."""

    memory: str
    streams: int
    alone_ms: float  # a chunk of one stream that steps alone, median
    together_ms: float  # a chunk of all of them, stepped together
    throughput: float  # chunks a second together / alone, median of paired ratios
    seconds: float  # of the run at a chunk a second
    chunks: int  # written in it
    dropped: int
    late_ms: tuple[float, float]  # from a piece to its chunk written: median, latest
    answers: int
    first_token_ms: tuple[float, float]  # from a question: median, 99th percentile
    state_bytes: int  # of one stream
    lanes_bytes: int  # of all of them on the device
    temporary_bytes: tuple[int, int]  # of the compiled step: one stream, all


def measure_streams(config: StreamsConfig) -> Streams:
    """Measure as `StreamsConfig` says.

    Raises:
      ValueError: if a number is out of range, or the memory is unknown or does not fit.
    """
    if config.streams < 1 or config.seconds <= 0 or config.questions < 0 or config.rounds < 1:
        raise ValueError(
            f"--streams, --seconds and --rounds must be positive and --questions not negative, got "
            f"{config.streams}, {config.seconds:g}, {config.rounds} and {config.questions:g}."
        )
    model, names = embedded(), parse_names(config.memory)
    if len(names) > 1:
        raise ValueError(f"streams are of one memory, got --memory {config.memory}.")
    spec, budget = model_spec(model), parse_budget(config.budget)
    (chosen,) = contestants(
        names, config.memories, budget, spec, config.capacity, presets=model.presets
    )
    at = lambda times, share: 1e3 * float(np.percentile(times or [np.nan], share))
    with Engine(model, chosen.memory, lanes=config.streams) as engine:
        engine.rehearse(model.probes[0])
        alone, together, temporaries = _throughput(engine, config.rounds)
        late, first, dropped = _paced(engine, config)
        return Streams(
            memory=chosen.name,
            streams=config.streams,
            alone_ms=1e3 * float(np.median(alone)),
            together_ms=1e3 * float(np.median(together)),
            throughput=float(np.median(config.streams * alone / together)),
            seconds=config.seconds,
            chunks=len(late),
            dropped=dropped,
            late_ms=(at(late, 50), at(late, 100)),
            answers=len(first),
            first_token_ms=(at(first, 50), at(first, 99)),
            state_bytes=engine.nbytes,
            lanes_bytes=engine.stepper.nbytes,
            temporary_bytes=temporaries,
        )


def _throughput(engine: Engine, rounds: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Return seconds of a chunk of one stream, and of all together, and both steps' temporaries."""
    program, bound, lanes = engine.program, engine.stepper.bound, engine.lanes
    chunk = noise_chunk(engine.model)
    carry, carries = start(program, bound), start_lanes(program, bound, lanes=lanes)
    one, all_of, which = stacked([chunk], 1), stacked([chunk], lanes), np.arange(lanes)
    more = {"program": program}
    compiled = (
        advance.lower(bound, carry, one, **more).compile(),
        advance_lanes.lower(bound, carries, which, all_of, **more).compile(),
    )
    times = []
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        for _ in range(lanes):
            carry = jax.block_until_ready(advance(bound, carry, one, **more))
        between = time.perf_counter()
        carries = jax.block_until_ready(advance_lanes(bound, carries, which, all_of, **more))
        times.append(((between - begin) / lanes, time.perf_counter() - between))
    alone, together = np.array(times[2:]).T  # the first compile
    one_step, all_step = (int(x.memory_analysis().temp_size_in_bytes) for x in compiled)
    return alone, together, (one_step, all_step)


class _Watch:
    """Notes on a thread of its own when the chunks of streams are written."""

    def __init__(self, engine: Engine, lives: list[Live]):
        self.late: list[float] = []
        self.fed: list[list[float]] = [[] for _ in lives]
        self._engine, self._lives, self._over = engine, lives, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        seen = [0] * len(self._lives)
        with self._engine.changed:
            while not self._over or any(x.made > n for x, n in zip(self._lives, seen, strict=True)):
                self._engine.changed.wait(0.1)
                now = time.perf_counter()
                for i, live in enumerate(self._lives):
                    self.late += [now - at for at in self.fed[i][seen[i] : live.gone]]
                    seen[i] = live.gone

    def end(self) -> None:
        self._over = True
        self._thread.join()


def _paced(engine: Engine, config: StreamsConfig) -> tuple[list[float], list[float], int]:
    """Feed every stream a piece a second and ask; return lateness, first tokens, and drops."""
    model = engine.model
    lives = [engine.open() for _ in range(config.streams)]
    pieces = [noise(model, seed) for seed in range(8)]
    watch, answers, questions = _Watch(engine, lives), [], 0.0
    begin = time.perf_counter() + 0.1
    for tick in range(int(config.seconds * config.streams)):
        at = tick / config.streams
        time.sleep(max(begin + at - time.perf_counter(), 0))
        lane = tick % config.streams
        watch.fed[lane].append(max(begin + at, time.perf_counter()))
        lives[lane].feed(pieces[tick % len(pieces)])
        while questions < at * config.questions:
            asked = int(questions)
            text = model.probes[asked % len(model.probes)]
            answers.append(lives[asked % config.streams].ask(text))
            questions += 1
    first = [answer.reply(60).first_seconds for answer in answers]
    watch.end()
    return watch.late, first, sum(live.stats.dropped for live in lives)


def streams_table(result: Streams) -> Table:
    """Return a line for every figure."""
    n = result.streams
    table = Table(title=f"{n} streams side by side, {result.memory}")
    table.add_column("what")
    table.add_column("figure", justify="right")
    (one, all_of), (late, latest) = result.temporary_bytes, result.late_ms
    rows = {
        "a chunk of one stream alone, ms": f"{result.alone_ms:.2f}",
        f"a chunk of {n} together, ms": f"{result.together_ms:.2f}",
        "chunks a second, together / alone": f"{result.throughput:.2f}",
        f"chunks written in {result.seconds:g} s, dropped": f"{result.chunks}, {result.dropped}",
        "lateness of a chunk, ms: median, latest": f"{late:.1f}, {latest:.1f}",
        "answers": f"{result.answers}",
        "first token, ms: median, 99 %": "{:.1f}, {:.1f}".format(*result.first_token_ms),
        "bytes of a stream": f"{result.state_bytes:,}",
        f"bytes of {n} lanes": f"{result.lanes_bytes:,}",
        f"temporaries of the step, bytes: one, {n}": f"{one:,}, {all_of:,}",
    }
    for what, figure in rows.items():
        table.add_row(what, figure)
    return table
