"""Quantised memories: the same decisions, a bounded error, fewer bytes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import LAWS, SPEC, memory_of, standard

from jaxmem.bound import probe_rows
from jaxmem.decoder.step import chunk_step, init_carry, make_program
from jaxmem.kv import VISION
from jaxmem.memory.base import Spec, State, kv_of
from jaxmem.memory.baselines import Full, Recent
from jaxmem.memory.flash_vstream.flash_vstream import FlashVStream
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.sizes import nbytes
from jaxmem.memory.transforms.quantized import Quantized, pack, unpack
from jaxmem.memory.video.rekv import ReKV

INNER = ("recent", "uniform", "random", "omnimem")
SHAPES = ("static_and_ordered", "scan_vmap_and_loop", "padding_and_room")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("law", SHAPES)
@pytest.mark.parametrize("name", INNER)
def test_law(name, law, bits):
    LAWS[law](Quantized(memory_of(name), bits))


def final(memory, chunks=None):
    state, _ = laws.run(memory, memory.init(SPEC), standard() if chunks is None else chunks)
    return jax.device_get(state)


def grids(kept, written, bits):
    """Half a step of every kept entry's grid: what rounding once may cost. Keys, values."""
    low, high = written.k.min(0), written.k.max(0)
    keys = np.broadcast_to((high - low) / (2**bits - 1) / 2, kept.k.shape)
    values = (kept.v.max(-1) - kept.v.min(-1)) / (2**bits - 1) / 2
    return keys, np.broadcast_to(values[..., None], kept.v.shape)


@pytest.mark.parametrize("bits", [8, 4])
def test_keeps_the_same_tokens_and_rounds_them_within_their_grid(bits):
    plain, coded = final(memory_of("recent")), final(Quantized(memory_of("recent"), bits))
    exact, held = kv_of(plain.slots), kv_of(unpack(coded, bits).slots)
    for name in ("pos", "index", "modality"):
        np.testing.assert_array_equal(getattr(held, name), getattr(exact, name))
    real = exact.modality[:, 0] != 0
    flat = laws.stream(sum(laws.CUTS)).tokens
    keys, values = grids(exact, flat, bits)
    # Keys move to a wider grid when a record comes: a few roundings, never many.
    assert np.all(np.abs(held.k - exact.k)[real] <= 4 * keys[real] + 1e-6)
    assert np.all(np.abs(held.v - exact.v)[real] <= 1.01 * values[real] + 1e-6)
    assert np.abs(held.k - exact.k)[real].max() > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_staying_costs_nothing(bits):
    """A token that is read and written a hundred times is rounded once."""
    state = final(Quantized(Full(16), bits), jax.tree.map(lambda x: x[:2], standard()))
    first = state
    step = jax.jit(lambda s: pack(unpack(s, bits), s.aux, bits))
    for _ in range(100):
        state = step(state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), first)


