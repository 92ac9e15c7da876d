"""What a stream costs on a GPU, from the shapes of the model: nothing is loaded or allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxmem.asking import ask
from jaxmem.bound import Bound, bind, question_rows
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.decoder import logits
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.scorer import init_scorer
from jaxmem.experiments.benchmark import flops as _flops
from jaxmem.experiments.benchmark.price_run import Ran, measured
from jaxmem.experiments.benchmark.price_table import GPUS, PROCESS, Price, Step, bound
from jaxmem.experiments.benchmark.second_session import noise_chunk
from jaxmem.experiments.memories import MemoryOptions
from jaxmem.experiments.parsing import whole_pieces
from jaxmem.kernels.dispatch import preferring
from jaxmem.loop import advance, start
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import FeatureMemory, Memory, Spec
from jaxmem.memory.by_name import Contestant, contestants, parse_budget
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import Model, for_frames
from jaxmem.models.hf.published import FAMILIES, names
from jaxmem.models.load import load
from jaxmem.models.scorer import with_scorer
from jaxmem.models.tiny.embedded import is_embedded
from jaxmem.pieces import blank
from jaxmem.programs import compile, model_spec, stream_tokens
from jaxmem.training.differentiable import Mode
from jaxmem.training.plan import nbytes
from jaxmem.typing import PyTree

MOST_FILLED = 64
"""Chunks that are written before a run is timed, at most."""
NOT_IN_A_CHUNK = ("embedding", "norm", "head")
"""Parts of the decoder that a chunk does not read whole: rows of the embedding are looked up."""


@dataclass(frozen=True)
class PriceConfig:
    """Bytes, operations and the least times of a chunk and of a first token, from shapes only."""

    # A checkpoint directory (its config.json is read, no weights), or family:size.
    model: str = "qwen2.5-vl:7b"
    memory: str = "omnimem"  # what is kept; set it with --NAME.OPTION
    # Slots per layer (for `full` its capacity), or bytes over all layers (64MiB).
    budget: int | str = 4096
    fps: float = 1.0  # pictures per second
    chunk_seconds: float = 2.0  # written at once
    height: int = 448  # pixels of a picture, rounded to what the family takes (LLaVA has one size)
    width: int = 448  # likewise
    question: int = 32  # tokens of a question
    answer: int = 32  # tokens of an answer that room is kept for
    hours: float = 1.0  # length of the stream, which sizes the bank of memories that have one
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of weights, activations, keys and values
    gpu: Literal["rtx3090", "a100", "h100", "h200"] | None = None  # None: all of them
    # Also run both programs on this machine, with random weights: times, and the peak of a GPU.
    run: bool = False
    implementation: str | None = None  # of the kernels, with --run (docs/kernels.md)
    train: bool = False  # price a training step instead, see docs/training.md
    tokens: int | None = None  # of the stream that is trained on, with --train; None: 65,536
    # Of adapters of queries, keys and values that train; 0: all weights do. None: 16 where layers
    # attend, else all weights.
    rank: int | None = None
    mode: Mode = "through"  # where gradients go, with --train and a memory
    # Of checkpointing, with --train (docs/training.md). None: both.
    scheme: Literal["D", "E"] | None = None
    json: bool = False  # print JSON instead of tables
    memories: MemoryOptions = field(default_factory=dict, hash=False)


class Stream(NamedTuple):
    """A stream as shapes."""

    model: Model
    program: Program
    bound: Bound
    carry: Carry
    inputs: PyTree  # of a segment of one chunk
    size: tuple[int, int]  # of a picture in pixels, after the family's rounding
    pieces: int  # of a chunk
    slots: int  # of the memory, per layer


def price(config: PriceConfig) -> Price:
    """Return the price of a stream, with `run` as measured here.

    Raises:
      ValueError: if the model or the memory does not take what is asked.
    """
    if (config.tokens, config.rank, config.mode, config.scheme) != (None, None, "through", None):
        options = "--tokens, --rank, --mode and --scheme"
        raise ValueError(f"{options} are of a training step: give --train, too.")
    if config.implementation is not None and not config.run:
        raise ValueError("--implementation is of the programs that are run: give --run, too.")
    with preferring(config.implementation):
        return _price(config)


def _price(config: PriceConfig) -> Price:
    pictures = _pictures(config)
    found = open_stream(config)
    params, memory, spec = found.bound.params, found.program.memory, found.program.spec
    # Entries of a bank in host memory are no part of what the device holds.
    host = footprint(memory, spec).host
    if host and jax.default_backend() == "gpu":  # JAX does not let shapes say where they lie
        raise ValueError(
            f"the bank of {config.memory} lies in host memory, which cannot be priced on a GPU: "
            "set JAX_PLATFORMS=cpu; the figures for GPUs come all the same."
        )
    chunk, question = (
        replace(step, held_bytes=step.held_bytes - host, peak_bytes=step.peak_bytes - host)
        for step in (_chunk_step(found), _question_step(config, found))
    )
    peak = max(chunk.peak_bytes, question.peak_bytes)
    chosen = GPUS.values() if config.gpu is None else (GPUS[config.gpu],)
    return Price(
        model=found.model.name,
        memory=config.memory,
        budget=found.slots,
        attends=spec.layers,
        hours=config.hours,
        tokens=int(config.hours * 3600 / found.model.media.piece_seconds)
        * found.model.tokens_per_piece,
        size=found.size,
        pictures=pictures,
        chunk_seconds=config.chunk_seconds,
        rows=spec.chunk,
        parameters={
            part: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
            for part, tree in params.items()
        },
        weight_bytes=nbytes(params),
        state_bytes=nbytes(found.carry),
        bank_bytes=host,
        mixer_bytes=spec.state_bytes,
        chunk=chunk,
        question=question,
        flops_per_frame=chunk.flops / pictures,
        resident_bytes=host + peak + PROCESS,
        compiled_for=jax.default_backend(),
        bounds=tuple(bound(gpu, chunk, question, peak) for gpu in chosen),
        ran=_run(config, found) if config.run else None,
    )


def _pictures(config: PriceConfig) -> int:
    """Return the pictures of a chunk, and refuse numbers that make no sense."""
    for name in ("fps", "chunk_seconds", "height", "width", "question", "answer", "hours"):
        if getattr(config, name) <= 0:
            raise ValueError(
                f"--{name.replace('_', '-')} must be positive, got {getattr(config, name)}."
            )
    pictures = round(config.fps * config.chunk_seconds)
    if pictures < 1 or abs(pictures - config.fps * config.chunk_seconds) > 1e-6:
        raise ValueError(
            f"--fps {config.fps:g} times --chunk-seconds {config.chunk_seconds:g} must be a whole "
            "number of pictures."
        )
    return pictures


def open_stream(config: PriceConfig) -> Stream:
    """Return the stream that is to be priced.

    Raises:
      ValueError: if the model or the memory does not take what is asked.
    """
    model = load(known(config.model), abstract=True, dtype=config.dtype, fps=config.fps)
    if is_embedded(config.model) and config.fps != model.media.fps:
        raise ValueError(
            f"{model.name} sees {model.media.fps:g} picture a second, got --fps {config.fps:g}; "
            "leave it out."
        )
    pieces = whole_pieces("chunk-seconds", config.chunk_seconds, model.media.piece_seconds)
    size = model.media.size
    size = size if isinstance(size, tuple) else size(config.height, config.width)
    model = for_frames(model, size)
    spec = model_spec(model, pieces)
    chosen = _chosen(config, model, spec)
    memory = chosen.memory
    if isinstance(memory, Memory) and memory.requires.retention:  # it may be learned later
        model = with_scorer(model, _scorer_of(model))
    program = compile(model, memory, chunk_pieces=pieces, spec=spec)
    chunk = blank(model, size, pieces)
    return Stream(
        model,
        program,
        jax.eval_shape(partial(bind, program), model.params),
        jax.eval_shape(partial(start, program)),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), chunk),
        size,
        pieces,
        chosen.slots,
    )


def known(model: str) -> str:
    """Return the model, unless it is of a published family in a size that is not known.

    Raises:
      ValueError: naming the sizes.
    """
    family, colon, _ = model.lower().partition(":")
    if colon and family in FAMILIES and model.lower() not in names() and not Path(model).exists():
        sizes = ", ".join(name for name in names() if name.startswith(f"{family}:"))
        raise ValueError(f"--model {model}: of this family there are {sizes}, or give a directory.")
    return model


def _scorer_of(model: Model) -> PyTree:
    """Return the shapes of a scorer's weights."""
    return jax.eval_shape(lambda: init_scorer(model.decoder, jax.random.key(0)))


