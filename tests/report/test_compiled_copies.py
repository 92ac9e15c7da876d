"""No step copies the slots of all layers, and its temporaries do not grow with them."""

import jax
import jax.numpy as jnp
import pytest

from jaxmem.bound import bind
from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.experiments.benchmark.step_model import compiled_step, program_of
from jaxmem.memory import MEMORIES
from jaxmem.report.compiled import inspect
from jaxmem.rope import rope_1d

FAST = ("recent", "omnimem", "hermes")
CHUNK = 32
REBUILT = {"moviechat", "ma_lmm", "memory_vla"}
"""They merge frames: their whole (small) arrays are made anew with every frame."""


def step(name, layers=6, slots=256):
    config = DecoderConfig(layers, 64, 4, 2, 16, 96, 50, rope_1d(16))
    program = program_of(config, name, slots, CHUNK)
    return compiled_step(program, bind(program, init_decoder(config, jax.random.key(0))))[1]


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]
)
def test_no_step_copies_the_slots_of_all_layers(name):
    assert name in REBUILT or step(name).copies == 0


@pytest.mark.parametrize(
    "name", ["recent", *(pytest.param(n, marks=pytest.mark.slow) for n in ("snapkv", "omnimem"))]
)
def test_temporaries_are_those_of_one_layer(name):
    """Four times the layers need no more."""
    few, many = step(name, layers=4).temporaries, step(name, layers=16).temporaries
    assert many < few * 1.1 + 4096


def test_copies_are_counted():
    """Keeping the old array and the new one needs a copy; a write in place needs none."""
    x = jnp.zeros((64, 8))
    both = jax.jit(lambda x: (x, x.at[3].set(1.0)), donate_argnums=0)
    place = jax.jit(lambda x: x.at[3].set(1.0), donate_argnums=0)
    assert inspect(both.lower(x).compile(), x.size).copies >= 1
    assert inspect(place.lower(x).compile(), x.size).copies == 0
    assert inspect(both.lower(x).compile(), x.size + 1).copies == 0
