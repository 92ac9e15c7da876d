"""A price as numbers and as tables, and the least times that a GPU's data sheet allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from jaxmem.experiments.benchmark.price_run import Ran
from jaxmem.report.numbers import milliseconds, size


class Gpu(NamedTuple):
    """Data sheet of a GPU: memory, bandwidth, dense bfloat16 products summed in float32."""

    name: str
    gib: int
    gb_per_s: int
    tflops: int


GPUS = {
    "rtx3090": Gpu("RTX 3090", 24, 936, 71),
    "a100": Gpu("A100 SXM 80 GB", 80, 2039, 312),
    "h100": Gpu("H100 SXM 80 GB", 80, 3350, 989),
    "h200": Gpu("H200 SXM 141 GB", 141, 4800, 989),
}


PROCESS = int(0.9 * 2**30)
"""Bytes of a process beside weights, state and temporaries, as measured on a CPU.

Python, JAX, the decoder library, the tokenizer, compiled programs and what compiling left behind.
"""


@dataclass(frozen=True)
class Step:
    """One compiled program."""

    flops: int  # of its matrix products, counted from shapes (`flops.count`)
    xla_flops: float  # the compiler's estimate, which counts the body of every loop once
    held_bytes: int  # weights (all of the model's), state and inputs
    temporary_bytes: int  # what the program needs besides, as compiled here
    peak_bytes: int  # both, and outputs that take no argument's place
    read_bytes: int  # weights and slots that it must read or write at least once


@dataclass(frozen=True)
class Bound:
    """The least times on one GPU, seconds: what its arithmetic and its bandwidth allow."""

    gpu: str
    fits: bool
    chunk_compute: float
    chunk_bandwidth: float
    first_compute: float
    first_bandwidth: float


@dataclass(frozen=True)
class Price:
    """What one stream of a model through a memory costs."""

    model: str
    memory: str
    budget: int  # slots per layer
    attends: int  # layers that attend: those that have slots
    hours: float  # length of the stream
    tokens: int  # written to every layer in that time
    size: tuple[int, int]  # (height, width) of a picture after the family's rounding
    pictures: int  # of a chunk
    chunk_seconds: float
    rows: int  # tokens of a chunk
    parameters: dict[str, int]  # by part of the model
    weight_bytes: int  # of all parts
    state_bytes: int  # of the stream on the device, its bank included
    bank_bytes: int  # of the bank alone
    mixer_bytes: int  # of the layers with a state alone
    chunk: Step  # encoders and decoder over one chunk, and the memory's choice
    question: Step  # over what is recalled; its operations are those up to the first token
    flops_per_frame: float  # of a chunk for each of its pictures
    resident_bytes: int  # of a process on a CPU: the larger peak, and `PROCESS`
    compiled_for: str  # platform of the compiled programs
    bounds: tuple[Bound, ...]  # one for each GPU
    ran: Ran | None = None  # what running them took, with --run


def bound(gpu: Gpu, chunk: Step, question: Step, peak: int) -> Bound:
    """Return the least times of a chunk and of a first token on a GPU (roofline)."""
    rate, speed = gpu.tflops * 1e12, gpu.gb_per_s * 1e9
    return Bound(
        gpu=gpu.name,
        fits=peak <= gpu.gib * 2**30,
        chunk_compute=chunk.flops / rate,
        chunk_bandwidth=chunk.read_bytes / speed,
        first_compute=question.flops / rate,
        first_bandwidth=question.read_bytes / speed,
    )


def price_tables(result: Price) -> Group:
    """Return a price as tables: of the model, and of the GPUs."""
    slots = f"{result.memory} with {result.budget:,} slots per layer"
    title = f"{result.model}, {slots if result.attends else 'states alone: no layer attends'}"
    table = Table("figure", title=title)
    table.add_column("value", justify="right")
    height, width = result.size
    large = {part: n / 1e6 for part, n in result.parameters.items() if n > 1e5}
    chunk = (
        f"{result.chunk_seconds:g} s, {result.pictures} pictures of {height} x {width}, "
        f"{result.rows:,} tokens"
    )
    rows = (
        ("parameters", f"{sum(result.parameters.values()):,}"),
        ("", ", ".join(f"{part} {millions:,.1f} M" for part, millions in large.items())),
        ("weights", size(result.weight_bytes)),
        ("a chunk", chunk),
        (f"a stream of {result.hours:g} h", f"{result.tokens:,} tokens"),
        ("state of the stream", size(result.state_bytes)),
        ("of it bank", size(result.bank_bytes)),
        ("of it layers with a state", size(result.mixer_bytes)),
        ("peak of the chunk step", _peak(result.chunk)),
        ("peak of the question step", _peak(result.question)),
        ("resident memory on a CPU", size(result.resident_bytes)),
        ("operations per frame", f"{result.flops_per_frame / 1e12:.3f} T"),
        ("operations per chunk", f"{result.chunk.flops / 1e12:.3f} T"),
        ("operations up to the first token", f"{result.question.flops / 1e12:.3f} T"),
        ("compiled for", result.compiled_for),
    )
    for row in rows:
        table.add_row(*row)
    more = () if result.ran is None else (_ran_table(result.ran),)
    return Group(table, _gpu_table(result), *more)


def _ran_table(ran: Ran) -> Table:
    table = Table("run here", title=f"{ran.device}, random weights, {ran.written} chunks before")
    table.add_column("value", justify="right")
    spread = lambda pair: " to ".join(milliseconds(1e3 * x) for x in pair)
    for name, value in (
        ("a chunk", f"{milliseconds(1e3 * ran.chunk)} ({spread(ran.chunk_quartiles)})"),
        (
            "first token",
            f"{milliseconds(1e3 * ran.first_token)} ({spread(ran.first_token_quartiles)})",
        ),
        ("each further token", milliseconds(1e3 * ran.token)),
        ("compiling chunk, question", " / ".join(f"{x:.1f} s" for x in ran.compile)),
        ("peak on the device", "unknown" if ran.peak_bytes is None else size(ran.peak_bytes)),
    ):
        table.add_row(name, value)
    return table


def _peak(step: Step) -> str:
    return f"{size(step.peak_bytes)} ({size(step.temporary_bytes)} of it temporary)"


def _gpu_table(result: Price) -> Table:
    table = Table(title="least times: arithmetic / bandwidth")
    columns = ("GPU", "fits", "chunk", "first token", "frames/s at most", "times real time")
    for column in columns:
        table.add_column(column, justify="left" if column == "GPU" else "right")
    for item in result.bounds:
        chunk = max(item.chunk_compute, item.chunk_bandwidth)
        table.add_row(
            item.gpu,
            "yes" if item.fits else "no",
            _pair(item.chunk_compute, item.chunk_bandwidth),
            _pair(item.first_compute, item.first_bandwidth),
            f"{result.pictures / chunk:.3g}",
            f"{result.chunk_seconds / chunk:.3g}",
        )
    return table


def _pair(compute: float, bandwidth: float) -> str:
    return f"{milliseconds(1e3 * compute)} / {milliseconds(1e3 * bandwidth)}"
