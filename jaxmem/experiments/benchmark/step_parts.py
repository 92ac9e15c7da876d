"""What a chunk's time goes into, by leaving things out: dense, attention, reports, keeping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.decoder.decoder import DecoderConfig, finish, layer_at, qkv
from jaxmem.decoder.program import init_carry
from jaxmem.experiments.benchmark.step_model import CLOCKS, PER_CALL, Run, Stream
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.transforms.around import Around
from jaxmem.typing import Array, Float, Params, PyTree


class Parts(NamedTuple):
    """Milliseconds of a chunk: differences of steps that leave one thing out after the other."""

    dense: float  # projections, MLP and norms
    attention: float  # over slots and chunk, with rotation
    reports: float  # what the memory asks of the forward pass: attention received, probes
    keeping: float  # scores, selection and moving of slots


@dataclass(frozen=True)
class Still(Around):
    """A memory that is told everything and keeps what it has."""

    def inner(self, state: State) -> State:
        """Return the state, which is that of the memory inside."""
        return state

    def init(self, spec: Spec, layer: int = 0) -> State:
        """Return the empty state of the memory inside."""
        return self.memory.init(spec, layer) if self.per == "layer" else self.memory.init(spec)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, PyTree]:
        """Return the state as it was; what was reported is read, or it would not be computed."""
        del spec
        told = (chunk.kv.k, chunk.kv.v, chunk.received, chunk.given, chunk.probed, chunk.queries)
        total = sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(told))
        # Zero, but no compiler may know: the reports could be infinite.
        zero = (0.0 * jnp.asarray(total)).astype(jnp.int32)
        kept = state.aux._replace(capacity=state.aux.capacity + zero)
        return state._replace(aux=kept), None


def still(stream: Stream, clock: str) -> Stream | None:
    """Return the same stream with a memory that keeps what it holds now; None: it has no slots."""
    program = stream.program
    if not isinstance(program.memory, Memory) or program.memory.bank(program.spec) is not None:
        return None
    held = replace(program, memory=Still(program.memory))
    found = Stream(held, stream.bound.params, clock)
    copied = jax.tree.map(jnp.copy, stream.carry)
    found.carry = copied._replace(made_by=init_carry(held).made_by)
    return found


def dense(
    config: DecoderConfig, params: Params, x: Float[Array, "K T E"], clock: str = "wall"
) -> Run:
    """Return what passes chunks through all layers without attention, and gives a chunk's seconds.

    Queries, keys and values are added up in attention's place, so that all products are done.
    """
    each, now = config.heads // config.kv_heads, CLOCKS[clock]

    def through(params: Params, h: Float[Array, "T E"]) -> Float[Array, "T E"]:
        def layer(index: Array, h: Float[Array, "T E"]) -> Float[Array, "T E"]:
            weights = layer_at(params, index)
            q, k, v = qkv(weights, config, h)
            return finish(weights, config, h, q + jnp.repeat(k + v, each, axis=1))

        return jax.lax.fori_loop(0, config.attends, layer, h)

    @jax.jit
    def run(params: Params, x: Any) -> Any:
        return jax.lax.map(lambda h: through(params, h), x)

    def timed() -> float:
        begin = now()
        jax.block_until_ready(run(params, x))
        return (now() - begin) / PER_CALL

    return timed
