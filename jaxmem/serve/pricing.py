"""What lanes of a program take of the device, before anything is allocated."""

from __future__ import annotations

from functools import partial

import jax

from jaxmem.bound import Bound, bind
from jaxmem.decoder.placing import spread_nbytes
from jaxmem.decoder.program import Program
from jaxmem.models.base import Model
from jaxmem.serve.lanes import lane_shapes
from jaxmem.serve.parts import parts_of
from jaxmem.serve.stepper import lowered_step


def lane_nbytes(model: Model, program: Program) -> tuple[Bound, int]:
    """Return the weights of a program as shapes, and the bytes of one lane's state."""
    bound = jax.eval_shape(partial(bind, program), model.params)
    parts = parts_of(program)
    return bound, spread_nbytes(lane_shapes(program, bound, parts)) // parts


def step_nbytes(model: Model, program: Program, bound: Bound, lanes: int) -> int:
    """Return the bytes that the widest step needs besides states, on all devices; it is compiled.

    Args:
      model: fitted to the size of its frames.
      program: static description.
      bound: weights, or their shapes.
      lanes: B.
    """
    found = lowered_step(model, program, bound, lanes, lanes).compile().memory_analysis()
    temporary = 0 if found is None else found.temp_size_in_bytes  # of one device
    return temporary * (1 if program.mesh is None else program.mesh.size)
