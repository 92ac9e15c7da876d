"""What the benchmark of the chunk step runs: a decoder with weights, programs, drawn chunks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.bound import Bound, bind
from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.decoder.program import Program, Text, init_carry, make_program, spec_of
from jaxmem.kv import VISION
from jaxmem.loop import advance
from jaxmem.memory.base import AnyMemory, Memory
from jaxmem.memory.by_name import build
from jaxmem.memory.exchange import Embeds
from jaxmem.models.hf.gguf import gguf_of, read_gguf
from jaxmem.models.load import load
from jaxmem.models.tiny.embedded import embedded
from jaxmem.report.compiled import Compiled, inspect, pool_size
from jaxmem.rope import rope_1d
from jaxmem.typing import Params

SMOLLM2 = {
    "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "mlp_width": 1536,
    "vocab": 49_152, "tied": True, "norm_eps": 1e-5,
}  # fmt: skip
"""Sizes of SmolLM2 135M."""
MATRIX = 1536  # side of the products that the machine's rate is measured with
PER_CALL = 2  # chunks
QUESTION = 16  # tokens
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
DRAWN = "weights are drawn"

Run = Callable[[], float]
"""Runs something once and returns its seconds."""


class StepModel(NamedTuple):
    """A decoder, its weights, and where they are from."""

    config: DecoderConfig
    params: Params
    weights: str


def use_threads(count: int | None) -> None:
    """Let this process run on its first `count` cores; to be called before JAX starts.

    Raises:
      ValueError: if it has not so many, or the system cannot do it.
    """
    if count is None:
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 <= count <= len(cores):
        raise ValueError(f"threads must lie between 1 and {len(cores)}, got {count}.")
    os.sched_setaffinity(0, cores[:count])


def decoder_of(name: str) -> DecoderConfig:
    """Return the decoder of a model's name, of which only the sizes are read.

    Raises:
      ValueError: if there is no such model, or some of its layers have a state.
    """
    if name == "smollm2":
        return DecoderConfig(**SMOLLM2, rope=rope_1d(SMOLLM2["head_dim"], 100_000.0))
    decoder = embedded().decoder if name == "tiny" else load(name, abstract=True).decoder
    if decoder.attends < decoder.layers:
        raise ValueError(
            f"benchmark step knows what layers that attend cost; of {name} "
            f"{decoder.layers - decoder.attends} of {decoder.layers} have a state: benchmark price "
            "counts those."
        )
    return decoder


def model_of(name: str) -> StepModel:
    """Return the decoder of a name, float32: its own weights where they are at hand, else drawn."""
    path = gguf_of(name)
    if path is not None:
        return StepModel(*read_gguf(path), f"weights of {path.name}")
    if name == "tiny":
        model = embedded()
        return StepModel(model.decoder, model.params["decoder"], "its own weights")
    config = decoder_of(name)
    why = f"{DRAWN}; its own come with the extra real" if name == "smollm2" else DRAWN
    return StepModel(config, init_decoder(config, jax.random.key(0)), why)


def program_of(
    config: DecoderConfig, name: str, slots: int, chunk: int, dtype: Any = None
) -> Program:
    """Return the program of a memory over a stream of pictures, as many tokens in each as fit."""
    side = next(n for n in range(int(chunk**0.5), 0, -1) if chunk % n == 0)
    more = {} if dtype is None else {"dtype": jnp.dtype(dtype)}
    spec = spec_of(config, chunk=chunk, frame=(side, chunk // side), audio_tokens=0, **more)
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
        x=jnp.asarray(rng.normal(size=(*shape, spec.width)), spec.dtype),
        pos=jnp.asarray(pos, spec.pos_dtype),
        modality=jnp.full(shape, VISION, jnp.int8),
        advance=jnp.full((count, spec.axes), spec.chunk, spec.pos_dtype),
    )


def compiled_step(program: Program, bound: Bound) -> tuple[Any, Compiled]:
    """Return the compiled step of a program, and its exact figures."""
    chunks = chunks_of(program)
    step = advance.lower(bound, init_carry(program), chunks, program=program).compile()
    return step, inspect(step, pool_size(program))


class Stream:
    """A stream with a memory, whose next chunks are timed."""

    def __init__(self, program: Program, params: Params, clock: str = "wall"):
        self.program, self.bound = program, bind(program, params)
        self.inputs, self.carry = chunks_of(program), init_carry(program)
        self.step, self.compiled = compiled_step(program, self.bound)
        self.clock = CLOCKS[clock]

    def fill(self, slots: int) -> Stream:
        """Stream until that many slots are full; return self."""
        for _ in range(slots // (PER_CALL * self.program.spec.chunk) + 1):
            self.carry = self.step(self.bound, self.carry, self.inputs)
        jax.block_until_ready(self.carry)
        return self

    def __call__(self) -> float:
        """Stream `PER_CALL` chunks; return the seconds of one."""
        begin = self.clock()
        self.carry = jax.block_until_ready(self.step(self.bound, self.carry, self.inputs))
        return (self.clock() - begin) / PER_CALL


def least_flops(config: DecoderConfig, chunk: int, slots: int) -> int:
    """Return the operations of a chunk's dense products and attention, whatever the memory is."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = 3 if config.activation == "swiglu" else 2
    dense = config.width * (2 * q + 2 * kv + matrices * config.mlp_width)
    attention = 2 * q * (slots + (chunk + 1) // 2)
    return 2 * chunk * config.layers * (dense + attention)


def products(clock: str = "wall") -> Run:
    """Return a function that gives the operations per second of products of large matrices."""
    a, now = jnp.ones((MATRIX, MATRIX), jnp.float32) / MATRIX, CLOCKS[clock]
    run = jax.jit(lambda a: a @ a @ a)
    run(a).block_until_ready()

    def rate() -> float:
        begin = now()
        run(a).block_until_ready()
        return 2 * 2 * MATRIX**3 / (now() - begin)

    return rate


def in_turn(runs: dict[Any, Run], rounds: int, warm: int = 2) -> dict[Any, np.ndarray]:
    """Return what every function gave [rounds], called one after the other, round by round."""
    found = [{key: run() for key, run in runs.items()} for _ in range(rounds + warm)][warm:]
    return {key: np.array([one[key] for one in found]) for key in runs}


def ratio(one: np.ndarray, other: np.ndarray) -> float:
    """Return the median of the ratios of values of the same round."""
    return float(np.median(one / other))