HARD = {
    "ordinary": np.linspace(-1, 1, 8),
    "beyond float16": np.r_[-7e4, np.ones(7)],
    "tiny": np.linspace(-1e-6, 1e-6, 8),
    "below float16": np.linspace(1e-30, 9e-30, 8),
    "a large offset": 1000 + np.linspace(0, 0.4, 8),
    "a larger offset": -60_000 + np.linspace(0, 500, 8),
    "all of bfloat16": np.r_[-3.3e38, 3.3e38, np.linspace(-1e38, 2e38, 6)],
    "one number": np.full(8, 1e-3),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", HARD)
def test_every_range_comes_back_within_half_a_step(name, dtype, bits):
    """Values of a token, and channels of keys over tokens, of all sizes that bfloat16 has."""
    spec = replace(SPEC, layers=1, kv_heads=1, head_dim=8, dtype=dtype)
    x = jnp.asarray(HARD[name], dtype)
    memory, empty = Quantized(Full(8), bits), Full(8).init(spec)
    kv = kv_of(empty.slots)._replace(
        k=jnp.broadcast_to(x[:, None, None], (8, 1, 8)),  # a channel's range is over tokens
        v=jnp.broadcast_to(x[None, None, :], (8, 1, 8)),
        modality=jnp.full((8, 1), VISION, jnp.int8),
    )
    coded = pack(State(empty.slots._replace(kv=kv), empty.aux), memory.init(spec).aux, bits)
    held = unpack(coded, bits).slots.kv
    exact = np.asarray(x, np.float64)
    half = (exact.max() - exact.min()) / (2**bits - 1) / 2
    # The grid point itself is rounded to the model's dtype.
    rounding = np.abs(exact) * (2.0**-8 if dtype == "bfloat16" else 2.0**-23)
    for found in (held.k[:, 0, 0], held.v[0, 0]):
        error = np.abs(np.asarray(found, np.float64) - exact)
        assert np.all(error <= 1.001 * half + rounding)
    assert held.v.dtype == dtype
    again = pack(unpack(coded, bits), coded.aux, bits)
    jax.tree.map(np.testing.assert_array_equal, unpack(again, bits), unpack(coded, bits))


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.53), ("float32", 0.29)])
def test_bytes_follow(dtype, share):
    spec = Spec(layers=4, kv_heads=2, head_dim=64, width=64, chunk=8, dtype=dtype)
    width = jnp.dtype(dtype).itemsize
    for bits in (8, 4):
        coded = lambda n, bits=bits: nbytes(Quantized(Recent(n), bits), spec)
        assert coded(1000) < share * bits / 8 * 1.1 * nbytes(Recent(1000), spec)
        saved = nbytes(Recent(1001), spec) - nbytes(Recent(1000), spec) - coded(1001) + coded(1000)
        codes, ends = 2 * 2 * 64 * bits // 8, 2 * 2 * width
        assert saved == 4 * (2 * 2 * 64 * width - codes - ends)
    codes = kv_of(jax.eval_shape(lambda: Quantized(Recent(1000), 4).init(spec)).slots)
    assert codes.k.dtype == jnp.uint8 and codes.k.shape == (1000, 2, 32)


def test_it_is_to_the_loop_what_its_memory_is():
    """Scope, requirements, bank, prompts and names are those of the memory inside."""
    hermes, rekv = Hermes(32), ReKV(32, capacity=64, block=8)
    for inner in (hermes, rekv, Recent(8)):
        coded = Quantized(inner)
        assert coded.per == inner.per and coded.requires == inner.requires
        assert coded.prompts(("a", "b")) == inner.prompts(("a", "b"))
        assert coded.name == f"{inner.name}_int8"
    asked, own = Quantized(rekv, 4).bank(SPEC), rekv.bank(SPEC)
    assert (asked.capacity, asked.space) == (own.capacity, own.space)
    assert Quantized(Recent(8)) == Quantized(Recent(8), 8) != Quantized(Recent(8), 4)
    assert hash(Quantized(Recent(8))) == hash(Quantized(Recent(8), 8))


@pytest.mark.slow
@pytest.mark.parametrize("make", [Full, Hermes], ids=["layer", "stack"])
def test_outputs_stay_close_in_the_decoder(make):
    cfg = small.config(layers=3)
    weights, rows = small.params(cfg), small.stream_rows(cfg, 3, 8, lengths=[8, 5, 8])
    spec = small.small_spec(cfg, 8)

    def outputs(memory):
        program = make_program(cfg, memory, spec)
        probes = None
        if memory.requires.probes:
            probes = probe_rows(weights, [[1, 2, 3], [4, 5]], program=program)
        one = jax.jit(lambda c, r: chunk_step(weights, program, c, r, None, probes))
        carry = init_carry(program)
        for i in range(3):
            carry, h = one(carry, small.chunk(rows, i))
        return np.asarray(h)

    exact = outputs(make(32))
    error = {b: np.abs(outputs(Quantized(make(32), b)) - exact).max() for b in (8, 4)}
    assert 0 < error[8] < 0.01 * np.ptp(exact)
    assert error[8] < error[4] < 0.15 * np.ptp(exact)


def test_errors_name_the_repair():
    with pytest.raises(ValueError, match="bits to be one of 4, 8, got"):
        Quantized(Full(4), 2)
    with pytest.raises(ValueError, match="memory of keys and values"):
        Quantized(FlashVStream())
    odd = Spec(layers=1, kv_heads=1, head_dim=5, width=5)
    with pytest.raises(ValueError, match="use bits=8"):
        Quantized(Full(4), 4).init(odd)
