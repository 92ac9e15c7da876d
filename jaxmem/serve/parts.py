"""Lanes cut into parts along `data` of a mesh: what every part's devices run by themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxmem.compiled import Compiled
from jaxmem.decoder.placing import DATA, held
from jaxmem.decoder.program import Carry, Program
from jaxmem.typing import Array, Bool, Int, PyTree


def take(tree: PyTree, which: Int[Array, "W"]) -> PyTree:
    """Return the lanes `which` of a tree; for padding, any lane."""
    return jax.tree.map(lambda x: jnp.take(x, which, axis=0, mode="clip"), tree)


def put(tree: PyTree, which: Int[Array, "W"], new: PyTree) -> PyTree:
    """Return a tree [B, ...] with the lanes `which` replaced by `new` [W, ...]; padding is not."""
    return jax.tree.map(lambda x, y: x.at[which].set(y, mode="drop"), tree, new)


def parts_of(program: Program) -> int:
    """Return into how many parts the streams of a program are cut: `data` of its mesh."""
    return 1 if program.mesh is None else program.mesh.shape[DATA]


def check_parts(lanes: int, parts: int) -> None:
    """Refuse lanes that the parts of a mesh do not share evenly.

    Raises:
      ValueError: naming a multiple.
    """
    if lanes % parts:
        raise ValueError(
            f"{DATA}={parts} does not share {lanes} lanes evenly: take a multiple of {parts} lanes."
        )


def in_parts(program: Program, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that every part's devices run for the streams that they hold.

    Args:
      program: static description.
      function: of what all parts share, then of arrays with a leading axis of streams; so is what
        it returns.
    """
    mesh = program.mesh
    if mesh is None or mesh.shape[DATA] == 1:
        return function
    shared, mine = PartitionSpec(), PartitionSpec(DATA)

    def parted(all_share: PyTree, *streams: PyTree) -> PyTree:
        cut = (shared, *[mine] * len(streams))
        how = {"mesh": mesh, "axis_names": {DATA}, "check_vma": False}
        return jax.shard_map(function, in_specs=cut, out_specs=mine, **how)(all_share, *streams)

    return parted


def held_lanes(program: Program, carries: Carry) -> Carry:
    """Return the carries of all lanes, which a compiled program keeps where the mesh has them."""
    return held(program.mesh, carries, program.config.stacks, lanes=True)


@partial(Compiled, static_argnames=("program",), donate_argnums=(0,))
def put_lane(carries: Carry, lane: Int[Array, ""], carry: Carry, *, program: Program) -> Carry:
    """Return the carries with one lane replaced, as for a stream that begins; they are donated."""

    def part(given: tuple[Array, Carry], carries: Carry) -> Carry:
        lane, carry = given
        new = jax.tree.map(lambda x: x[None], carry)
        return put(carries, _of_part(program, lane, carries)[0][None], new)

    return held_lanes(program, in_parts(program, part)((lane, carry), carries))


@partial(jax.jit, static_argnames=("program",))
def take_lane(carries: Carry, lane: Int[Array, ""], *, program: Program) -> Carry:
    """Return the carry of one stream: a copy, to save or to branch."""
    if parts_of(program) == 1:
        return take(carries, lane)

    def part(lane: Int[Array, ""], carries: Carry) -> Carry:
        # Every part gives bits, all but one of them zeros: their sum is that lane on all devices.
        place, mine = _of_part(program, lane, carries)
        bits = jax.tree.map(lambda x: jnp.where(mine, _bits(x[place]), 0), carries)
        return jax.tree.map(lambda x: jax.lax.psum(x, DATA)[None], bits)

    bits = jax.tree.map(lambda x: x[0], in_parts(program, part)(lane, carries))
    carry = jax.tree.map(lambda x, y: _as(x, y.dtype), bits, carries)
    return held(program.mesh, carry, program.config.stacks)


def _of_part(
    program: Program, lane: Int[Array, ""], carries: Carry
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Return a lane's number in this part of the streams (else beyond it), and if it is in it."""
    if parts_of(program) == 1:
        return lane, jnp.ones((), bool)
    each = jax.tree.leaves(carries)[0].shape[0]
    place = lane - each * jax.lax.axis_index(DATA)
    mine = (place >= 0) & (place < each)
    return jnp.where(mine, place, each), mine


def _bits(x: Array) -> Array:
    """Return a number's bits as a whole number."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    whole = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(x, whole)


def _as(bits: Array, dtype: Any) -> Array:
    """Return what `_bits` was given."""
    if jnp.dtype(dtype) == jnp.bool_:
        return bits.astype(bool)
    return jax.lax.bitcast_convert_type(bits, dtype)
