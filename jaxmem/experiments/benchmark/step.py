"""The chunk step: its time, what of it the machine could not save, and what was compiled.

`share` is the least the machine can do (dense products and attention at the rate of large matrix
products measured in the same run) over the time of the step. `against` divides by the step with
`recent`, which scores nothing. Copies and temporaries are read off the compiled program.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxmem.bound import Bound, bind
from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.decoder.program import Program, Text, init_carry, make_program, spec_of
from jaxmem.kv import VISION
from jaxmem.loop import advance
from jaxmem.memory.base import AnyMemory, Embeds, Memory
from jaxmem.memory.by_name import build, parse_names
from jaxmem.models.load import load
from jaxmem.models.tiny.embedded import embedded
from jaxmem.report.compiled import Compiled, inspect, pool_size
from jaxmem.rope import rope_1d

SMOLLM2 = {
    "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "mlp_width": 1536,
    "vocab": 49_152, "tied": True,
}  # fmt: skip
"""SmolLM2 135M; speed does not depend on its weights, which are drawn."""
MATRIX = 1536  # side of the products that the machine's rate is measured with
PER_CALL = 2  # chunks


@dataclass(frozen=True)
class StepConfig:
    """Time the chunk step of a decoder under several memories, and count what was compiled."""

    model: str = "smollm2"  # or tiny, or a published family:size (weights are drawn)
    memories: str = "recent,keydiff,snapkv,omnimem,hermes"  # names
    slots: str = "256,1024"  # per layer
    chunk: int = 128  # tokens
    rounds: int = 10  # how often all are timed, in turn
    json: bool = False  # print JSON instead of a table


class Step(NamedTuple):
    """What one memory's step costs."""

    memory: str
    slots: int
    milliseconds: float
    against: float  # divided by the step of `recent` with as many slots, median of paired ratios
    share: float  # of the machine's rate of products
    copies: int
    temporaries: int  # bytes


def decoder_of(name: str) -> DecoderConfig:
    """Return the decoder of a model's name; weights are drawn, so only its sizes matter."""
    if name == "smollm2":
        return DecoderConfig(**SMOLLM2, rope=rope_1d(SMOLLM2["head_dim"], 100_000.0))
    return embedded().decoder if name == "tiny" else load(name, abstract=True).decoder


def program_of(config: DecoderConfig, name: str, slots: int, chunk: int) -> Program:
    """Return the program of a memory over a stream of pictures, as many tokens in each as fit."""
    side = next(n for n in range(int(chunk**0.5), 0, -1) if chunk % n == 0)
    spec = spec_of(config, chunk=chunk, frame=(side, chunk // side), audio_tokens=0)
    memory: AnyMemory = build(name, slots, spec, {})
    asked = isinstance(memory, Memory) and memory.requires.probes is not None
    texts = memory.prompts(None) if isinstance(memory, Memory) and asked else ()
    return make_program(config, memory, spec, probes=tuple(Text((1, 2, 3, 4)) for _ in texts))


def chunks_of(program: Program, count: int = PER_CALL, seed: int = 0) -> Embeds:
    """Return drawn chunks [count, T]."""
    spec, rng = program.spec, np.random.default_rng(seed)
    shape = (count, spec.chunk)
    pos = np.broadcast_to(np.arange(spec.chunk, dtype=np.int32)[None, :, None], (*shape, spec.axes))
    return Embeds(
        x=jnp.asarray(rng.normal(size=(*shape, spec.width)), jnp.float32),
        pos=jnp.asarray(pos, spec.pos_dtype),
        modality=jnp.full(shape, VISION, jnp.int8),
        advance=jnp.full((count, spec.axes), spec.chunk, spec.pos_dtype),
    )


def compiled_step(program: Program, bound: Bound) -> tuple[Any, Compiled]:
    """Return the compiled step of a program, and its exact figures."""
    chunks = chunks_of(program)
    step = advance.lower(bound, init_carry(program), chunks, program=program).compile()
    return step, inspect(step, pool_size(program))


def least_flops(config: DecoderConfig, chunk: int, slots: int) -> int:
    """Return the operations of a chunk's dense products and attention, whatever the memory is."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = 3 if config.activation == "swiglu" else 2
    dense = config.width * (2 * q + 2 * kv + matrices * config.mlp_width)
    attention = 2 * q * (slots + (chunk + 1) // 2)
    return 2 * chunk * config.layers * (dense + attention)


def products() -> Any:
    """Return a function that gives the operations per second of products of large matrices."""
    a = jnp.ones((MATRIX, MATRIX), jnp.float32) / MATRIX
    run = jax.jit(lambda a: a @ a @ a)
    run(a).block_until_ready()

    def rate() -> float:
        begin = time.perf_counter()
        run(a).block_until_ready()
        return 2 * 2 * MATRIX**3 / (time.perf_counter() - begin)

    return rate


def measure_steps(config: StepConfig) -> list[Step]:
    """Return what the step of every memory costs, all timed in turn in this process.

    Raises:
      ValueError: if a name is unknown or a memory does not fit its slots.
    """
    decoder, names = decoder_of(config.model), parse_names(config.memories)
    params, rate = init_decoder(decoder, jax.random.key(0)), products()
    out: list[Step] = []
    for slots in (int(n) for n in config.slots.split(",")):
        runs = {n: _runner(decoder, params, n, slots, config.chunk) for n in {"recent", *names}}
        rounds = [
            (rate(), {name: run() for name, (run, _) in runs.items()})
            for _ in range(config.rounds + 2)
        ][2:]
        need = least_flops(decoder, config.chunk, slots)
        for name in names:
            times = [took[name] for _, took in rounds]
            ratios = [took[name] / took["recent"] for _, took in rounds]
            share = [need / took[name] / speed for speed, took in rounds]
            ms, against, part = (float(np.median(x)) for x in (times, ratios, share))
            out.append(Step(name, slots, ms * 1e3, against, part, *runs[name][1]))
    return out


def _runner(
    decoder: DecoderConfig, params: Any, name: str, slots: int, chunk: int
) -> tuple[Any, Compiled]:
    """Return what streams `PER_CALL` chunks into a full memory and gives the seconds of one."""
    program = program_of(decoder, name, slots, chunk)
    bound, inputs, carry = bind(program, params), chunks_of(program), init_carry(program)
    step, figures = compiled_step(program, bound)
    for _ in range(slots // (PER_CALL * chunk) + 1):
        carry = step(bound, carry, inputs)
    jax.block_until_ready(carry)

    def run() -> float:
        nonlocal carry
        begin = time.perf_counter()
        carry = jax.block_until_ready(step(bound, carry, inputs))
        return (time.perf_counter() - begin) / PER_CALL

    return run, figures


def steps_table(config: StepConfig, steps: list[Step]) -> Table:
    """Return a line for every memory and number of slots."""
    table = Table(title=f"The chunk step: {config.model}, {config.chunk} tokens")
    columns = ("memory", "slots", "ms", "/ recent", "of the machine", "copies", "temporaries")
    for column in columns:
        table.add_column(column, justify="left" if column == "memory" else "right")
    for step in steps:
        table.add_row(
            step.memory,
            f"{step.slots:,}",
            f"{step.milliseconds:.1f}",
            f"{step.against:.2f}",
            f"{step.share:.0%}",
            str(step.copies),
            f"{step.temporaries / 1e6:.1f} MB",
        )
    return table
