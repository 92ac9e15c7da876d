"""`benchmark bytes`: what every memory holds on device and host, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from rich.table import Table

from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Spec
from jaxmem.memory.by_name import Budget, contestants
from jaxmem.memory.options import NAMES
from jaxmem.rope import mrope_sectioned

SPEC = Spec(
    layers=28,
    kv_heads=4,
    head_dim=128,
    width=3584,
    axes=3,
    chunk=256,
    dtype=jnp.bfloat16,
    rope=mrope_sectioned(128, 1e6, (16, 24, 24)),
    frame=(16, 16),
)
"""The decoder of a 7B model (Qwen2.5-VL-7B): 28 layers of 4 KV heads of 128, bfloat16,
and frames of 16 x 16 tokens."""


@dataclass(frozen=True)
class BytesConfig:
    """Bytes that every memory holds for a 7B decoder, on the device and in host memory."""

    slots: int = 4096  # per layer
    stream: int = 65_536  # tokens of the stream, which `full` and banks hold
    json: bool = False  # print JSON instead of a table


def footprints(config: BytesConfig) -> dict[str, tuple[int, int]]:
    """Return (device, host) bytes over all layers by name of the memory."""
    out = {}
    for name in NAMES:
        budget = Budget(config.slots, None)
        (chosen,) = contestants((name,), {}, budget, SPEC, config.stream)
        held = footprint(chosen.memory, SPEC)
        out[name] = (held.device, held.host)
    return out


def footprint_table(config: BytesConfig, found: dict[str, tuple[int, int]]) -> Table:
    """Return the bytes as a table."""
    title = f"{config.slots:,} slots in each of {SPEC.layers} layers, {config.stream:,} tokens seen"
    table = Table("memory", title=title)
    for column in ("device, MiB", "host, MiB", "device bytes a slot"):
        table.add_column(column, justify="right")
    for name, (device, host) in found.items():
        each = device / (SPEC.layers * config.slots)
        table.add_row(name, f"{device / 2**20:,.1f}", f"{host / 2**20:,.1f}", f"{each:,.0f}")
    return table
