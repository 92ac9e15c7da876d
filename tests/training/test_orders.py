"""A layer's state depends on the layers below it: of every mixer, through the streaming loop."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import small

from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.loop import stream
from jaxmem.memory.baselines import Recent
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.feed_forward import FeedForward
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.linear import LinearAttention
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.mixers.mom import MoM
from jaxmem.mixers.titans import Titans
from jaxmem.training.orders import legal
from jaxmem.training.remat import SCHEMES

MIXERS = (
    Mamba2(2, 4, 3, block=4), LinearAttention(2, 8, block=4), GatedDelta(2, 2, 3, 4, block=4),
    MoM(2, 4, block=4), Titans(2, 4, 2, rows=4), FeedForward(7),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: m.name)
def test_layers_above_change_nothing_below(mixer):
    config = replace(small.config(axes=1), mixers=(mixer, mixer))
    params = small.params(config)
    other = jax.tree.map(lambda x: x.at[1].multiply(1.5), params["mixers"])
    program = make_program(config, Recent(1, sinks=0), spec_of(config, chunk=8))
    rows = small.stream_rows(config, 3, 8, lengths=[8, 5, 7])
    found = [
        stream(p, init_carry(program), rows, program=program).states[0]
        for p in (params, {**params, "mixers": other})
    ]
    leaves = [jax.tree.leaves(one) for one in found]
    same = [
        [np.array_equal(a[layer], b[layer]) for a, b in zip(*leaves, strict=True)]
        for layer in (0, 1)
    ]
    assert all(same[0]) and not (same[1] and all(same[1]))  # `FeedForward` has no state
    assert legal(mixer) == SCHEMES


def test_every_mixer_is_here():
    found = {one for one in Mixer.__subclasses__() if one.__module__.startswith("jaxmem.")}
    assert {type(m) for m in MIXERS} == found
