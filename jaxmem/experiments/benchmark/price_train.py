"""`benchmark price --train`: what a training step of a long stream needs, from shapes alone."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Group
from rich.table import Table

from jaxmem.bound import Bound
from jaxmem.compiled import NARROW
from jaxmem.decoder.program import Carry
from jaxmem.experiments.benchmark import flops as _flops
from jaxmem.experiments.benchmark.price import PriceConfig, Stream, open_stream
from jaxmem.experiments.benchmark.price_run import device_peak, drawn
from jaxmem.experiments.benchmark.price_table import GPUS, Gpu
from jaxmem.report.numbers import size
from jaxmem.training import lora
from jaxmem.training.answers import Example, stream_loss
from jaxmem.training.differentiable import Mode
from jaxmem.training.language import as_type, empty_state, language_loss, layer_cost
from jaxmem.training.plan import nbytes, plan, temporary
from jaxmem.training.remat import Scheme, near_root
from jaxmem.typing import Params, PyTree

PAPER = {2**14: 4.2e9, 2**16: 10.5e9, 2**17: 17.2e9, 2**19: 42.2e9}
"""Bytes that Video-Ma2mba reports for its 2.7B model by tokens, without weights and gradients."""
ROWS = 512
"""Tokens of a chunk at which a layer of a decoder with states is measured."""
TOKENS, RANK = 65_536, 16
SHARE = 0.4
"""Of the data sheet's peak that a step is assumed to reach; no GPU has run one."""
OPTIONS = {**NARROW, "xla_backend_optimization_level": 0}
"""Temporaries do not depend on how well the machine code is made, and it is not run."""


@dataclass(frozen=True)
class Trained:
    """One scheme."""

    scheme: str
    chunk: int  # tokens
    segments: int | None
    flops: int  # of the matrix products of value and gradient, counted from shapes
    temporary_bytes: int  # of the compiled value and gradient
    stream_bytes: int  # of them, those that grow with the stream: states before chunks
    peak_bytes: int  # with weights, moments, gradient and inputs
    seconds: float | None = None  # of value and gradient as run here, with --run
    # In use at once on the device since the process began; no moments. None: not run, or unknown.
    ran_peak_bytes: int | None = None


@dataclass(frozen=True)
class TrainPrice:
    """What a step needs."""

    model: str
    memory: str | None  # None: no layer attends
    mode: Mode  # where gradients go
    tokens: int
    rank: int  # of the adapters of queries, keys and values; 0: all weights of the decoder train
    frozen_bytes: int  # weights that do not train
    trained_bytes: int  # weights that do, in float32
    moments_bytes: int  # Adam's two
    gradient_bytes: int
    input_bytes: int  # of the stream: token ids, or the frozen encoder's rows
    steps: tuple[Trained, ...]


def price_train(config: PriceConfig) -> TrainPrice:
    """Return the price of a training step over a stream, by scheme.

    Raises:
      ValueError: if tokens or rank make no sense, or the model or the memory is refused.
    """
    tokens = TOKENS if config.tokens is None else config.tokens
    if tokens < 1 or (config.rank is not None and config.rank < 0):
        raise ValueError(
            f"--tokens must be positive and --rank not negative, got {tokens}, {config.rank}."
        )
    found = open_stream(config)
    if found.program.config.attends:
        return _through_memory(config, found, tokens)
    return _states_alone(config, found, tokens)


