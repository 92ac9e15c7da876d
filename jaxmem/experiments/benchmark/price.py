"""What a stream costs on a GPU, from the shapes of the model: nothing is loaded or allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmem.decoder.answer import prefill
from jaxmem.decoder.decoder import logits
from jaxmem.experiments.benchmark import flops as _flops
from jaxmem.experiments.benchmark.price_table import GPUS, Price, Step, bound
from jaxmem.experiments.benchmark.shapes import Chunk, Shapes, chunk_of, open_shapes
from jaxmem.experiments.memories import Budget, contestants
from jaxmem.loop import (
    Bound,
    Program,
    advance,
    ask,
    init_carry,
    make_program,
    question_rows,
    spec_of,
)
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Embeds, FeatureMemory
from jaxmem.typing import Params, PyTree

NOT_IN_A_CHUNK = ("embedding", "norm", "head")
"""Parts of the decoder that a chunk does not read whole: rows of the embedding are looked up."""


@dataclass(frozen=True)
class PriceConfig:
    """Bytes, operations and the least times of a chunk and of a first token, from shapes only."""

    model: str = "qwen2.5-vl:7b"
    """A checkpoint directory (its config.json is read, no weights), or family:size."""
    memory: str = "omnimem"
    """What is kept; set it with --NAME.OPTION."""
    budget: int = 4096
    """Slots per layer; for `full` its capacity."""
    fps: float = 1.0
    """Pictures per second."""
    chunk_seconds: float = 2.0
    """Seconds written at once."""
    height: int = 448
    """Pixels of a picture, rounded to what the family takes (LLaVA has one size)."""
    width: int = 448
    """Likewise."""
    question: int = 32
    """Tokens of a question."""
    answer: int = 32
    """Tokens of an answer that room is kept for."""
    hours: float = 1.0
    """Length of the stream, which sizes the bank of memories that have one."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of weights, activations, keys and values."""
    gpu: Literal["rtx3090", "a100", "h100", "h200"] | None = None
    """One GPU; None: all of them."""
    json: bool = False
    """Print JSON instead of tables."""
    memories: Annotated[Mapping[str, Mapping[str, Any]], tyro.conf.Suppress] = field(
        default_factory=dict
    )
    """Options of memories by name, as --NAME.OPTION sets them."""


