"""`benchmark remat`: what schemes of gradient checkpointing keep and cost, on a random stack."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.rope import rope_1d
from jaxmem.training.language import (
    empty_state,
    language_loss,
    layer_cell,
    layer_cost,
    layer_inputs,
)
from jaxmem.training.plan import Plan, compiled, squares, temp, temporary
from jaxmem.training.remat import WORDS, Scheme, grid, near_root

Name = Literal["off", "layer", "layer_chunk", "sqrt", "A", "B", "C", "D", "E", "ids_D", "ids_E"]
BASE = "layer"
"""What people have: every layer over the whole sequence is checkpointed."""


@dataclass(frozen=True)
class RematConfig:
    """Temporary memory and time of training a Mamba-2 stack, by scheme of checkpointing."""

    # Schemes of docs/training.md; ids_D and ids_E take token ids and have the loss inside.
    schemes: tuple[Name, ...] = (
        *("off", "layer", "layer_chunk", "sqrt", "A", "B", "C", "D", "E"),
        *("ids_D", "ids_E"),
    )  # fmt: skip
    tokens: tuple[int, ...] = (4096, 16384, 65536)  # lengths; multiples of the chunk
    layers: int = 24  # of the stack
    width: int = 64  # of the model; the layers are twice as wide inside, in heads of 64
    size: int = 16  # numbers of the state for each channel
    chunk: int = 512  # tokens of a chunk
    timed: int = 4096  # tokens of the gradients that are run; 0: none is
    rounds: int = 2  # how often each is run, in turn; the least time counts
    room: float = 4.0  # GiB of temporary memory beyond which nothing is run
    json: bool = False  # print JSON instead of a table


class Row(NamedTuple):
    """One scheme."""

    scheme: str
    temps: dict[int, int]  # bytes as compiled, by tokens
    formula: dict[int, int]  # bytes
    slope: float  # bytes of one more token, between the two longest lengths, as compiled
    formula_slope: float
    seconds: float | None  # CPU seconds of a gradient of `timed` tokens
    memory_ratio: float  # to checkpointing per layer, at the longest length
    time_ratio: float | None


def measure_remat(config: RematConfig) -> tuple[dict[str, Any], Table]:
    """Return figures and table of every scheme; per-layer checkpointing is always one of them.

    Raises:
      ValueError: if lengths are no multiples of the chunk, or there is only one.
    """
    _check(config)
    names = tuple(dict.fromkeys((BASE, *config.schemes)))
    cost = layer_cost(stack(config), config.chunk)
    temps, ready = {}, {}
    for name in track(names, "compiling", console=Console(stderr=True), transient=True):
        lengths = sorted({*config.tokens, config.timed or config.tokens[0]})
        made = {n: compiled(*problem(config, name, n)) for n in lengths}
        temps[name] = {n: temporary(made[n]) for n in config.tokens}
        if config.timed and temporary(made[config.timed]) <= config.room * 2**30:
            ready[name] = made[config.timed]
    seconds = _timed(config, ready)
    longest = max(config.tokens)
    rows = []
    for name in names:
        inside = name.startswith("ids")
        said = {n: temp(sizes(config, name, n), cost, inside=inside) for n in config.tokens}
        mine, base = seconds.get(name), seconds.get(BASE)
        slopes = _slope(temps[name]), _slope(said)
        share = temps[name][longest] / temps[BASE][longest]
        times = mine, share, mine / base if mine is not None and base else None
        rows.append(Row(name, temps[name], said, *slopes, *times))
    return {"cost": cost._asdict(), "rows": [row._asdict() for row in rows]}, _table(config, rows)


def _check(config: RematConfig) -> None:
    lengths = {*config.tokens, config.timed or config.chunk}
    if len(set(config.tokens)) < 2:
        raise ValueError(f"a slope needs two lengths: --tokens got {config.tokens}.")
    if min(lengths) < config.chunk or any(n % config.chunk for n in lengths):
        raise ValueError(
            f"--tokens and --timed must be multiples of --chunk {config.chunk}, got "
            f"{sorted(lengths)}."
        )
    if config.width < 32 or config.width % 32:
        raise ValueError(f"--width must be a multiple of 32, got {config.width}.")


def stack(config: RematConfig) -> DecoderConfig:
    """Return the decoder that is measured."""
    mixer = Mamba2(config.width // 32, 64, config.size, block=min(128, config.chunk))
    return DecoderConfig(
        config.layers, config.width, 2, 1, 16, 0, vocab=512, rope=rope_1d(16),
        mixers=(mixer,) * config.layers,
    )  # fmt: skip


def sizes(config: RematConfig, name: Name, tokens: int) -> Plan:
    """Return the plan of a scheme: blocks and segments next to the square root."""
    scheme: Scheme = name.removeprefix("ids_")  # type: ignore[assignment]
    word = WORDS[scheme]
    block = near_root(config.layers) if word.count("s") == 2 else None
    segments = near_root(tokens // config.chunk) if word.count("c") == 2 else None
    return Plan(scheme, config.layers, tokens, block, config.chunk, segments)


def problem(config: RematConfig, name: Name, tokens: int) -> tuple[Any, ...]:
    """Return a loss, and the shapes of its arguments; it is differentiated by the first."""
    decoder, plan = stack(config), sizes(config, name, tokens)
    params = jax.eval_shape(partial(init_decoder, decoder), jax.random.key(0))
    state = jax.eval_shape(lambda: empty_state(decoder))
    if name.startswith("ids"):
        more = {"nested": plan.scheme == "E", "segments": plan.segments}
        loss = language_loss(decoder, chunk=config.chunk, **more)
        return (loss, params, jax.ShapeDtypeStruct((tokens,), jnp.int32), state)
    cell = grid(layer_cell(decoder), **plan.options)
    return squares(cell), params["mixers"][0], layer_inputs(decoder, tokens), state


def _timed(config: RematConfig, ready: dict[Name, Any]) -> dict[str, float]:
    """Return the least CPU seconds of a gradient by scheme, all run in turn."""
    best: dict[str, float] = {}
    for _ in range(config.rounds):
        for name, gradient in ready.items():
            arrays = jax.block_until_ready(_random(problem(config, name, config.timed)[1:]))
            begin = time.process_time()
            jax.block_until_ready(gradient(*arrays))
            used = time.process_time() - begin
            best[name] = min(used, best.get(name, used))
    return best


def _random(shapes: Any) -> Any:
    """Return arrays of these shapes: small numbers, ids, and True."""
    leaves, tree = jax.tree.flatten(shapes)

    def draw(key: jax.Array, x: Any) -> jax.Array:
        if x.dtype == jnp.bool_:
            return jnp.ones(x.shape, bool)
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jax.random.randint(key, x.shape, 0, 512)
        return 0.05 * jax.random.normal(key, x.shape, x.dtype)

    keys = jax.random.split(jax.random.key(0), len(leaves))
    return tree.unflatten(map(draw, keys, leaves))


def _slope(at: dict[int, int]) -> float:
    few, many = sorted(at)[-2:]
    return (at[many] - at[few]) / (many - few)


def _table(config: RematConfig, rows: list[Row]) -> Table:
    title = (
        f"temporary memory of a gradient, MiB (formula): {config.layers} layers of Mamba-2, width "
        f"{config.width}, chunks of {config.chunk}"
    )
    table = Table("scheme", title=title)
    for n in config.tokens:
        table.add_column(f"{n:,}", justify="right")
    for column in ("B a token (formula)", "CPU s", f"memory / {BASE}", f"time / {BASE}"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row.temps[n] / 2**20:,.1f} ({row.formula[n] / 2**20:,.1f})" for n in row.temps]
        ran = row.seconds is not None and row.time_ratio is not None
        table.add_row(
            row.scheme,
            *cells,
            f"{row.slope:,.1f} ({row.formula_slope:,.1f})",
            f"{row.seconds:.2f}" if ran else "-",
            f"{row.memory_ratio:.4f}",
            f"{row.time_ratio:.2f}" if ran else "-",
        )
    return table
