"""No step copies the slots of all layers, and its temporaries do not grow with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from rebuilt import REBUILT

from jaxmem.bound import bind
from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.decoder.program import init_carry
from jaxmem.experiments.benchmark.step_model import chunks_of, compiled_step, program_of
from jaxmem.loop import stream
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import kv_of
from jaxmem.report.compiled import collectives, inspect, large
from jaxmem.rope import rope_1d

FAST = ("recent", "omnimem", "hermes")
CHUNK = 32
NO_BITS = {"flexmem", "dscache", "flash_vstream", "flash_vstream_qwen"}
"""They hold the stack of all layers, or features: bfloat16 is copied once a chunk or more."""
EVERY = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]


def decoder(layers, dtype):
    config = DecoderConfig(layers, 64, 4, 2, 16, 96, 50, rope_1d(16))
    params = small.scored(init_decoder(config, jax.random.key(0)), config)
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


FUSED = """
%update (a: f32[64,8], b: f32[8], c: s32[]) -> f32[64,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %c = s32[] parameter(2)
  %row = f32[1,8]{1,0} bitcast(%b)
  %old = f32[1,8]{1,0} dynamic-slice(%a, %c, %READ), dynamic_slice_sizes={1,8}
  %new = f32[1,8]{1,0} add(%old, %row)
  ROOT %out = f32[64,8]{1,0} dynamic-update-slice(%a, %new, %c, %c)
}

ENTRY %main (x: f32[64,8], y: f32[8], i: s32[]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %i = s32[] parameter(2), metadata={op_name="copy(x)"}
  %start = (f32[64,8]{1,0}, /*index=1*/f32[64,8]{1,0}, u32[]) copy-start(%x)
  %done = f32[64,8]{1,0} copy-done(%start)
  ROOT %fusion = f32[64,8]{1,0} fusion(%done, %y, %i), kind=kLoop, calls=%update
}
"""


class Text:
    """Stands for a program that was compiled for a GPU."""

    def __init__(self, text):
        self.as_text = lambda: text

    def memory_analysis(self):
        return type("Memory", (), {"temp_size_in_bytes": 0})


def test_a_fusion_copies_unless_it_updates_in_place():
    """It reads what it replaces, or another part, which the update may have reached before."""
    place, other = (Text(FUSED.replace("%READ", at)) for at in ("%c", "%b"))
    assert inspect(place, 512) == (1, 0, 0)  # the asynchronous copy
    assert inspect(other, 512).rewritten == 1
    assert inspect(Text(FUSED.replace("dynamic-update-slice(%a", "copy(%a")), 512)[::2] == (2, 0)
    assert inspect(Text(FUSED.replace("dynamic-update-slice(%a", "tanh(%a")), 512).rewritten == 1
    assert inspect(other, 513) == (0, 0, 0)
    assert large(place, 512) == {"f32[64,8]": 5} and large(place, 513) == {}
    assert collectives(place) == []
    assert collectives(Text("  %r = (f32[8]) all-reduce-start(%x)\n")) == ["all-reduce"]


def test_what_is_written_anew_is_counted():
    x = jnp.zeros((64, 8))
    whole = jax.jit(lambda x: jnp.tanh(x) + 1.0, donate_argnums=0).lower(x).compile()
    assert inspect(whole, x.size).rewritten == 1
    assert inspect(whole, x.size + 1).rewritten == 0
