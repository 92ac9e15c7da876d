"""Weights of the score that `Retention` reads off values: a small projection in every layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.memory.base import AnyMemory, Memory
from jaxmem.typing import Array, Params


def init_scorer(config: DecoderConfig, key: Array) -> Params:
    """Return first weights {"kernel": [L, G D, G], "a": [L, G]}: a random choice of tokens."""
    layers, groups = config.attends, config.kv_heads
    width = groups * config.head_dim
    kernel = jax.random.normal(key, (layers, width, groups)) / width**0.5
    return {"kernel": kernel, "a": jnp.ones((layers, groups))}


def add_scorer(decoder: Params, scorer: Params) -> Params:
    """Return a decoder's weights with those of a scorer in its layers.

    Raises:
      ValueError: if their shapes are not those of the decoder's layers.
    """
    layers = decoder["layers"]
    count, _, width = layers["v"]["kernel"].shape
    kernel, a = (jnp.shape(scorer.get(name, ())) for name in ("kernel", "a"))
    groups = kernel[-1] if len(kernel) == 3 else 0
    if kernel != (count, width, groups) or a != (count, groups) or not groups or width % groups:
        raise ValueError(
            f"the scorer has kernel {kernel} and a {a}, expected kernel [L={count}, "
            f"G D={width}, G] and a [L={count}, G]: give one that was learned for this decoder."
        )
    own = {name: scorer[name] for name in ("kernel", "a")}
    return decoder | {"layers": layers | {"retention": own}}


def check_scorer(memory: AnyMemory, decoder: Params) -> None:
    """Raise ValueError where a memory reads a score off values and the decoder has no weights."""
    reads = isinstance(memory, Memory) and memory.requires.retention
    if reads and "retention" not in decoder.get("layers", {}):
        raise ValueError(
            f"memory {memory.name} reads a score off values, and the decoder has no weights of "
            "one: learn them (`python -m jaxmem.experiments.scorer`, or jaxmem.training.scorer "
            "for another model) and give their file as --scorer, or as jaxmem.with_scorer(model, "
            "FILE)."
        )
