"""No step copies the slots of all layers, and its temporaries do not grow with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.bound import bind
from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.decoder.program import init_carry
from jaxmem.experiments.benchmark.step_model import chunks_of, compiled_step, program_of
from jaxmem.loop import stream
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import kv_of
from jaxmem.report.compiled import inspect
from jaxmem.rope import rope_1d

FAST = ("recent", "omnimem", "hermes")
CHUNK = 32
REBUILT = {"moviechat", "ma_lmm", "memory_vla"}
"""They merge frames: their whole (small) arrays are made anew with every frame."""
NO_BITS = {"flexmem", "flash_vstream", "flash_vstream_qwen"}
"""They hold the stack of all layers, or features: bfloat16 is copied once a chunk or more."""
EVERY = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]


def decoder(layers, dtype):
    config = DecoderConfig(layers, 64, 4, 2, 16, 96, 50, rope_1d(16))
    params = init_decoder(config, jax.random.key(0))
    return config, jax.tree.map(lambda x: x.astype(dtype), params)


def step(name, layers=6, slots=256, dtype="float32"):
    config, params = decoder(layers, dtype)
    program = program_of(config, name, slots, CHUNK, dtype)
    return compiled_step(program, bind(program, params))[1]


@pytest.mark.parametrize("name", EVERY)
def test_no_step_copies_the_slots_of_all_layers(name):
    assert name in REBUILT or step(name).copies == 0


@pytest.mark.parametrize("name", EVERY)
def test_no_step_in_bfloat16_copies_the_slots_of_all_layers(name):
    """XLA's CPU updates them through float32, all of them for a part, unless they are bits."""
    assert name in REBUILT | NO_BITS or step(name, dtype="bfloat16").copies == 0


def test_bits_are_the_same_stream():
    """As without them, which is how a stream inside another compiled function runs."""
    config, params = decoder(2, "bfloat16")
    program = program_of(config, "recent", 64, CHUNK, "bfloat16")
    bound, chunks = bind(program, params), chunks_of(program, 3)
    found = stream(bound, init_carry(program), chunks, program=program)
    inside = jax.jit(lambda carry, chunks: stream(bound, carry, chunks, program=program))
    plain = inside(init_carry(program), chunks)
    kinds = [(x.dtype, x.shape) for x in jax.tree.leaves(found)]
    assert kinds == [(x.dtype, x.shape) for x in jax.tree.leaves(init_carry(program))]
    for one, two in zip(jax.tree.leaves(found.state), jax.tree.leaves(plain.state), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


@pytest.mark.slow
def test_a_stream_in_bfloat16_has_gradients():
    """Bits have none: what is differentiated does without them, also where weights are not."""
    config, params = decoder(1, "bfloat16")
    program = program_of(config, "recent", 16, 8, "bfloat16")
    chunks = chunks_of(program, 1)

    def held(x):
        carry = stream(params, init_carry(program), chunks._replace(x=x), program=program)
        return jnp.sum(kv_of(carry.state.slots).k.astype(jnp.float32) ** 2)

    assert jnp.any(jax.grad(held)(chunks.x) != 0)


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
