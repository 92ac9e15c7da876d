"""A small random decoder, a random stream, and the plain one-pass forward they are checked with."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import rope as rp
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.scorer import add_scorer, init_scorer
from jaxmem.loop import stream
from jaxmem.memory.base import Spec
from jaxmem.memory.exchange import Embeds
from jaxmem.models.tiny import tiny


def config(layers=2, axes=3, qk_norm=True, bias=False, activation="swiglu"):
    rope = rp.mrope_interleaved(16, 1e4, (4, 2, 2)) if axes == 3 else rp.rope_1d(16)
    return dec.DecoderConfig(
        layers, 24, 4, 2, 16, 32, 29, rope, activation=activation, qk_norm=qk_norm, qkv_bias=bias
    )


def tiny_spec():
    """The geometry of the embedded model's streams, in four layers and chunks of a second."""
    return Spec(
        layers=4,
        kv_heads=2,
        head_dim=32,
        width=128,
        axes=3,
        chunk=20,
        step=(1, 0, 0),
        rope=tiny.decoder_config(tiny.TinyConfig()).rope,
        frame=(4, 4),
        audio_tokens=4,
    )


def options(size):
    """Options by memory that fit twelve slots, frames of four tokens and chunks of `size`."""
    return {
        "rekv": {"block": 4, "topk": 2, "sinks": 2},
        "flexmem": {"clip": size + 3, "shallow": 1},
        "snapkv": {"window": 3},
        "criticalkv": {"window": 3},
        "adakv": {"window": 3},
        "streaming_llm": {"sinks": 2},
    }


initial = jax.jit(dec.init_decoder, static_argnums=0)
"""Compiled once for a config, whichever test asks first."""


def params(cfg, seed=0):
    """Random weights, biases included, so that nothing is zero by accident.

    They are drawn by NumPy: initialising a decoder operation by operation compiles each of them.
    So does `jnp.asarray` for every shape, and `jax.device_put` for none.
    """
    rng = np.random.default_rng(seed)
    if cfg.stacks:  # a mixer's weights have ranges of their own
        base = initial(cfg, jax.random.key(seed))
        noisy = lambda x: np.asarray(x) + (0.1 * rng.normal(size=x.shape)).astype(x.dtype)
        return jax.device_put(jax.tree.map(noisy, base))
    shapes = jax.eval_shape(partial(dec.init_decoder, cfg), jax.random.key(0))

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape)
        if name == "scale":
            return (1 + 0.1 * noise).astype(leaf.dtype)
        fan = {"kernel": leaf.shape[-2], "embedding": leaf.shape[-1]}.get(name)
        return (np.hypot(fan**-0.5 if fan else 0, 0.1) * noise).astype(leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def scored(weights, cfg, seed=0):
    """Weights with a random scorer, for the memories that read one."""
    return add_scorer(weights, init_scorer(cfg, jax.random.key(seed)))


def stream_rows(cfg, chunks, size, *, seed=0, lengths=None):
    """`chunks` chunks of `size` rows, `lengths[i]` of them real: kinds of a video with sound."""
    rng = np.random.default_rng(seed)
    lengths = [size] * chunks if lengths is None else lengths
    axes = cfg.rope.axes
    x = rng.normal(size=(chunks, size, cfg.width)).astype(np.float32)
    kind = rng.choice([1, 2, 2, 2, 3], size=(chunks, size)).astype(np.int8)
    rel = np.zeros((chunks, size, axes), np.int32)
    span = np.zeros((chunks, axes), np.int32)
    for i, n in enumerate(lengths):
        kind[i, n:] = 0
        rel[i, :, 0] = np.arange(size) // 4 if axes == 3 else np.arange(size)
        if axes == 3:
            rel[i, :, 1:] = rng.integers(0, 4, (size, 2))
        span[i] = rel[i, :n, 0].max(initial=-1) + 1
    return Embeds(*jax.device_put((x, rel, kind, span)))


def chunk(rows, i):
    return jax.tree.map(lambda x: x[i], rows)


def flat(rows):
    """All real rows of a stream in one list, with absolute positions, and where it ends."""
    base = np.concatenate([np.zeros((1, rows.advance.shape[1])), np.cumsum(rows.advance, 0)])
    xs, pos = [], []
    for i in range(rows.x.shape[0]):
        real = np.asarray(rows.modality[i]) != 0
        xs.append(np.asarray(rows.x[i])[real])
        pos.append(np.asarray(rows.pos[i])[real] + base[i])
    return np.concatenate(xs), np.concatenate(pos), base[-1]


@partial(jax.jit, static_argnames="cfg")
def one_pass(weights, cfg, x, pos):
    """The last layer's output [N, E] of plain causal attention over everything."""
    h, n = jnp.asarray(x), len(x)
    causal = jnp.tril(jnp.ones((n, n), bool))[None]
    for l in range(cfg.layers):
        layer = dec.layer_at(weights, l)
        q, k, v = dec.qkv(layer, cfg, h)
        q, k = (rp.rope(z, jnp.asarray(pos)[:, None], cfg.rope) for z in (q, k))
        k, v = (jnp.repeat(z, cfg.heads // cfg.kv_heads, 1) for z in (k, v))
        z = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(cfg.head_dim)
        a = jax.nn.softmax(jnp.where(causal, z, -jnp.inf), -1)
        h = dec.finish(layer, cfg, h, jnp.einsum("hqk,khd->qhd", a, v))
    return h


def small_spec(cfg, size, **more):
    return spec_of(cfg, chunk=size, **more)


def streamed(memory):
    """Stream twenty rows in three chunks through a memory; return weights, rows, program, carry."""
    cfg = config(axes=1)
    weights, rows = params(cfg), stream_rows(cfg, 3, 8, lengths=[8, 5, 7])
    program = make_program(cfg, memory, spec_of(cfg, chunk=8))
    return weights, rows, program, stream(weights, init_carry(program), rows, program=program)


prefilled = partial(jax.jit, static_argnames=("program", "room"))(prefill)


def asked_in_one_pass(weights, cfg, rows):
    """Return a question, and its output in one pass over all rows of a stream and itself."""
    question = chunk(stream_rows(cfg, 1, 4, seed=1), 0)
    x, pos, end = flat(rows)
    x, pos = np.concatenate([x, question.x]), np.concatenate([pos, np.asarray(question.pos) + end])
    return question, one_pass(weights, cfg, x, pos)[-4:]


def assert_full_attention(weights, rows, program, carry):
    """Assert that a question after a stream is answered as by one pass over all of its rows."""
    question, want = asked_in_one_pass(weights, program.config, rows)
    _, h = prefilled(weights, program, carry, question, room=1)
    np.testing.assert_allclose(h, want, atol=1e-4)
