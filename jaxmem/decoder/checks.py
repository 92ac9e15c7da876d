"""What enters the decoder, and what its mixers return, is checked once, when it is traced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxmem.decoder.decoder import DecoderConfig, init_decoder, init_mixers
from jaxmem.decoder.program import Carry, Program, init_carry
from jaxmem.decoder.scorer import check_scorer
from jaxmem.kv import KV
from jaxmem.memory.exchange import Embeds
from jaxmem.mixers.base import Mixer
from jaxmem.typing import Hidden, Params, PyTree


def check_chunk(program: Program, embeds: Embeds) -> None:
    """Raise ValueError where the rows of a chunk contradict the program."""
    spec, rows = program.spec, embeds.x.shape[-2]
    if not rows:
        raise ValueError(
            "a chunk has no rows: leave it out, or give rows of padding (modality EMPTY)."
        )
    check_rows(program, embeds)
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
    if not embeds.x.shape[-2]:
        raise ValueError("the question has no rows: ask at least one token.")
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


OTHERS = "give those of the model that the program was made for."
"""What repairs weights of another model."""


def check_weights(program: Program, params: Params) -> None:
    """Raise ValueError where weights are not the program's: other layers, or no scorer.

    Layers are told by the shapes of their arrays: XLA would speak of operands of a dot.
    """
    given, wanted = _count(params.get("layers")), program.config.attends
    if given != wanted:
        raise ValueError(
            f"the weights have {given} layers that attend but the decoder has {wanted}: {OTHERS}"
        )
    _check_mixers(program.config, params)
    if wanted:
        _check_attending(program.config, params["layers"])
        check_scorer(program.memory, params)


def _check_attending(config: DecoderConfig, layers: PyTree) -> None:
    """Raise ValueError where the weights of layers that attend are not those of a decoder."""
    wanted = _attending_shapes(config)
    given = _own_shapes({n: x for n, x in layers.items() if n != "retention"}, wanted)
    if given != wanted:
        what = difference(given, wanted, "in the weights", "in the decoder")
        raise ValueError(
            f"the weights are not those of the decoder's {config.attends} layers that attend: "
            f"layers.{what}; {OTHERS}"
        )


def _check_mixers(config: DecoderConfig, params: Params) -> None:
    """Raise ValueError where the weights of layers with a state are not those of a decoder."""
    stacks = params.get("mixers", ())
    if len(stacks) != len(config.stacks):
        names = ", ".join(mixer.name for mixer in config.stacks) or "all its layers attend"
        raise ValueError(
            f"the weights have {len(stacks)} stacks of layers with a state but the decoder has "
            f"{len(config.stacks)} ({names}): {OTHERS}"
        )
    for i, (mixer, wanted) in enumerate(zip(config.stacks, _mixer_shapes(config), strict=True)):
        numbers, count = config.numbers(mixer), _count(stacks[i])
        given = _own_shapes(stacks[i], wanted)
        mine = f"{len(numbers)} with {mixer.name}, of which layer {numbers[0] + 1} is the first"
        if count != len(numbers):
            raise ValueError(
                f"the weights have {count} layers with a state where the decoder has {mine}: "
                f"{OTHERS}"
            )
        if given != wanted:
            raise ValueError(
                f"the weights are not those of the decoder's layers with a state, {mine}: their "
                f"{difference(given, wanted)}; {OTHERS}"
            )


def _count(stack: PyTree) -> int:
    """Return how many layers have weights in a stack."""
    leaves = jax.tree.leaves(stack)
    return (*leaves[0].shape, 0)[0] if leaves else 0


@cache
def _mixer_shapes(config: DecoderConfig) -> tuple[dict[str, str], ...]:
    """Return for every mixer the shapes of its layers' weights, by name."""
    stacks = jax.eval_shape(lambda: init_mixers(config, jax.random.key(0)))
    return tuple(_shapes_of(stack) for stack in stacks)


@cache
def _attending_shapes(config: DecoderConfig) -> dict[str, str]:
    """Return the shapes of the weights of layers that attend, by name."""
    return _shapes_of(jax.eval_shape(lambda: init_decoder(config, jax.random.key(0)))["layers"])


def _own_shapes(tree: PyTree, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return `_shapes_of` a tree without adapters beside the matrices of another."""
    found = _shapes_of(tree)
    return {name: shape for name, shape in found.items() if not _is_adapter(name, wanted)}


def _shapes_of(tree: PyTree) -> dict[str, str]:
    """Return the shape of every array of a tree, in words, by its name."""
    return {name: str(shape) for name, (shape, _) in arrays_of(tree, shapes=True).items()}


def _is_adapter(name: str, wanted: Mapping[str, Any]) -> bool:
    """Return whether weights are one of a pair beside a matrix, see `kernels.dense.linear`."""
    of, _, last = name.rpartition(".")
    return last in ("a", "b") and name not in wanted and f"{of}.kernel" in wanted


def check_mixed(mixer: Mixer, h: Hidden, state: PyTree, given: Any) -> None:
    """Raise ValueError where a mixer returned something else than its contract says.

    Args:
      mixer: of the layer.
      h: the rows that it passed [T, E].
      state: before them.
      given: what `Mixer.chunk` returned.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        what = "one array" if isinstance(given, jax.Array) else f"a {type(given).__name__}"
        raise ValueError(
            f"{mixer.name}.chunk returned {what}, expected a pair: return the outputs [T, E] and "
            "the state after them."
        )
    y, after = given
    if jnp.shape(y) != h.shape:
        raise ValueError(
            f"{mixer.name}.chunk returned outputs of {jnp.shape(y)} for rows of {h.shape}: return "
            "one output for each row, as wide as the row."
        )
    found, wanted = (arrays_of(jax.eval_shape(lambda x=x: x), shapes=True) for x in (after, state))
    repair = "return a state of the structure, shapes and dtypes that init makes."
    if found != wanted:
        what = difference(found, wanted, "after the chunk", "before it")
        raise ValueError(f"{mixer.name}.chunk returned another state, whose {what}: {repair}")
    trees = [jax.tree.structure(x) for x in (after, state)]
    if trees[0] != trees[1]:
        raise ValueError(
            f"{mixer.name}.chunk returned a state of {trees[0]}, expected {trees[1]}: {repair}"
        )


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


def difference(
    one: Mapping[str, Any], other: Mapping[str, Any], there: str = "there", here: str = "here"
) -> str:
    """Return the first thing that differs, in words; `there` and `here` say where each is."""
    name = min(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))

    def word(found: Mapping[str, Any]) -> str:
        value = found.get(name, "absent")
        return "{1} {0}".format(*value) if isinstance(value, tuple) else str(value)

    return f"{name} is {word(one)} {there} and {word(other)} {here}"


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
