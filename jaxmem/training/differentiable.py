"""What of a program a gradient can pass, and how it is told to choose while it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import jax.numpy as jnp

from jaxmem.decoder.program import Program
from jaxmem.memory.base import FeatureMemory, kv_of
from jaxmem.memory.layout import layout_of
from jaxmem.memory.parts.softly import TEMPERATURE, Softly
from jaxmem.memory.sizes import shapes

Mode = Literal["through", "read", "published"]
MODES: tuple[Mode, ...] = get_args(Mode)
Selection = Literal["hard", "soft"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)


def choosing(program: Program, selection: Selection, mode: Mode = "through") -> Program:
    """Return a program whose memory chooses what it keeps as `selection` says.

    Args:
      program: static description.
      selection: "hard": the choice has no gradient. "soft": the same choice has one by its scores
        (`jaxmem.memory.parts.softly`), at the memory's own `soft`, or at `TEMPERATURE`.
      mode: where gradients go.

    Raises:
      ValueError: if there is no such selection, or the memory has no score with a gradient.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}.")
    memory = program.memory
    own = getattr(memory, "soft", None)
    if selection == "hard":
        if own is not None:
            raise ValueError(
                f'memory {memory.name} has soft={own}, which trains with selection "soft" only: '
                "give --selection soft, or leave soft out."
            )
        return program
    if mode != "through":
        raise ValueError(
            f'mode "{mode}" takes what scores are made of for constants: take mode "through" with '
            'selection "soft".'
        )
    if not isinstance(memory, Softly) or not memory.softens:
        raise ValueError(
            f"memory {memory.name} does not choose by a score with a gradient: take selection "
            '"hard" (--selection hard), or omnimem, knorm, keydiff or expected_attention.'
        )
    soft = replace(memory, soft=TEMPERATURE if own is None else own)
    return replace(program, memory=soft, layout=layout_of(soft, program.spec))


def check_differentiable(program: Program, mode: Mode = "through") -> None:
    """Refuse a program whose answers have no derivative by the stream.

    Raises:
      ValueError: naming the memory, why, and what to change.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    memory, spec = program.memory, program.spec
    if mode == "published" and program.config.stacks:
        raise ValueError(
            'mode "published" cuts what layers that attend put out, but this decoder has layers '
            'with a state; take "through" or "read".'
        )
    if not program.config.attends:
        if mode == "read":
            raise ValueError(
                'mode "read" trains what reads a memory, but no layer of this decoder attends and '
                f'memory {memory.name} has no slots; take "through", which trains the states.'
            )
        return
    if mode == "read":
        return
    if isinstance(memory, FeatureMemory):
        raise ValueError(
            f"memory {memory.name} holds features of frozen encoders and the decoder does not run "
            f'while it watches: nothing of the stream has a gradient; take mode "read".'
        )
    bank = memory.bank(spec)
    if bank is not None and bank.space == "host":
        raise ValueError(
            f"memory {memory.name} has its bank in host memory, which has no derivative: give it "
            'space="device" (--bank.space device), or take mode "read".'
        )
    held = kv_of(shapes(memory, spec)[0].slots).k.dtype
    if not jnp.issubdtype(held, jnp.floating):
        raise ValueError(
            f"memory {memory.name} stores rounded keys and values ({held}), and rounding has no "
            'derivative: train it without bits, or take mode "read".'
        )