def nbytes(tree: PyTree) -> int:
    """Return the bytes of a tree of arrays or shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def price(config: PriceConfig) -> Price:
    """Return the price of a stream.

    Raises:
      ValueError: if the model or the memory does not take what is asked.
    """
    pictures = _pictures(config)
    dtype = jnp.dtype(config.dtype)
    shapes = open_shapes(config.model, dtype)
    chunk = chunk_of(
        shapes,
        pictures=pictures,
        seconds=Fraction(config.chunk_seconds).limit_denominator(1000),
        size=(config.height, config.width),
        dtype=dtype,
    )
    program = _program(config, shapes, chunk, dtype)
    carry = jax.eval_shape(lambda: init_carry(program))
    chunk_step = _chunk_step(config, shapes.params, program, carry, chunk, dtype)
    question = _question_step(config, shapes.params, program, carry)
    # Entries of a bank in host memory are no part of what the device holds.
    host = footprint(program.memory, program.spec).host
    chunk_step, question = (_on_device(step, host) for step in (chunk_step, question))
    peak = max(chunk_step.peak_bytes, question.peak_bytes)
    chosen = GPUS.values() if config.gpu is None else (GPUS[config.gpu],)
    return Price(
        model=shapes.name,
        memory=config.memory,
        budget=config.budget,
        size=chunk.size,
        pictures=pictures,
        chunk_seconds=config.chunk_seconds,
        rows=chunk.rows,
        parameters={part: _numbers(tree) for part, tree in shapes.params.items()},
        weight_bytes=nbytes(shapes.params),
        state_bytes=nbytes(carry),
        bank_bytes=footprint(program.memory, program.spec).host,
        chunk=chunk_step,
        question=question,
        flops_per_frame=chunk_step.flops / pictures,
        compiled_for=jax.default_backend(),
        bounds=tuple(bound(gpu, chunk_step, question, peak) for gpu in chosen),
    )


def _on_device(step: Step, host: int) -> Step:
    """Return a step without the bytes that lie in host memory."""
    held, peak = step.held_bytes - host, step.peak_bytes - host
    return replace(step, held_bytes=held, peak_bytes=peak)


def _numbers(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _pictures(config: PriceConfig) -> int:
    """Return the pictures of a chunk, and refuse numbers that make no sense."""
    for name in ("budget", "fps", "chunk_seconds", "height", "width", "question", "answer"):
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


def _program(config: PriceConfig, shapes: Shapes, chunk: Chunk, dtype: Any) -> Program:
    spec = spec_of(
        shapes.config.decoder,
        chunk=chunk.rows,
        dtype=dtype,
        frame=chunk.frame,
        audio_tokens=shapes.audio_tokens,
        timestamps=shapes.timestamps,
    )
    options = dict(config.memories)
    if config.memory == "full":
        options["full"] = {"capacity": config.budget, **options.get("full", {})}
    tokens = math.ceil(config.hours * 3600 / config.chunk_seconds) * chunk.rows
    budget = Budget(config.budget, None)
    (chosen,) = contestants((config.memory,), options, budget, spec, tokens)
    return make_program(shapes.config.decoder, chosen.memory, spec, encode=chunk.encode)


def _chunk_step(
    config: PriceConfig, params: Params, program: Program, carry: PyTree, chunk: Chunk, dtype: Any
) -> Step:
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), chunk.inputs)
    probes = _probes(program, dtype)
    flops = _flops.count(
        lambda p, c, x, n: advance(Bound(p, probes=n), c, x, program=program),
        params,
        carry,
        inputs,
        probes,
    )
    spec = program.spec
    fresh = 2 * spec.layers * chunk.rows * spec.kv_heads * spec.head_dim * dtype.itemsize
    decoder = {k: v for k, v in params["decoder"].items() if k not in NOT_IN_A_CHUNK}
    if isinstance(program.memory, FeatureMemory):  # no decoder runs while the stream is watched
        decoder, fresh = {}, 0
    read = {**params, "decoder": decoder, "newline": None}
    lowered = advance.lower(Bound(params, probes=probes), carry, inputs, program=program)
    return _step(
        lowered,
        flops,
        held=nbytes((params, carry, inputs, probes)),
        read=nbytes(read) + nbytes(carry.state) + fresh,
    )


def _probes(program: Program, dtype: Any) -> Embeds | None:
    """Return the shapes of the probes that a memory reads, 16 tokens each."""
    if program.requires.probes is None:
        return None
    n, q, spec = program.requires.probes.count, 16, program.spec
    empty = lambda: Embeds(
        jnp.zeros((n, q, spec.width), dtype),
        jnp.zeros((n, q, spec.axes), spec.pos_dtype),
        jnp.zeros((n, q), jnp.int8),
        jnp.zeros((n, spec.axes), spec.pos_dtype),
    )
    return jax.eval_shape(empty)


def _question_step(config: PriceConfig, params: Params, program: Program, carry: PyTree) -> Step:
    ids = np.zeros(config.question, np.int32)
    rows = jax.eval_shape(lambda p: question_rows(p, ids, program=program), params)

    def first_token(params: Params, carry: PyTree, rows: Embeds) -> jax.Array:
        decoder = params["decoder"]
        _, h = prefill(decoder, program, carry, rows, room=1)
        return logits(decoder, program.config, h[-1])

    decoder = params["decoder"]
    if not program.config.tied:  # a tied embedding is the output matrix
        decoder = {k: v for k, v in decoder.items() if k != "embedding"}
    lowered = ask.lower(params, carry, rows, program=program, max_new=config.answer)
    flops = _flops.count(first_token, params, carry, rows)
    return _step(
        lowered,
        flops,
        held=nbytes((params, carry, rows)),
        read=nbytes(decoder) + nbytes(carry.state),
    )


def _step(lowered: Any, flops: int, *, held: int, read: int) -> Step:
    """Return a step from its program; `held` counts all weights, also those it does not read."""
    options = None
    if jax.default_backend() == "cpu":
        # The CPU multiplies bfloat16 as float32 and would convert the weights of all layers ahead
        # of the loop. Without this pass it converts one layer at a time.
        options = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
    compiled = lowered.compile(compiler_options=options)
    found, cost = compiled.memory_analysis(), compiled.cost_analysis()
    temporary = found.temp_size_in_bytes
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    flops_of_xla = float((cost or {}).get("flops", 0.0))
    return Step(flops, flops_of_xla, held, temporary, held + temporary + made, read)
