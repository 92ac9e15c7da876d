"""Flash-VStream in both versions: its two forms, details, published sizes, learned maps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_streams import CFG, FRAMES, SPEC, E, P, chunk, watch
from small import small_spec

from jaxmem.memory.flash_vstream.flash_vstream import FlashVStream
from jaxmem.memory.flash_vstream.flash_vstream_qwen import FlashVStreamQwen, QwenSizes
from jaxmem.memory.flash_vstream.semantic import Maps
from jaxmem.memory.flash_vstream.star import Sizes
from jaxmem.memory.sizes import nbytes

STAR = Sizes(2, 2, 1, 4, 2, 3, 1, 2, buffer=6)
QWEN = QwenSizes(2, 5, 2, bank=6)


def test_star_forms_differ_as_documented():
    """Released: weights restart, the stream's first frames come back. Published: neither."""
    released = watch(FlashVStream(STAR))[-1].slots
    published = watch(FlashVStream(STAR, form="as_published"))[-1].slots
    assert float(jnp.sum(released.weights)) == 4 + 3  # old centres and the last chunk
    assert float(jnp.sum(published.weights)) == len(FRAMES)
    assert np.asarray(released.frames).max() < STAR.temporal
    assert np.asarray(published.frames).min() >= len(FRAMES) - STAR.buffer
    for held in (released, published):
        np.testing.assert_array_equal(held.retrieved, FRAMES[np.asarray(held.frames)])
        np.testing.assert_array_equal(held.spatial[0], FRAMES[-1])
    recent = FRAMES[-STAR.buffer :].reshape(STAR.buffer, -1)
    heavy = np.argsort(-np.asarray(published.weights), kind="stable")[: STAR.retrieved]
    centres = np.asarray(published.temporal).reshape(STAR.temporal, -1)[heavy]
    apart = ((centres[:, None] - recent[None]) ** 2).sum(-1)
    first = len(FRAMES) - STAR.buffer
    np.testing.assert_array_equal(published.frames, first + apart.argmin(-1))


def test_qwen_details_are_frames_of_the_bank_at_their_time():
    memory = FlashVStreamQwen(QWEN, form="as_published")
    state = watch(memory)[-1]
    rows, held = memory.read(SPEC, state), state.slots
    details = np.asarray(rows.x)[: QWEN.details * P].reshape(-1, P, E)
    time = np.asarray(rows.pos)[: QWEN.details * P : P, 0]
    assert (time >= len(FRAMES) - QWEN.bank).all()
    np.testing.assert_array_equal(details, FRAMES[time])
    n = QWEN.details * P
    synopsis = np.asarray(rows.pos)[n:]
    np.testing.assert_array_equal(synopsis[:, 0], np.round(held.times) + n)
    np.testing.assert_array_equal(synopsis[:, 1:], n)
    assert int(rows.advance[0]) == n + QWEN.synopsis
    # Times are those of the stream: their weighted mean is that of all its frames.
    assert float(held.weights.sum()) == len(FRAMES)
    mean = float((held.weights * held.times).sum() / held.weights.sum())
    assert mean == pytest.approx((len(FRAMES) - 1) / 2, abs=1e-4)
    drifted = watch(FlashVStreamQwen(QWEN))[-1].slots.times
    assert float(drifted.max()) <= QWEN.synopsis + 3 - 1


def test_am_rope_numbers_rows_and_columns_of_frames_that_are_not_square():
    spec = replace(SPEC, frame=(2, 4), chunk=16)
    memory = FlashVStreamQwen(QwenSizes((2, 4), 2, 1, bank=4))
    rows = chunk(FRAMES[:3])
    vision = jnp.asarray(FRAMES[:4].reshape(16, E))
    rows = rows._replace(x=vision, pos=jnp.zeros((16, 3), int), modality=jnp.full((16,), 2))
    read = memory.read(spec, memory.write(spec, memory.init(spec), rows))
    pos = np.asarray(read.pos)
    assert int((np.asarray(read.modality) == 2).sum()) == 8 + 2 * 2
    np.testing.assert_array_equal(pos[:8, 1], np.repeat([0, 1], 4))
    np.testing.assert_array_equal(pos[:8, 2], np.tile(np.arange(4), 2))
    np.testing.assert_array_equal(pos[8:, 1:] - 8, [[0, 0], [0, 1]] * 2)  # centres of 1 x 2


def test_default_sizes_are_the_papers():
    memory = FlashVStream(form="as_published")
    spec = small_spec(CFG, 256 * 4, frame=(16, 16))
    rows = jax.eval_shape(lambda: memory.read(spec, memory.init(spec)))
    assert rows.x.shape == (25 + 25 * 16 + 4 * 64, E)  # 681
    qwen = FlashVStreamQwen()
    rows = jax.eval_shape(lambda: qwen.read(spec, qwen.init(spec)))
    assert rows.x.shape == (30 * 256 + 60 * 64, E)  # 11,520
    assert nbytes(qwen, spec) > 512 * (256 + 64) * E * 4


def test_learned_maps_are_weights_in_the_state():
    """They change what the abstract memory takes up; maps that change nothing change nothing."""
    memory, one = FlashVStream(STAR), jnp.eye(E, dtype=jnp.float32)
    zero = jnp.zeros((E,), jnp.float32)
    write = jax.jit(memory.write, static_argnums=0)

    def abstract(maps):
        state = memory.init(SPEC, maps)
        for i in range(2):
            state = write(SPEC, state, chunk(FRAMES[3 * i : 3 * i + 3]))
        return state.slots.abstract

    plain = abstract(None)
    np.testing.assert_allclose(abstract(Maps(one, zero, one, zero)), plain, atol=1e-6)
    flat = abstract(Maps(0 * one, zero, one, zero))  # every frame draws equal attention
    assert float(jnp.max(jnp.abs(flat - plain))) > 1e-2


def test_the_seed_decides_the_draws():
    ends = [watch(FlashVStream(STAR, seed=seed))[-1].slots.temporal for seed in (0, 0, 1)]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_errors_name_the_repair():
    with pytest.raises(ValueError, match="as_released"):
        FlashVStream(form="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as_published"):
        FlashVStreamQwen(form="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divide each other"):
        FlashVStream(Sizes(grid=16, side=6))
    with pytest.raises(ValueError, match="details must be at most synopsis"):
        FlashVStreamQwen(QwenSizes(details=61))
    with pytest.raises(ValueError, match="frames of 256 rows"):
        FlashVStream(Sizes()).init(SPEC)
    with pytest.raises(ValueError, match="positive"):
        FlashVStreamQwen(QwenSizes(bank=0))


@pytest.mark.parametrize("kind", [FlashVStream, FlashVStreamQwen])
def test_a_number_is_no_sizes(kind):
    """Other memories take slots first; these say what they take."""
    with pytest.raises(ValueError, match=r"sizes must be \w*Sizes\(...\), got 64"):
        kind(64)
