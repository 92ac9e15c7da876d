"""What is static about a stream (`Program`), and what it threads through time (`Carry`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.memory import layout as pool
from jaxmem.memory.bank.bank import Bank, init_bank
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.typing import Array, Int


@dataclass(frozen=True)
class Program:
    """What is static about a stream: the decoder, the memory and where its slots lie."""

    config: DecoderConfig
    memory: Memory
    spec: Spec
    layout: pool.Layout | None  # None: the memory's scope is "stack" or "feature"

    @property
    def runs(self) -> tuple[pool.Run, ...]:
        """Contiguous layers whose states have one shape."""
        if self.layout is None:
            return (pool.Run(0, self.config.layers, 0),)
        return self.layout.runs


class Carry(NamedTuple):
    """What one stream threads through time; the whole of it has a fixed shape."""

    state: State
    clock: Int[Array, ""]  # arrival number of the next token
    bank: Bank | None = None


def make_program(config: DecoderConfig, memory: Memory, spec: Spec, *, runs: int = 6) -> Program:
    """Return the static description of a stream.

    Args:
      config: of the decoder.
      memory: what is kept.
      spec: sizes, from `spec_of(config, ...)`.
      runs: see `memory.pool`.

    Raises:
      ValueError: if the spec does not fit the decoder, or scope and reads do not go together.
    """
    for name in ("layers", "kv_heads", "heads", "head_dim", "width"):
        if getattr(spec, name) != getattr(config, name):
            raise ValueError(
                f"Spec.{name} is {getattr(spec, name)} but the decoder has "
                f"{getattr(config, name)}; build it with spec_of(config)."
            )
    if memory.scope == "stack" and memory.requires.ask == "layer":
        raise ValueError(
            f"memory {memory.name!r} recalls by each layer's queries but has scope 'stack', whose "
            "recall sees all layers at once; use scope 'layer', or requires.ask='pass'."
        )
    layout = pool.layout_of(memory, spec, runs=runs) if memory.scope == "layer" else None
    return Program(config, memory, spec, layout)


def spec_of(config: DecoderConfig, *, chunk: int, **more) -> Spec:
    """Return the `Spec` of a decoder for chunks of `chunk` tokens; `more` are further fields."""
    more.setdefault("axes", config.rope.axes)
    return Spec(
        layers=config.layers,
        kv_heads=config.kv_heads,
        heads=config.heads,
        head_dim=config.head_dim,
        width=config.width,
        chunk=chunk,
        **more,
    )


def init_carry(program: Program) -> Carry:
    """Return the carry of a stream that has not begun."""
    memory, spec = program.memory, program.spec
    layout = program.layout
    state = memory.init(spec) if layout is None else pool.init(memory, spec, layout)
    # A jitted stream donates its carry, so no two leaves may be the same buffer.
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    return settled(program, Carry(state, jnp.zeros((), jnp.int32), init_bank(memory, spec)))


def settled(program: Program, carry: Carry) -> Carry:
    """Return a carry, wherever it comes from, in the memories that its program streams it in.

    Beside a bank in host memory everything else is tied to the device, as it comes out of a
    stream: tied and free arrays would compile the same step twice.
    """
    if carry.bank is None or program.spec.bank_space == "device":
        return carry
    bank, space = carry.bank, jax.memory.Space
    rest = jax.device_put(carry._replace(bank=bank._replace(slots=None)), space.Device)
    return rest._replace(bank=rest.bank._replace(slots=jax.device_put(bank.slots, space.Host)))


def layers_of(program: Program, carry: Carry) -> list[State]:
    """Return each layer's slots and notes of one stream; scope "feature" has no layers."""
    if program.layout is not None:
        return pool.layers(program.layout, carry.state)
    return [jax.tree.map(lambda x, l=l: x[l], carry.state) for l in range(program.spec.layers)]