def _states_alone(config: PriceConfig, found: Stream, tokens: int) -> TrainPrice:
    """Return the price of next tokens through a decoder of states: all weights train."""
    if config.rank:
        raise ValueError(f"no layer of {config.model} attends: --rank has no queries to adapt.")
    if config.mode != "through":
        raise ValueError(f"no layer of {config.model} attends: leave --mode {config.mode} out.")
    decoder, dtype = found.program.config, jnp.dtype(config.dtype)
    params = _typed(found.model.params["decoder"], jnp.float32)
    states = jax.eval_shape(partial(empty_state, decoder))
    cost = layer_cost(decoder, ROWS, dtype)
    ids = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    steps = []
    for scheme in _schemes(config):
        best = plan(
            cost,
            layers=decoder.layers,
            tokens=tokens,
            multiple=ROWS,
            scheme=scheme,
            inside=True,
        )
        more = {"nested": scheme == "E", "segments": best.segments}
        loss = language_loss(decoder, dtype=dtype, chunk=best.chunk, **more)
        count = -(-tokens // best.chunk)
        kept = _kept(count, best.segments, nbytes(states), nbytes(states))
        flops, temp = _measured(loss, params, ids, states)
        ran = _run(loss, params, ids, states) if config.run else {}
        steps.append(Trained(scheme, best.chunk, best.segments, flops, temp, kept, temp, **ran))
    return _price(tokens, found, None, "through", 0, params, None, nbytes(ids), steps)


def _through_memory(config: PriceConfig, found: Stream, tokens: int) -> TrainPrice:
    """Return the price of an answer after a stream through a memory; its encoders are frozen.

    The stream's rows are inputs. There is one question, about the whole stream.
    """
    program, held = found.program, found.bound.params["decoder"]
    rank = RANK if config.rank is None else config.rank
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found.inputs)
    row = jax.eval_shape(program.encode, found.bound.params, one)
    count = -(-tokens // program.spec.chunk)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, count, *x.shape), x.dtype), row)
    ids = jax.ShapeDtypeStruct((1, 1, config.question), jnp.int32)
    example = Example(rows, ids, ids)
    if rank:
        adapters = partial(lora.init, rank=rank, at=lora.QUERIES)
        train = jax.eval_shape(adapters, held, jax.random.key(0))
    else:
        train = _typed(held, jnp.float32)
    given, around = held if rank else None, found.bound._replace(params={})
    steps = []
    for scheme in _schemes(config):
        segments = near_root(count) if scheme == "E" else None
        loss = partial(_answer_loss, found=found, mode=config.mode, segments=segments)
        arguments = (train, given, around, found.carry, example)
        flops, temp = _measured(loss, *arguments)
        ran = _run(loss, *arguments) if config.run else {}
        kept = _kept(count, segments, nbytes(found.carry), nbytes(_needed(found.carry)))
        kept = 0 if config.mode == "read" else kept  # no gradient comes back to the stream
        rows_of = program.spec.chunk
        steps.append(Trained(scheme, rows_of, segments, flops, temp, kept, temp, **ran))
    inputs, memory = nbytes((example, found.carry, around)), config.memory
    return _price(tokens, found, memory, config.mode, rank, train, given, inputs, steps)


def _answer_loss(
    train: Params, held: Params | None, around: Bound, carry: Any, example: Example, *,
    found: Stream, mode: Mode, segments: int | None,
) -> jax.Array:  # fmt: skip
    """Return -log p of the token after a question, asked after the stream.

    Prompt and probes (`around`) are inputs: what made them has no gradient.
    """

    def weights(train: Params) -> Params:
        if held is None:
            return as_type(train, found.program.spec.dtype)
        return lora.attach(held, train, alpha=1)

    more = {"program": found.program, "mode": mode, "segments": segments, "weights": weights}
    return stream_loss(train, around._replace(params=weights(train)), carry, example, **more)[0]


def _needed(carry: Carry) -> PyTree:
    """Return what the backward pass needs of a carry: no scores, since what was chosen is kept."""
    slots = carry.state.slots
    return getattr(slots, "kv", slots), carry.states, carry.bank


def _kept(count: int, segments: int | None, whole: int, needed: int) -> int:
    """Return the bytes of states that are kept of a stream of `count` chunks.

    A segment, which chooses anew, begins with the whole state, a chunk with what it needs.
    """
    if segments is None:
        return count * needed
    return segments * whole + -(-count // segments) * needed


def _typed(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def _measured(loss: Any, *given: Any) -> tuple[int, int]:
    """Return operations and temporary bytes of value and gradient by the first argument."""
    slope = jax.value_and_grad(loss)
    compiled = jax.jit(slope, compiler_options=OPTIONS).lower(*given).compile()
    return _flops.count(slope, *given), temporary(compiled)


def _schemes(config: PriceConfig) -> tuple[Scheme, ...]:
    return ("E", "D") if config.scheme is None else (config.scheme,)


def _run(loss: Any, *shapes: Any) -> dict[str, Any]:
    """Return the seconds of value and gradient with drawn inputs, and the peak of the device."""
    slope, given = jax.jit(jax.value_and_grad(loss)), drawn(shapes)
    seconds = 0.0
    for _ in range(2):  # the first compiles
        begin = time.perf_counter()
        jax.block_until_ready(slope(*given))
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "ran_peak_bytes": device_peak()}


def _price(
    tokens: int, found: Stream, memory: str | None, mode: Mode, rank: int, train: Params,
    held: Params | None, inputs: int, steps: list[Trained],
) -> TrainPrice:  # fmt: skip
    """Return the price with the peak of every scheme."""
    weights = nbytes(train)
    frozen = 0 if held is None else nbytes(held)
    rest = frozen + 4 * weights + inputs  # the weights, two moments and the gradient
    done = tuple(
        replace(step, peak_bytes=rest + step.temporary_bytes)
        for step in sorted(steps, key=lambda step: step.scheme)
    )
    return TrainPrice(
        found.model.name, memory, mode, tokens, rank, frozen, weights, 2 * weights, weights,
        inputs, done,
    )  # fmt: skip


def train_tables(result: TrainPrice) -> Group:
    """Return the price as tables: what any scheme needs, and the schemes."""
    how = f"adapters of rank {result.rank}" if result.rank else "all weights of the decoder"
    table = Table("figure", title=f"{result.model}: a step of {result.tokens:,} tokens, {how}")
    table.add_column("value", justify="right")
    for name, value in asdict(result).items():
        if name.endswith("_bytes"):
            table.add_row(name.removesuffix("_bytes").replace("_", " "), size(value))
    if "ma2mba" in result.model and result.tokens in PAPER:
        table.add_row("the paper: activations and backward pass", size(int(PAPER[result.tokens])))
    gpus = [gpu.name.replace(" SXM", "") for gpu in GPUS.values()]
    title = f"by scheme of checkpointing; time at {SHARE:.0%} of a data sheet's peak, an assumption"
    second = Table("scheme", title=title)
    ran = any(step.seconds is not None for step in result.steps)
    here = ("run here", "its peak, no moments") if ran else ()
    sizes = ("a chunk", "segments", "temporary", "of it states", "peak", "PFLOP")
    for column in (*sizes, *gpus, *here):
        second.add_column(column, justify="right")
    for step in result.steps:
        second.add_row(
            step.scheme,
            f"{step.chunk:,}",
            str(step.segments or "-"),
            size(step.temporary_bytes),
            size(step.stream_bytes),
            size(step.peak_bytes),
            f"{step.flops / 1e15:,.2f}",
            *(_time(step, gpu) for gpu in GPUS.values()),
            *(_ran(step) if ran else ()),
        )
    return Group(table, second)


def _ran(step: Trained) -> tuple[str, str]:
    """Return the time and the peak of a step that was run here."""
    peak = step.ran_peak_bytes
    took = "" if step.seconds is None else f"{step.seconds:,.1f} s"
    return took, "" if peak is None else size(peak)


def _time(step: Trained, gpu: Gpu) -> str:
    """Return how long a step is estimated to take on a GPU, or that it does not fit."""
    if step.peak_bytes > gpu.gib * 2**30:
        return "no room"
    return f"{step.flops / (SHARE * gpu.tflops * 1e12):,.1f} s"
