"""Save live streams, restore them in another process, and go on as if nothing had happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.checks import arrays_of, difference
from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.fingerprint import fingerprint
from jaxmem.decoder.program import Carry, Program, description, init_carry, settled
from jaxmem.saves import KEPT, Part, read, write
from jaxmem.typing import Params

RUN = "\n"
"""Between two runs of equal layers."""


def made_by(program: Program, params: Params | None = None) -> dict[str, str]:
    """Return what a stream depends on, in words: memory and options, sizes, decoder, weights."""
    made = description(program) | {"runs": runs_of(program.config)}
    return made if params is None else made | {"weights": fingerprint(params)}


def runs_of(config: DecoderConfig) -> str:
    """Return in words the layers of a decoder in order, equal neighbours together."""
    names = ("attention" if kind is None else repr(kind) for kind in config.kinds)
    return RUN.join(f"{len([*run])} {name}" for name, run in groupby(names))


def _counts_of(config: DecoderConfig) -> str:
    """Return in words how many layers of which kind a decoder has: what earlier saves say."""
    names = ("attention" if kind is None else kind.name for kind in config.kinds)
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())


def _mixers_in(described: str) -> str:
    """Return the mixers in the description of a decoder, whose last field they are."""
    return described.partition("mixers=")[2].removesuffix(")")


def check_kinds(head: Part, config: DecoderConfig, source: Path) -> None:
    """Refuse a saved stream of other layers than a decoder's, before its arrays are read.

    Raises:
      ValueError: naming the first layers that differ.
    """
    compared = [(head.made.get("runs"), runs_of(config))]
    if "runs" not in head.made:  # an earlier save, or one that does not say what made it
        compared = [(head.made.get("layers"), _counts_of(config))]
        compared += [(_mixers_in(head.made.get("decoder", "")), _mixers_in(repr(config)))]
    for there, here in compared:
        if there and there != here:
            raise ValueError(
                f"the stream at {source} is of a decoder whose layers are "
                f"{_first_that_differ(there, here)}: restore it with the model that it was saved "
                "with."
            )


def _first_that_differ(there: str, here: str) -> str:
    """Return in words the first run of layers that differs, and from which layer on."""
    at = 1
    for runs in zip_longest(there.split(RUN), here.split(RUN), fillvalue="none"):
        if runs[0] != runs[1]:
            break
        at += int(runs[0].split()[0])
    return f"{runs[0]}, this one's are {runs[1]}" + (f" (from layer {at} on)" if at > 1 else "")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def part_of(
    carry: Carry,
    *,
    made: Mapping[str, str] | None = None,
    host: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> Part:
    """Return a live stream as it is saved.

    Args:
      carry: the stream.
      made: `made_by` of what made it; `carry_of` then refuses anything else. It reads all weights,
        so a stream that saves itself computes it once.
      host: arrays that the host knows of the stream.
      numbers: what else it knows, as JSON.
    """
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, carry)
    arrays = {f"carry.{name}": x for name, x in arrays_of(plain).items()}
    arrays |= {f"host.{name}": x for name, x in (host or {}).items()}
    return Part(made or {}, numbers or {}, arrays)


def save(
    path: str | Path,
    carry: Carry,
    *,
    program: Program | None = None,
    params: Params | None = None,
    replace: bool = False,
    keep: int = KEPT,
) -> None:
    """Write a live stream to the folder `path`, all of it or nothing.

    Args:
      path: of the folder.
      carry: the stream.
      program: that made it; `restore` then refuses another memory or other options.
      params: weights that made it; `restore` then refuses others.
      replace: whether `path` may hold saved streams; the new one is what `restore` returns.
      keep: how many saves stay, the new one included.

    Raises:
      ValueError: if there is something at `path` that is not to be replaced.
      OSError: if the disc is full or cannot be written to; what was saved before stays.
    """
    made = None if program is None else made_by(program, params)
    write(path, {"stream": part_of(carry, made=made)}, replace, keep)


def restore(path: str | Path, program: Program, *, params: Params | None = None) -> Carry:
    """Return the live stream that was saved last at `path`, by an equal program.

    Args:
      path: of the folder; or of one save in it, to go back to the one before the last.
      program: that goes on with it.
      params: weights that go on with it; None: they are not compared.

    Raises:
      ValueError: if there is nothing at `path`, it is damaged (the save before it is offered), or
        it was saved by another program, with another memory, other options or other weights.
    """
    saved = read(path)
    check_kinds(saved.head(), program.config, saved.where)
    return carry_of(saved.part(), program, params, saved.where)


def carry_of(part: Part, program: Program, params: Params | None, source: Path) -> Carry:
    """Return the live stream of a saved one; see `restore`.

    Raises:
      ValueError: if it was made otherwise.
    """
    wanted = made_by(program, params)
    stored = {k: v for k, v in part.made.items() if k in wanted}
    wanted = {k: v for k, v in wanted.items() if k in stored}
    if stored != wanted:
        raise ValueError(
            f"the stream at {source} was made otherwise ({difference(stored, wanted)}): restore "
            "it with the model, memory and options it was saved with."
        )
    empty = init_carry(program)
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, empty)
    found = {n.removeprefix("carry."): x for n, x in part.arrays.items() if n.startswith("carry.")}
    arrays, shapes = arrays_of(found, shapes=True), arrays_of(plain, shapes=True)
    if arrays != shapes:
        raise ValueError(
            f"the stream at {source} does not fit this program ({difference(arrays, shapes)}):"
            " restore it with the model, memory and budget it was saved with."
        )
    leaves = [
        jax.random.wrap_key_data(found[name], impl=jax.random.key_impl(like))
        if _is_key(like)
        else jnp.array(found[name])
        for name, like in arrays_of(empty).items()
    ]
    carry = jax.tree.unflatten(jax.tree.structure(empty), leaves)
    if not np.array_equal(carry.made_by, empty.made_by):
        raise ValueError(
            f"the stream at {source} was made by another program than this one "
            f"({program.memory!r}): restore it with the model, memory and options it was saved "
            "with."
        )
    return settled(program, carry)
