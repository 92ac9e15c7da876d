"""What is static about a stream (`Program`), and what it threads through time (`Carry`)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.placing import check_mesh, placed
from jaxmem.decoder.stretches import Stretch, stretches
from jaxmem.memory import layout as layouts
from jaxmem.memory.bank.bank import Bank, init_bank
from jaxmem.memory.base import AnyMemory, FeatureMemory, Memory, Spec, State
from jaxmem.memory.exchange import Embeds, Requires
from jaxmem.memory.layout import Layout
from jaxmem.mixers.base import stacked
from jaxmem.typing import Array, Int, Params, PyTree, UInt

Encode = Callable[[Params, PyTree], Embeds]
"""Turns one chunk of inputs (pixels, log-mel, ids) into rows; called inside the scan."""


def as_embeds(params: Params, embeds: Embeds) -> Embeds:
    """Return rows that are already embedded: the default `encode`."""
    del params
    return embeds


class Text(NamedTuple):
    """Token ids, and how many text steps each advances the position (None: one each)."""

    ids: tuple[int, ...]
    steps: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Program:
    """What is static about a stream; equal programs are compiled once.

    Attributes:
      config: of the decoder.
      memory: what is kept.
      spec: sizes.
      layout: where the slots of the layers lie; None where the memory sees the whole stack, or
        features.
      encode: a chunk's inputs to rows.
      prefix: text in front of every stream.
      probes: texts that a memory scores by, as it requires them.
      mesh: devices that its arrays are cut over (`decoder.placing`); None: they are not.
    """

    config: DecoderConfig
    memory: AnyMemory
    spec: Spec
    layout: Layout | None
    encode: Encode = as_embeds
    prefix: Text | None = None
    probes: tuple[Text, ...] = ()
    mesh: Mesh | None = None

    def __hash__(self) -> int:
        """Return the hash, computed once: `jax.jit` asks for it at every call."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self._fields)

    @property
    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the hash out: texts have another one in another process."""
        return type(self), self._fields

    @property
    def requires(self) -> Requires:
        """Return what the memory requires of the forward pass; nothing where no layer attends."""
        if not isinstance(self.memory, Memory) or not self.config.attends:
            return Requires()
        return self.memory.requires

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Return the order of the layers, as loops over repeated patterns."""
        windows = [0] * self.config.attends
        for run in () if self.layout is None else self.layout.runs:
            windows[run.first : run.stop] = [run.window] * (run.stop - run.first)
        return stretches(self.config.kinds, windows)


class Rejected(NamedTuple):
    """Rows that were not finite and were taken for padding."""

    rows: Int[Array, ""]
    first: Int[Array, ""]  # number of the first chunk with such rows; -1: none
    last: Int[Array, ""]  # and of the last one


class Carry(NamedTuple):
    """What one stream threads through time; the whole of it has a fixed shape."""

    state: State
    clock: Int[Array, ""]  # arrival number of the next token
    bank: Bank | None
    chunks: Int[Array, ""]  # chunks so far, without those of padding
    tokens: Int[Array, ""]  # tokens so far, at most 2^31 - 1
    rejected: Rejected
    made_by: UInt[Array, "2"]  # hash of the program, see `description`
    states: tuple[PyTree, ...] = ()  # of the layers with a state, [l, ...] as `config.stacks`
    # Of them, the first that was not finite: number of the chunk and of the layer; -1: all are.
    broken: Int[Array, "2"] | None = None


def description(program: Program) -> dict[str, str]:
    """Return what a stream depends on, in words: memory, sizes, decoder, prefix and probes."""
    spec = program.spec
    sizes = ("chunk", "prefix", "step", "dtype", "pos_dtype", "frame", "audio_tokens", "timestamps")
    return {
        "memory": repr(program.memory),
        "spec": ", ".join(f"{name}={getattr(spec, name)}" for name in sizes),
        "decoder": repr(program.config),
        "prefix": repr(program.prefix),
        "probes": repr(program.probes),
    }


def _hash(program: Program) -> np.ndarray:
    words = "\n".join(description(program).values())
    return np.frombuffer(hashlib.sha256(words.encode()).digest()[:8], np.uint32)


