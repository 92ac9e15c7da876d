"""Time of a first token at a published size, in turn, over banks that hold a long stream.

    python experiments/claims/first_token.py --memories hermes,rekv,full --frames 512

Weights are drawn, so answers mean nothing. What is bounded watches drawn pictures until its slots
are full. What keeps everything (`rekv`, `full`) takes drawn keys and values of all frames, in place
of watching them for hours.
"""

import argparse
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.asking import ask
from jaxmem.bound import Bound, bind, question_rows
from jaxmem.decoder.program import Carry, Program
from jaxmem.experiments.benchmark.price import PriceConfig, Stream, open_stream
from jaxmem.experiments.benchmark.price_run import drawn
from jaxmem.experiments.benchmark.second_session import noise_chunk
from jaxmem.kv import KV, VISION
from jaxmem.loop import advance, start
from jaxmem.memory import layout as layouts
from jaxmem.memory.bank.bank import Bank, Footprint, append, footprint
from jaxmem.memory.base import Memory, State
from jaxmem.memory.exchange import Chunk
from jaxmem.report.commit import made_by
from jaxmem.report.files import write_json
from jaxmem.typing import Array, Int, PyTree

EVERYTHING = ("rekv", "full")
"""Memories that hold the whole stream, and whose `write` looks at keys and values alone."""


