"""What enters the decoder is checked against its program, once, when it is traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmem.decoder.program import Carry, Program, init_carry
from jaxmem.decoder.scorer import check_scorer
from jaxmem.kv import KV
from jaxmem.memory.base import Embeds
from jaxmem.typing import Params, PyTree


def check_chunk(program: Program, embeds: Embeds) -> None:
    """Raise ValueError where the rows of a chunk contradict the program."""
    check_rows(program, embeds)
    spec, rows = program.spec, embeds.x.shape[-2]
    if rows > spec.chunk:
        raise ValueError(
            f"a chunk has {rows} rows but Spec.chunk is {spec.chunk}; make the program with "
            f"chunk={rows}, or stream shorter chunks."
        )


def check_rows(program: Program, embeds: Embeds) -> None:
    """Raise ValueError where the rows of a chunk or a question contradict the program."""
    spec, width = program.spec, embeds.x.shape[-1]
    if width != spec.width or embeds.pos.shape[-1] != spec.axes:
        raise ValueError(
            f"rows are [T, E={width}] with {embeds.pos.shape[-1]} position axes, but the Spec has "
            f"width={spec.width} and axes={spec.axes}; encode them for this model."
        )
    _check_shapes(embeds)
    _check_positions(program, embeds)


def _check_shapes(embeds: Embeds) -> None:
    """Raise ValueError where the arrays of rows do not belong together."""
    rows, axes = embeds.x.shape[-2], embeds.pos.shape[-1]
    found = {"pos": embeds.pos.shape[-2:], "modality": embeds.modality.shape[-1:]}
    wanted = {"pos": (rows, axes), "modality": (rows,), "advance": (axes,)}
    found["advance"] = embeds.advance.shape[-1:]
    if embeds.deepstack is not None:
        found["deepstack"] = embeds.deepstack.shape[-2:]
        wanted["deepstack"] = embeds.x.shape[-2:]
    for name, shape in found.items():
        if shape != wanted[name]:
            raise ValueError(
                f"rows have x of {embeds.x.shape} but {name} of {getattr(embeds, name).shape}, "
                f"expected {wanted[name]} at its end: give every row its own."
            )


def _check_positions(program: Program, embeds: Embeds) -> None:
    """Raise ValueError where rows have fractional positions and the program whole ones."""
    spec = program.spec
    if jnp.issubdtype(spec.pos_dtype, jnp.floating):
        return
    for name in ("pos", "advance", "start"):
        given = getattr(embeds, name)
        if given is not None and jnp.issubdtype(given.dtype, jnp.floating):
            raise ValueError(
                f"rows have positions of {given.dtype} (Embeds.{name}) but Spec.pos_dtype is "
                f"{jnp.dtype(spec.pos_dtype)}; make the program with pos_dtype=float32."
            )


def check_weights(program: Program, params: Params) -> None:
    """Raise ValueError where weights are not the program's: other layers, or no scorer."""
    stack = jax.tree.leaves(params.get("layers"))
    given, wanted = stack[0].shape[0] if stack else 0, program.config.attends
    if given != wanted:
        raise ValueError(
            f"the weights have {given} layers that attend but the decoder has {wanted}: give those "
            "of the model that the program was made for."
        )
    if wanted:
        check_scorer(program.memory, params)


def check_carry(program: Program, carry: Carry) -> None:
    """Raise ValueError where a carry has other arrays than the program's own."""
    given = arrays_of(carry, shapes=True)
    wanted = arrays_of(jax.eval_shape(lambda: init_carry(program)), shapes=True)
    if given != wanted:
        raise ValueError(
            f"the carry is of another program: its {difference(given, wanted)}; begin with "
            "start(program)."
        )


def arrays_of(tree: PyTree, *, shapes: bool = False) -> dict[str, Any]:
    """Return every array of a tree by its name; or its shape and dtype."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    leaves = {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {k: (jnp.shape(x), str(x.dtype)) if shapes else x for k, x in leaves.items()}


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return the first thing that differs, in words."""
    name = min(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))

    def word(found: Mapping[str, Any]) -> str:
        value = found.get(name, "absent")
        return "{1} {0}".format(*value) if isinstance(value, tuple) else str(value)

    return f"{name} is {word(there)} there and {word(here)} here"


def check_prefix(program: Program, prefix: KV | None) -> None:
    """Raise ValueError where a prefix is not the one that the program was made for."""
    given = 0 if prefix is None else prefix.modality.shape[1]
    if prefix is not None and prefix.modality.shape[0] != program.spec.layers:
        raise ValueError(
            f"the prefix has {prefix.modality.shape[0]} layers but Spec.layers is "
            f"{program.spec.layers}; bind the program to its prefix (jaxmem.bind)."
        )
    if given != program.spec.prefix:
        raise ValueError(
            f"the prefix has {given} tokens but Spec.prefix is {program.spec.prefix}; bind the "
            "program to its prefix (jaxmem.bind), or make it with that Spec.prefix."
        )


def check_probes(program: Program, probes: Embeds | None) -> None:
    """Raise ValueError where there are not as many probes as the memory requires."""
    asked = program.requires.probes
    if asked is None:
        return
    found = 0 if probes is None else probes.modality.shape[0]
    if found != asked.count:
        raise ValueError(
            f"memory {program.memory.name} scores by {asked.count} probes, got {found}: give them "
            "with Bound(params, probes=probe_rows(...)), or stream through a Session."
        )