def _chosen(config: PriceConfig, model: Model, spec: Spec) -> Contestant:
    options, budget = dict(config.memories), parse_budget(str(config.budget))
    if config.memory == "full":
        if budget.slots is None:
            raise ValueError(
                f"--budget {config.budget}: of full it is the capacity in tokens; give a number."
            )
        options["full"] = {"capacity": budget.slots, **options.get("full", {})}
    tokens = stream_tokens(model, config.hours * 3600)
    name, presets = (config.memory,), model.presets
    return contestants(name, options, budget, spec, tokens, presets=presets)[0]


def _run(config: PriceConfig, found: Stream) -> Ran:
    """Return the times of both programs here, once as many tokens came as there are slots."""
    fill = min(MOST_FILLED, -(-found.slots // found.program.spec.chunk))
    asked = {"question": config.question, "answer": max(2, config.answer)}
    chunk = noise_chunk(found.model, found.pieces)
    return measured(found.model.params, chunk, found.program, fill=fill, **asked)


def _chunk_step(found: Stream) -> Step:
    program, spec, params = found.program, found.program.spec, found.bound.params
    arguments = (found.bound, found.carry, found.inputs)
    fresh = 2 * spec.layers * spec.chunk * spec.kv_heads * spec.head_dim * spec.dtype.itemsize
    decoder = {k: v for k, v in params["decoder"].items() if k not in NOT_IN_A_CHUNK}
    if isinstance(program.memory, FeatureMemory):  # no decoder runs while the stream is watched
        decoder, fresh = {}, 0
    read = {**params, "decoder": decoder, "newline": None}
    return _step(
        advance.lower(*arguments, program=program),
        _flops.count(partial(advance, program=program), *arguments),
        held=nbytes(arguments),
        read=nbytes(read) + nbytes((found.carry.state, found.carry.states)) + fresh,
    )


def _question_step(config: PriceConfig, found: Stream) -> Step:
    program, arrays, carry = found.program, found.bound, found.carry
    ids = np.zeros(config.question, np.int32)
    rows = jax.eval_shape(lambda p: question_rows(p, ids, program=program), arrays.params)

    def first_token(bound: Bound, carry: Carry, rows: Embeds) -> jax.Array:
        decoder = bound.params["decoder"]
        _, h = prefill(decoder, program, carry, rows, room=1, prefix=bound.prefix)
        return logits(decoder, program.config, h[-1])

    decoder = arrays.params["decoder"]
    if not program.config.tied:  # a tied embedding is the output matrix
        decoder = {k: v for k, v in decoder.items() if k != "embedding"}
    return _step(
        ask.lower(arrays, carry, rows, program=program, max_new=config.answer),
        _flops.count(first_token, arrays, carry, rows),
        held=nbytes((arrays, carry, rows)),
        read=nbytes(decoder) + nbytes((carry.state, carry.states)),
    )


def _step(lowered: Any, flops: int, *, held: int, read: int) -> Step:
    """Return a step from its program; `held` counts all weights, also those it does not read."""
    compiled = lowered.compile()
    found, cost = compiled.memory_analysis(), compiled.cost_analysis()
    temporary = found.temp_size_in_bytes
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    flops_of_xla = float((cost or {}).get("flops", 0.0))
    return Step(flops, flops_of_xla, held, temporary, held + temporary + made, read)
