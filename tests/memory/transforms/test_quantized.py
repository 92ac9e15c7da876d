"""Quantised memories: the same decisions, a bounded error, fewer bytes."""

from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import LAWS, SPEC, memory_of, standard

from jaxmem.decoder.step import chunk_step, init_carry, make_program
from jaxmem.loop import probe_rows
from jaxmem.memory.base import kv_of, nbytes
from jaxmem.memory.baselines import Full, Recent
from jaxmem.memory.flash_vstream.flash_vstream import FlashVStream
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.transforms.quantized import Quantized, pack, unpack

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
    for name in ("pos", "order", "kind"):
        np.testing.assert_array_equal(getattr(held, name), getattr(exact, name))
    real = exact.modality[:, 0] != 0
    flat = laws.stream(sum(laws.CUTS)).tokens
    keys, values = grids(exact, flat, bits)
    # Keys move to a wider grid when a record comes: a few roundings, never many.
    assert np.all(np.abs(held.k - exact.k)[real] <= 4 * keys[real] + 1e-6)
    assert np.all(np.abs(held.v - exact.v)[real] <= 1.05 * values[real] + 2e-3)
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


def test_bytes_follow():
    spec = laws.SPEC.__class__(
        layers=4, kv_heads=2, heads=4, head_dim=64, width=64, chunk=8, dtype=jnp.bfloat16
    )
    plain = nbytes(Recent(1000), spec)
    for bits, share in ((8, 0.56), (4, 0.31)):
        coded = nbytes(Quantized(Recent(1000), bits), spec)
        assert coded < share * plain
    tokens = kv_of(jax.eval_shape(lambda: Quantized(Recent(1000), 4).init(spec)).slots)
    assert tokens.k.dtype == jnp.uint8 and tokens.k.shape == (1000, 2, 32)


@pytest.mark.parametrize("make", [Full, partial(Hermes)], ids=["layer", "stack"])
def test_outputs_stay_close_in_the_decoder(make):
    cfg = small.config(layers=3)
    weights, rows = small.params(cfg), small.stream_rows(cfg, 3, 8, lengths=[8, 5, 8])
    spec = small.small_spec(cfg, 8)

    def outputs(memory):
        program = make_program(cfg, memory, spec)
        probes = None
        if memory.requires.probe:
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
    with pytest.raises(ValueError, match="8 or 4 bits"):
        Quantized(Full(4), 2)
    with pytest.raises(ValueError, match="keeps features"):
        Quantized(FlashVStream())
    odd = laws.SPEC.__class__(layers=1, kv_heads=1, heads=1, head_dim=5, width=5)
    with pytest.raises(ValueError, match="use bits=8"):
        Quantized(Full(4), 4).init(odd)
