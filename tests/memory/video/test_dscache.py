"""DSCache: the past up to the last frames, and these encoded apart from it."""

import jax
import numpy as np
import pytest
import small

from jaxmem.decoder.alone import alone
from jaxmem.decoder.driving import driver_of
from jaxmem.kv import valid
from jaxmem.memory.base import Memory
from jaxmem.memory.exchange import Requires
from jaxmem.memory.features.simple_stream import SimpleStream
from jaxmem.memory.sizes import nbytes
from jaxmem.memory.video.dscache import DSCache
from jaxmem.programs import make_program

FRAMES, SLOTS = 2, 12


@pytest.fixture(scope="module")
def watched():
    return small.streamed(DSCache(SLOTS, frames=FRAMES))


def viewed(weights, program, carry):
    """What a question reads in every layer."""
    question = small.chunk(small.stream_rows(program.config, 1, 4, seed=1), 0)
    ask = lambda carry: driver_of(program).ask(weights, carry, question, None, ()).found
    return jax.device_get(jax.jit(ask)(carry))


def test_a_question_reads_the_past_then_the_last_frames_encoded_alone(watched):
    weights, _, program, carry = watched
    view, memory, spec = viewed(weights, program, carry), program.memory, program.spec
    rows = memory.anew(spec, carry.state)
    last = int((rows.modality != 0).sum())
    held = np.asarray(carry.state.slots.kv.index[0, :, 0])
    past = held[: int((carry.state.slots.kv.modality[0] != 0).sum())]
    assert 0 < last < len(past)  # the past goes back further
    _, fresh, _ = jax.jit(lambda r: alone(weights, program, r, None))(rows)
    for layer in range(spec.layers):
        real = np.asarray(valid(view.kv))[layer, :, 0]
        assert real.sum() == len(past) and not real[len(past) :].any()
        np.testing.assert_array_equal(view.kv.index[layer, real, 0], past)  # nothing twice
        older = len(past) - last
        own = carry.state.slots.kv
        np.testing.assert_array_equal(view.kv.k[layer, :older], own.k[layer, :older])
        np.testing.assert_allclose(view.kv.k[layer, older : older + last], fresh.k[layer, :last])
        np.testing.assert_allclose(view.kv.v[layer, older : older + last], fresh.v[layer, :last])
        np.testing.assert_array_equal(view.kv.pos[layer, real, 0, 0], np.arange(len(past)))
        np.testing.assert_array_equal(view.base[layer], len(past))
    # Above the first layer the same frames are something else than in the past, which saw more.
    assert np.abs(np.asarray(own.v[1, older : older + last]) - fresh.v[1, :last]).max() > 0.01


def test_what_is_encoded_anew_is_what_simple_stream_reads(watched):
    _, rows, program, carry = watched
    one, spec = SimpleStream(SLOTS, frames=FRAMES), program.spec
    state, write = one.init(spec), jax.jit(lambda state, chunk: one.write(spec, state, chunk))
    for i in range(rows.x.shape[0]):
        state = write(state, small.chunk(rows, i))
    mine, theirs = program.memory.anew(spec, carry.state), one.read(spec, state)
    for a, b in zip(mine[:4], theirs[:4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_are_counted_in_the_bytes():
    spec = small.small_spec(small.config(axes=1), 8)
    few, more = (nbytes(DSCache(64, frames=n), spec) for n in (1, 2))
    each = nbytes(SimpleStream(64, frames=2), spec) - nbytes(SimpleStream(64, frames=1), spec)
    assert more - few == each > 0


def test_the_last_frames_need_the_loop(watched):
    _, _, program, carry = watched
    with pytest.raises(ValueError, match=r"jaxmem\.ask"):
        program.memory.recall(program.spec, carry.state, None)


def test_rows_are_for_memories_of_the_whole_stack(watched):
    class Wrong(Memory):
        requires = Requires(rows=True)

    program = watched[2]
    with pytest.raises(ValueError, match='use per "stack"'):
        make_program(program.config, Wrong(), program.spec)


@pytest.mark.slow
def test_frames_that_are_all_the_stream_are_full_attention():
    small.assert_full_attention(*small.streamed(DSCache(64, frames=40, reindex=False)))


def test_sizes_are_checked():
    for wrong in ({"budget": 0}, {"budget": 8, "frames": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            DSCache(**wrong)
