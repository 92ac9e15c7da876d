"""`Plan`: where the rows of a prompt or of a chunk come from, worked out on the host.

Families differ in which tokens stand where and at which positions. A plan holds that as integers of
a fixed shape; `fill` turns it, inside a jitted program, into the rows that a decoder takes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import embed
from jaxmem.kv import EMPTY, TEXT
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Float, Int, Params

Ids = Sequence[int] | np.ndarray
"""Token ids [T], without padding."""


class Plan(NamedTuple):
    """Rows before they are embedded; padding (kind EMPTY) last. numpy on the host."""

    ids: Int[Any, "T"]  # token of each row
    place: Int[Any, "T"]  # which of the features stands here; -1: the token's own embedding
    pos: Int[Any, "T A"]  # positions, relative to where the rows begin
    modality: Int[Any, "T"]
    advance: Int[Any, "A"]  # how far the rows advance the position


def plan(
    ids: Ids,
    pos: np.ndarray,
    advance: Sequence[int] | np.ndarray | int,
    features: Mapping[int, tuple[int, int]],
) -> Plan:
    """Return the plan of a whole prompt.

    Args:
      ids: token ids [T].
      pos: their positions [T, A].
      advance: where the next token stands, [A] or the same on every axis.
      features: for every placeholder token its kind and the first of its features; the features of
        one token follow each other in the order of its placeholders.
    """
    ids, pos = np.asarray(ids, np.int32), np.asarray(pos, np.int32)
    place, kind = np.full(len(ids), -1, np.int32), np.full(len(ids), TEXT, np.int8)
    for token, (its_kind, first) in features.items():
        mine = ids == token
        place[mine], kind[mine] = first + np.arange(mine.sum()), its_kind
    return Plan(ids, place, pos, kind, np.full(pos.shape[1], advance, np.int32))


def pad(part: Plan, size: int) -> Plan:
    """Return a plan padded to `size` rows; ValueError if it has more."""
    extra = size - len(part.ids)
    if extra < 0:
        raise ValueError(
            f"{len(part.ids)} rows do not fit a chunk of {size}: raise the chunk's size."
        )
    return Plan(
        ids=np.pad(part.ids, (0, extra)),
        place=np.pad(part.place, (0, extra), constant_values=-1),
        pos=np.pad(part.pos, ((0, extra), (0, 0))),
        modality=np.pad(part.modality, (0, extra), constant_values=EMPTY),
        advance=part.advance,
    )


def fill(
    decoder: Params,
    part: Plan,
    features: Float[Any, "m E"] | None = None,
    deep: Float[Any, "n m E"] | None = None,
) -> Embeds:
    """Return the rows of a plan.

    Args:
      part: plan without a leading axis; numpy or traced.
      features: of the encoders, or None if nothing but text is planned.
      deep: features that are added after layer l < n (DeepStack), for the same rows.
    """
    ids, place, pos, modality, advance = (jnp.asarray(x) for x in part)
    x = embed(decoder, ids)
    if features is None:
        return Embeds(x, pos, modality, advance)
    own, at = (place >= 0)[:, None], jnp.maximum(place, 0)
    x = jnp.where(own, features[at].astype(x.dtype), x)
    if deep is not None:
        deep = jnp.where(own[None], deep[:, at], jnp.zeros((), deep.dtype)).astype(x.dtype)
    return Embeds(x, pos, modality, advance, deep)