class Held(NamedTuple):
    """A stream that is there to be asked."""

    ask: Callable[[], object]  # for one token
    tokens: int  # that it was given
    bytes: Footprint


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a line for each memory, and write the record."""
    arguments = parsed(argv)
    names = arguments.memories.split(",")
    held = streams(arguments, names)
    times = in_turn({name: one.ask for name, one in held.items()}, arguments.rounds)
    rows = {
        name: {"tokens": one.tokens, **one.bytes._asdict(), **summary(times, name, names[0])}
        for name, one in held.items()
    }
    for name, row in rows.items():
        print(f"{name}: {row['seconds']:.3f} s, {row['ratio']:.2f} of {names[0]}'s", flush=True)
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    record = {**settings, "device": jax.devices()[0].device_kind, **made_by(), "rows": rows}
    write_json(arguments.out, record)
    return record


def streams(arguments: argparse.Namespace, names: list[str]) -> dict[str, Held]:
    """Return a stream of every memory, all of one drawn model."""
    params, out = None, {}
    for name in names:
        found, begin = opened(arguments, name), time.perf_counter()
        params = drawn(found.model.params) if params is None else params
        bound = bind(found.program, params)
        carry, tokens = seen(found, bound, name, arguments.frames)
        once = question(found.program, bound, carry, arguments.question)
        once()  # compiles
        out[name] = Held(once, tokens, footprint(found.program.memory, found.program.spec))
        print(f"{name}: {tokens:,} tokens in {time.perf_counter() - begin:.0f} s", flush=True)
    return out


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llava-onevision:0.5b", help="as of `benchmark price`")
    parser.add_argument("--memories", default="hermes,rekv,full", help="the first is the reference")
    parser.add_argument("--frames", type=int, default=512, help="that banks hold, one a second")
    parser.add_argument("--budget", type=int, default=4096, help="slots of a layer")
    parser.add_argument("--question", type=int, default=32, help="tokens")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, default=Path("experiments/claims/first_token.json"))
    return parser.parse_args(argv)


def opened(arguments: argparse.Namespace, name: str) -> Stream:
    """Return the stream of a memory as shapes; `full` has a slot for every token."""
    config = PriceConfig(
        model=arguments.model,
        memory=name,
        budget=arguments.budget,
        dtype=arguments.dtype,
        hours=arguments.frames / 3600,
    )
    found = open_stream(config)
    if name != "full":
        return found
    tokens = arguments.frames * found.model.tokens_per_piece
    return open_stream(replace(config, budget=tokens))


def seen(found: Stream, bound: Bound, name: str, frames: int) -> tuple[Carry, int]:
    """Return a stream, and how many tokens it was given."""
    program, carry = found.program, start(found.program, bound)
    each = program.spec.chunk
    if name in EVERYTHING:
        count = frames // found.pieces
        return written(program, carry, count), count * each
    chunk = jax.tree.map(lambda x: jnp.asarray(x)[None], noise_chunk(found.model, found.pieces))
    count = -(-found.slots // each) + 1
    for _ in range(count):
        carry = jax.block_until_ready(advance(bound, carry, chunk, program=program))
    return carry, count * each


def written(program: Program, carry: Carry, chunks: int) -> Carry:
    """Return a stream whose memory was given so many chunks of drawn keys and values."""
    for layer in range(program.spec.layers):
        at = jnp.asarray(layer)
        mine, evicted = write_layer(carry.state, at, program=program, chunks=chunks)
        state = put(carry.state, at, mine, program=program)
        carry = carry._replace(state=state, bank=stored(carry.bank, at, evicted))
    tokens = jnp.asarray(chunks * program.spec.chunk, jnp.int32)
    return carry._replace(
        clock=tokens.astype(carry.clock.dtype), tokens=tokens, chunks=jnp.asarray(chunks, jnp.int32)
    )


@functools.partial(jax.jit, static_argnames=("program", "chunks"))
def write_layer(
    state: State, layer: Int[Array, ""], *, program: Program, chunks: int
) -> tuple[State, PyTree]:
    """Return one layer after its chunks, and what these evicted, [chunks, ...]."""
    layout, memory, spec = program.layout, program.memory, program.spec
    assert layout is not None and isinstance(memory, Memory)
    window = max(layout.capacities)

    def step(mine: State, number: Int[Array, ""]) -> tuple[State, PyTree]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), layer), number)
        index = number * spec.chunk + jnp.arange(spec.chunk, dtype=jnp.int32)
        shape = (spec.chunk, spec.kv_heads, spec.head_dim)
        k, v = (jax.random.normal(one, shape, spec.dtype) for one in jax.random.split(key))
        pos = jnp.broadcast_to(index[:, None, None], (spec.chunk, 1, spec.axes))
        modality = jnp.full((spec.chunk, 1), VISION, jnp.int8)
        fresh = KV(k, v, pos.astype(spec.pos_dtype), index[:, None], modality)
        after = jnp.full((spec.axes,), spec.chunk, spec.pos_dtype) * (number + 1)
        new, evicted = memory.write(spec, mine, Chunk(fresh, after.astype(spec.pos_dtype)))
        return jax.tree.map(lambda x, old: x.astype(old.dtype), new, mine), evicted

    mine = layouts.read(layout, state, layer, window)
    return jax.lax.scan(step, mine, jnp.arange(chunks, dtype=jnp.int32))


@functools.partial(jax.jit, static_argnames=("program",), donate_argnums=0)
def put(state: State, layer: Int[Array, ""], mine: State, *, program: Program) -> State:
    """Return the slots of all layers with those of one."""
    assert program.layout is not None
    return layouts.write(program.layout, state, layer, mine)


@functools.partial(jax.jit, donate_argnums=0)
def stored(bank: Bank | None, layer: Int[Array, ""], evicted: PyTree) -> Bank | None:
    """Return the bank with what one layer evicted, chunk by chunk."""
    if bank is None:
        return None
    return jax.lax.scan(lambda bank, one: (append(bank, layer, one), None), bank, evicted)[0]


def question(program: Program, bound: Bound, carry: Carry, tokens: int) -> Callable[[], object]:
    """Return a function that asks for one token and waits for it."""
    ids = np.arange(tokens, dtype=np.int32) % program.config.vocab
    rows = question_rows(bound.params, ids, program=program)
    return lambda: jax.block_until_ready(ask(bound, carry, rows, program=program, max_new=1))


def in_turn(asked: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of every round, the memories one after the other in each."""
    times = {name: [] for name in asked}
    for _ in range(rounds):
        for name, once in asked.items():
            begin = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - begin)
    return {name: np.array(found) for name, found in times.items()}


def summary(times: Mapping[str, np.ndarray], name: str, reference: str) -> dict[str, float]:
    """Return the median time with quartiles, and the median ratio to the reference, by round."""
    ratios = times[name] / times[reference]
    low, middle, high = (float(x) for x in np.percentile(times[name], (25, 50, 75)))
    return {
        "seconds": middle, "seconds_25": low, "seconds_75": high,
        "ratio": float(np.median(ratios)), "ratio_25": float(np.percentile(ratios, 25)),
        "ratio_75": float(np.percentile(ratios, 75)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