def make_program(
    config: DecoderConfig,
    memory: AnyMemory,
    spec: Spec,
    *,
    runs: int = 6,
    encode: Encode = as_embeds,
    prefix: Text | None = None,
    probes: tuple[Text, ...] = (),
    mesh: Mesh | None = None,
) -> Program:
    """Return the static description of a stream.

    Args:
      config: of the decoder.
      memory: what is kept.
      spec: sizes, from `spec_of(config, ...)`.
      runs: runs of layers at most, see `memory.layout`.
      encode: see `Program`.
      prefix: see `Program`.
      probes: see `Program`.
      mesh: see `Program`.

    Raises:
      ValueError: if the spec does not fit the decoder, the memory's options do not go together, or
        the mesh does not share the heads evenly.
    """
    check_mesh(mesh, config.kv_heads if config.attends else 0)
    mine = spec_of(config, chunk=spec.chunk)
    for name in ("layers", "kv_heads", "head_dim", "width"):
        if getattr(spec, name) != getattr(mine, name):
            raise ValueError(
                f"Spec.{name} is {getattr(spec, name)} but the decoder has "
                f"{getattr(mine, name)}; build it with spec_of(config)."
            )
    if spec.axes < config.rope.axes:
        raise ValueError(
            f"Spec.axes is {spec.axes} but the decoder's rotary embedding reads {config.rope.axes} "
            "position axes; build it with spec_of(config)."
        )
    if not config.attends and getattr(memory, "per", None) != "layer":
        raise ValueError(
            f"no layer of the decoder attends, so memory {memory.name} has nothing to choose from; "
            "take one that sees a layer at a time (omnimem, recent): it holds nothing here, the "
            "states hold the stream."
        )
    layout = None
    if isinstance(memory, Memory):
        if memory.per == "stack" and memory.requires.question == "layer":
            raise ValueError(
                f"memory {memory.name} recalls by each layer's queries but sees the whole stack at "
                'once; use per "layer", or requires.question="pass".'
            )
        if memory.per == "layer" and memory.requires.rows:
            raise ValueError(
                f"memory {memory.name} takes the rows that enter the decoder, which are of no "
                'layer; use per "stack".'
            )
        if memory.per == "layer":
            layout = layouts.layout_of(memory, spec, runs=runs)
    return Program(config, memory, spec, layout, encode, prefix, probes, mesh)


def spec_of(config: DecoderConfig, *, chunk: int, **more: Any) -> Spec:
    """Return the `Spec` of a decoder for chunks of `chunk` tokens; `more` are further fields."""
    more = {"axes": config.rope.axes, "rope": config.rope} | more
    return Spec(
        layers=config.attends,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        width=config.width,
        chunk=chunk,
        state_bytes=_state_bytes(config),
        **more,
    )


def _state_bytes(config: DecoderConfig) -> int:
    """Return what the layers with a state hold of one stream, in bytes."""
    states = jax.eval_shape(lambda: init_states(config)) if config.stacks else ()
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(states))


def init_carry(program: Program, states: tuple[PyTree, ...] = ()) -> Carry:
    """Return the carry of a stream that has not begun.

    Args:
      program: static description.
      states: of the layers with a state, after the prefix; without, they are empty.
    """
    carry = _empty(program, with_states=not states)
    # A session donates its carry, so no two leaves may be the same buffer.
    states = jax.device_put(states, may_alias=False) if states else carry.states
    bank = init_bank(program.memory, program.spec)
    return settled(program, carry._replace(states=states, bank=bank))


@partial(jax.jit, static_argnames=("program", "with_states"))
def _empty(program: Program, with_states: bool) -> Carry:
    """Return an empty carry without its bank, every leaf in a buffer of its own.

    One program makes it: operation by operation, every shape in it is one to compile.
    """
    memory, spec, layout = program.memory, program.spec, program.layout
    if layout is None:
        state = memory.init(spec)
    else:
        assert isinstance(memory, Memory)
        state = layouts.init(memory, spec, layout)
    zero, none = jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)
    made_by = jnp.asarray(_hash(program))
    states = init_states(program.config) if with_states else ()
    broken = jnp.full((2,), -1, jnp.int32) if program.config.stacks else None
    rejected = Rejected(zero, none, none)
    return Carry(state, zero, None, zero, zero, rejected, made_by, states, broken)


def init_states(config: DecoderConfig) -> tuple[PyTree, ...]:
    """Return the empty states of a decoder's layers with a state, a stack for each that differs."""
    return tuple(stacked(m, config.width, config.kinds.count(m)) for m in config.stacks)


def settled(program: Program, carry: Carry) -> Carry:
    """Return a carry, wherever it comes from, on the devices of its program, in their memories.

    Beside a bank in host memory everything else is tied to the device, as it comes out of a
    stream: tied and free arrays would compile the same step twice.
    """
    asked = None
    if isinstance(program.memory, Memory):
        asked = program.memory.bank(program.spec)
    on_device = carry.bank is None or asked is None or asked.space == "device"
    if program.mesh is not None:
        return placed(program.mesh, carry, program.config.stacks, host=not on_device)
    if on_device or carry.bank is None:
        return carry
    bank, space = carry.bank, jax.memory.Space
    rest = jax.device_put(carry._replace(bank=bank._replace(slots=None)), space.Device)
    return rest._replace(bank=rest.bank._replace(slots=jax.device_put(bank.slots, space.Host)))


def layers_of(program: Program, carry: Carry) -> list[State]:
    """Return each layer's slots of one stream, with what the memory knows of the layer.

    A memory that sees the whole stack holds numbers that are not per layer: they are passed whole.
    A memory of features has no layers.
    """
    if isinstance(program.memory, FeatureMemory):
        return []
    if program.layout is not None:
        return layouts.layers(program.layout, carry.state)
    slots, aux = carry.state
    each = range(program.spec.layers)
    return [State(jax.tree.map(lambda x, l=l: x[l], slots), aux) for l in each]
