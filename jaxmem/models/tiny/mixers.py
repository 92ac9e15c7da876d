"""Layers with a state for the embedded model: what it may have where it does not attend.

Sizes follow the model's: at the default ones a layer holds 64 KiB of state, or as near to that as
its weights allow, whatever its mixer. In four layers that is 256 KiB, between two budgets of
`evaluate recall`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from jaxmem.mixers.base import Mixer
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.linear import LinearAttention
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.mixers.mom import MoM
from jaxmem.mixers.titans import Titans

if TYPE_CHECKING:
    from jaxmem.models.tiny.tiny import TinyConfig

MIXERS: Mapping[str, Callable[[TinyConfig], Mixer]] = {
    "mamba2": lambda c: Mamba2(c.heads, c.head_dim, size=4 * c.head_dim),
    "gated_delta": lambda c: GatedDelta(
        c.heads, key_heads=1, key_dim=4 * c.head_dim, value_dim=c.head_dim
    ),
    "linear": lambda c: LinearAttention(c.kv_heads, 3 * c.head_dim),
    "mom": lambda c: MoM(c.kv_heads, c.head_dim),
    "titans": lambda c: Titans(c.kv_heads, 2 * c.head_dim, rows=c.tokens // 4, read="each"),
}
"""Names of mixers, and what makes one of a model's sizes."""
ATTEND = ("all", "none", "one_in_four")
"""Which layers attend; of four, the last."""


def mixers_of(config: TinyConfig) -> tuple[Mixer | None, ...]:
    """Return what mixes the tokens of every layer, None where it attends; empty: all do.

    Raises:
      ValueError: if `mixer` or `attend` is unknown, or one of them has no effect.
    """
    if config.attend not in ATTEND or config.mixer not in ("", *MIXERS):
        raise ValueError(
            f"mixer is one of {', '.join(MIXERS)} and attend one of {', '.join(ATTEND)}, got "
            f"{config.mixer!r} and {config.attend!r}."
        )
    if (config.mixer == "") != (config.attend == "all"):
        raise ValueError(
            f"mixer {config.mixer!r} does not go with attend {config.attend!r}: name a mixer if "
            "some layers do not attend, and none if all do."
        )
    if not config.mixer:
        return ()
    mixer = MIXERS[config.mixer](config)
    attends = lambda layer: config.attend == "one_in_four" and layer % 4 == 3
    found = tuple(None if attends(layer) else mixer for layer in range(config.layers))
    if config.attend == "one_in_four" and None not in found:
        raise ValueError(f"of {config.layers} layers none would attend: give 4 or more.")
    return found
