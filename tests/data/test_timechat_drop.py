"""TimeChat-Online's token drop: a plain loop over patches, chunks, and what stands behind it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem import kv as tk
from jaxmem.data.timechat_drop import drop, drop_chunks, start
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.loop import stream
from jaxmem.memory.baselines import Full
from jaxmem.memory.exchange import Embeds

FRAME, WIDTH = 4, 5
KINDS = (tk.TEXT, *[tk.VISION] * FRAME, tk.AUDIO, tk.AUDIO)


def video(frames, seed=0, keep=0.6):
    """Return kinds [N] and features [N, E]; a patch stays about the same with chance `keep`."""
    rng = np.random.default_rng(seed)
    kind = np.tile(np.asarray(KINDS, np.int8), frames)
    x = rng.normal(size=(len(kind), WIDTH)).astype(np.float32)
    patches = np.flatnonzero(kind == tk.VISION).reshape(frames, FRAME)
    for now, before in zip(patches[1:], patches[:-1], strict=True):
        still = rng.random(FRAME) < keep
        x[now[still]] = x[before[still]] + 0.1 * rng.normal(size=(still.sum(), WIDTH))
    return kind, x, patches


def chunks_of(kind, x, cuts, size):
    """Return rows cut into chunks of `size`, with numbers in the padding that nothing may read."""
    out, begin = [], 0
    for cut in cuts:
        pad = lambda a, fill, b=begin, n=cut: np.concatenate(
            [a[b : b + n], np.full((size - n, *a.shape[1:]), fill, a.dtype)]
        )
        rel = np.arange(cut, dtype=np.int32)[:, None]
        rel = np.concatenate([rel, np.full((size - cut, 1), 77, np.int32)])
        out.append(
            Embeds(pad(x, 9.0), rel, pad(kind, 0), np.array([cut], np.int32), pad(x, 9)[None])
        )
        begin += cut
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *out)


def survivors(kind, x, patches, method, threshold):
    """Return the rows that are left, by a loop over frames and patches."""
    dropped = set()
    for now, before in zip(patches[1:], patches[:-1], strict=True):
        for a, b in zip(now, before, strict=True):
            cosine = x[a] @ x[b] / (np.linalg.norm(x[a]) * np.linalg.norm(x[b]))
            apart = np.mean(np.abs(x[a] - x[b]))
            if cosine > threshold if method == "feature" else apart < threshold:
                dropped.add(int(a))
    return [i for i in range(len(kind)) if i not in dropped]


def left(rows):
    """Return the features and places of all real rows of chunks."""
    real = np.asarray(rows.modality) != tk.EMPTY
    begin = np.cumsum(np.asarray(rows.advance)) - np.asarray(rows.advance)[:, 0]
    return np.asarray(rows.x)[real], (np.asarray(rows.pos)[..., 0] + begin[:, None])[real]


@pytest.mark.parametrize(("method", "threshold"), [("feature", 0.9), ("pixel", 0.15)])
@pytest.mark.parametrize("cuts", [(7,) * 6, (10, 0, 3, 12, 1, 16)])
def test_a_plain_loop_drops_the_same(method, threshold, cuts):
    """However the stream is cut into chunks, frames in the middle included."""
    kind, x, patches = video(6)
    rows, last = jax.jit(partial(drop_chunks, method=method, threshold=threshold))(
        chunks_of(kind, x, cuts, 16), start(FRAME, WIDTH)
    )
    want = survivors(kind, x, patches, method, threshold)
    assert len(kind) - 20 < len(want) < len(kind) - 5, "the case tests nothing"
    features, places = left(rows)
    np.testing.assert_array_equal(places, want)
    np.testing.assert_array_equal(features, x[want])
    np.testing.assert_array_equal(last.x, x[patches[-1]])
    for rows_k, real in zip(np.asarray(rows.x), np.asarray(rows.modality) != 0, strict=True):
        assert (np.diff(real.astype(int)) <= 0).all(), "padding is not last"
        assert not rows_k[~real].any()
    np.testing.assert_array_equal(rows.deepstack[:, 0], rows.x)
    np.testing.assert_array_equal(rows.advance[:, 0], cuts)


def test_relative_drops_a_part_of_what_can_be_compared():
    kind, x, patches = video(4)
    rows = jax.tree.map(lambda a: a[0], chunks_of(kind, x, [28], 30))
    after, _ = drop(rows, start(FRAME, WIDTH), method="feature", threshold=0.5, relative=True)
    cosine = {}
    for now, before in zip(patches[1:], patches[:-1], strict=True):
        for a, b in zip(now, before, strict=True):
            cosine[a] = x[a] @ x[b] / (np.linalg.norm(x[a]) * np.linalg.norm(x[b]))
    dropped = sorted(cosine, key=lambda i: -cosine[i])[: len(cosine) // 2]
    want = np.setdiff1d(np.arange(28), dropped)
    np.testing.assert_array_equal(np.asarray(after.pos)[np.asarray(after.modality) != 0, 0], want)


def test_pixels_may_be_compared_for_other_rows():
    """Features that move do not matter where the picture stands still."""
    kind, x, _ = video(3, keep=0.0)
    rows = jax.tree.map(lambda a: a[0], chunks_of(kind, x, [21], 21))
    pixels = jnp.ones((21, 2))
    after, _ = drop(rows, start(FRAME, 2), method="pixel", threshold=0.01, pixels=pixels)
    assert int(jnp.sum(after.modality == tk.VISION)) == FRAME
    assert int(jnp.sum(after.modality == tk.AUDIO)) == 6


def test_in_front_of_a_memory():
    """A question over a filtered stream is one over its survivors, at the places they had."""
    cfg = small.config(axes=1)
    weights = small.params(cfg)
    rows = small.stream_rows(cfg, 3, 8, lengths=[8, 5, 7])
    x = rows.x.at[1:].set(rows.x[:-1])  # what stood still, stands still
    rows = rows._replace(x=x, modality=jnp.where(rows.modality == 0, 0, tk.VISION).astype(jnp.int8))
    kept, _ = drop_chunks(rows, start(8, cfg.width), method="feature", threshold=0.99)
    many = int(jnp.sum(kept.modality != 0))
    assert 8 <= many < 20

    program = make_program(cfg, Full(32), spec_of(cfg, chunk=8))
    carry = stream(weights, init_carry(program), kept, program=program)
    small.assert_full_attention(weights, kept, program, carry)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hash", "threshold": 0.5}, "hash"),
        ({"method": "feature", "threshold": 1.5, "relative": True}, "part"),
        ({"method": "pixel", "threshold": 0.5, "pixels": jnp.ones((3, WIDTH))}, "compared are"),
        ({"method": "pixel", "threshold": 0.5, "pixels": jnp.ones((21, 2))}, "compared are"),
    ],
)
def test_wrong_options_are_refused(options, message):
    kind, x, _ = video(3)
    rows = jax.tree.map(lambda a: a[0], chunks_of(kind, x, [21], 21))
    with pytest.raises(ValueError, match=message):
        drop(rows, start(FRAME, WIDTH), **options)
    with pytest.raises(ValueError, match="frame=0"):
        start(0, WIDTH)
