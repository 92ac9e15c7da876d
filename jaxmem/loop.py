"""The streaming loop: `stream` advances a carry over chunks.

It is pure and jitted once: a stream of any length runs through one compiled program per segment
length. The carry is a value: it can be saved, restored, branched (`branch`) and moved between
machines.

    program = compile(model, memory)                            # or make_program(config, ...)
    bound = bind(program, model.params)                         # weights, prefix, probes
    carry = start(program)
    carry = stream(bound, carry, chunks, program=program)       # chunks: a leading axis
    answer = ask(bound, carry, question, program=program)       # the carry comes out untouched
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxmem.bound import Bound, as_bound, decoder_of
from jaxmem.compiled import Compiled
from jaxmem.decoder.checks import check_carry
from jaxmem.decoder.placing import held
from jaxmem.decoder.program import Carry, Program, init_carry
from jaxmem.decoder.step import chunk_step
from jaxmem.memory.layout import as_bits, as_floats
from jaxmem.typing import Params, PyTree


def start(program: Program, bound: Bound | Params | None = None) -> Carry:
    """Return the carry of a stream that has not begun.

    Args:
      program: static description.
      bound: its arrays, for a decoder that has layers with a state and a prefix in front of the
        stream: the states begin after it.

    Raises:
      ValueError: if states are needed and not given.
    """
    states = bound.states if isinstance(bound, Bound) else ()
    if program.config.stacks and program.prefix is not None and not states:
        raise ValueError(
            "this decoder has layers with a state, which have seen the prefix: give "
            "start(program, bound) with bound = bind(program, params)."
        )
    return init_carry(program, states)


class FromCarry(Compiled):
    """A compiled function of (bound, carry, ...) that says so where the carry is gone."""

    def __call__(self, bound: Bound | Params, carry: Carry, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Raises:
          ValueError: if the carry was taken over by `advance`.
        """
        clock = carry.clock
        real = isinstance(clock, jax.Array) and not isinstance(clock, Tracer)
        if real and clock.is_deleted():
            raise ValueError(
                "this carry is gone: `advance` took it over, as a Session does with every chunk. "
                "Go on with what that returned; keep `branch(carry)` of what you want to come back "
                "to."
            )
        return super().__call__(bound, carry, *args, **kwargs)


def _stream(
    bound: Bound | Params,
    carry: Carry,
    chunks: PyTree,
    *,
    program: Program,
    remat: bool = False,
) -> Carry:
    """Advance a stream over K chunks.

    Args:
      bound: weights with prefix and probes (`bind`); weights alone where the program has neither.
      carry: the stream so far; it stays usable.
      chunks: K chunks of whatever `program.encode` takes, stacked on a leading axis. A chunk may be
        padding altogether: feeding segments of one length K compiles once.
      program: static description.
      remat: recompute the inside of each chunk in a gradient instead of storing it.

    Returns:
      The carry after the last chunk.

    Raises:
      ValueError: if rows, prefix or probes contradict the program.
    """
    _check(program, carry, chunks)
    return _scan(bound, carry, chunks, program, remat)


def _stream_in_bits(
    bound: Bound | Params, carry: Carry, chunks: PyTree, *, program: Program, remat: bool = False
) -> Carry:
    """Do as `_stream`, without gradients; slots of layers are bits meanwhile, see `as_bits`."""
    _check(program, carry, chunks)
    if program.layout is None:
        return _scan(bound, carry, chunks, program, remat)
    kept = lambda carry, of: carry._replace(state=carry.state._replace(slots=of(carry.state.slots)))
    carry = _scan(bound, kept(carry, as_bits), chunks, program, remat)
    return kept(carry, as_floats)


def _check(program: Program, carry: Carry, chunks: PyTree) -> None:
    """Refuse chunks that are not stacked, and a carry of another program."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(chunks)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"chunks are stacked on one leading axis, got leaves with {sorted(sizes)}: for one "
            "chunk give jax.tree.map(lambda x: x[None], chunk)."
        )
    check_carry(program, carry)


def _scan(
    bound: Bound | Params, carry: Carry, chunks: PyTree, program: Program, remat: bool
) -> Carry:
    """Return the carry after the last chunk."""
    params, prefix, probes, _ = as_bound(bound)

    def body(carry: Carry, chunk: PyTree) -> tuple[Carry, None]:
        rows = program.encode(params, chunk)
        return chunk_step(decoder_of(params), program, carry, rows, prefix, probes)[0], None

    step = jax.checkpoint(body, prevent_cse=False) if remat else body  # type: ignore[attr-defined]
    after = jax.lax.scan(step, carry, chunks)[0]
    return held(program.mesh, after, program.config.stacks)


STATIC = ("program", "remat")
stream = FromCarry(_stream, _stream_in_bits, static_argnames=STATIC)
advance = FromCarry(_stream, _stream_in_bits, static_argnames=STATIC, donate_argnames=("carry",))
"""`stream` that takes the carry over: half the memory, and the carry that was given is gone."""


def branch(carry: Carry) -> Carry:
    """Return a copy with its own buffers: two futures of one past stay independent.

    `stream` leaves the carry it is given as it is; `advance` takes it over, so keep a branch of
    what you want to come back to.
    """
    return jax.device_put(carry, may_alias=False)  # `jnp.array` compiles a copy for every shape
