"""Where the published cut ends a gradient, nothing is computed for it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import jaxmem as jm
from jaxmem.decoder.gradient import Gradient
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.decoder.stretches import Stretch, cut_at
from jaxmem.memory.base import kv_of

SIZE = 8


@pytest.mark.parametrize("number", range(12))
def test_a_cut_moves_no_layer(number):
    """Every layer is where it was, and no stretch passes from below the number on."""
    state = object()
    order = (Stretch((None,), 2, 0, (0,), 5), Stretch((state, None, state), 3, 2, (0, 2, 1), 4))  # type: ignore[arg-type]
    where = lambda stretches: [
        (place.kind, int(place.layer), int(place.number), place.window)
        for stretch in stretches
        for i in range(stretch.times)
        for place in stretch.places(i)
    ]
    parts = cut_at(order, number)
    assert where(parts) == where(order)
    for part in parts:
        last = part.first + len(part.kinds) * part.times - 1
        assert part.first >= number or last < number
    assert sum(part.times > 0 for part in parts) <= len(order) + 3


MEMORIES = {"recent": jm.Recent(12), "omnimem": jm.OmniMem(12)}


@pytest.mark.parametrize("name", ["recent", pytest.param("omnimem", marks=pytest.mark.slow)])
def test_before_the_last_chunk_upper_layers_cost_their_forward_pass(name):
    """Two layers, so that no loop hides operations from the compiler's count."""
    cfg = small.config(layers=2, axes=1)
    program = make_program(cfg, MEMORIES[name], spec_of(cfg, chunk=SIZE, frame=(2, 2)))
    rows = jax.tree.map(lambda x: np.asarray(x[0]), small.stream_rows(cfg, 1, SIZE))

    def held(params, gradient):
        after, _ = chunk_step(params, program, init_carry(program), rows, gradient=gradient)
        kv = kv_of(after.state.slots)
        return jnp.sum(kv.k) + jnp.sum(kv.v)

    def flops(last):
        of = partial(held, gradient=Gradient(middle=1, last=last))
        compiled = jax.jit(jax.value_and_grad(of)).lower(small.params(cfg)).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(False) < 0.5 * flops(True)
