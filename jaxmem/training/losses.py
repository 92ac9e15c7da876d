"""Many questions per stream in one forward pass, and the loss of their answers.

Stream tokens attend to earlier stream tokens and never see a question. A question's words attend
to the stream up to the question's time and to its own earlier words. That is exactly what the
streaming path computes with a memory that keeps everything, with the same layer functions. Where a
layer has a state, a question goes on from a copy of the state at its time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import embed, finish, layer_at, linear, logits, qkv, rms_norm
from jaxmem.memory.base import at_layer
from jaxmem.models.tiny import tiny
from jaxmem.rope import angles, rotate
from jaxmem.training.batches import Batch
from jaxmem.training.states import through_state
from jaxmem.typing import Array, Float, Params

CHUNK = 160  # rows of causal attention done at once: later keys are never touched
EMPTY_WEIGHT = 0.05  # of patches and pieces that show nothing, in the auxiliary loss
HIDDEN = -1e9  # logit of what may not be seen


class Metrics(NamedTuple):
    """What one batch says."""

    loss: Array  # of the answers
    auxiliary: Array  # of the encoders
    accuracy: Array


def init_auxiliary(config: tiny.TinyConfig, key: Array) -> Params:
    """Linear heads that name what a hidden vector shows. Used in training only.

    Without the heads on the encoders' outputs the pictures are hardly learned at all; without the
    one on the decoder's ("number") counting beyond one is not.
    """
    names = {
        "colour": 1 + len(tiny.COLOURS),
        "glyph": 3 + len(tiny.SHAPES),
        "sound": 1 + len(tiny.SOUNDS),
        "number": 4,
    }
    keys = jax.random.split(key, len(names))
    return {
        name: {"kernel": jax.random.normal(k, (config.width, n)) / np.sqrt(config.width)}
        for k, (name, n) in zip(keys, names.items(), strict=True)
    }


def _heads_first(x: Float[Array, "B T H D"], groups: int) -> Float[Array, "B G R T D"]:
    b, t, h, d = x.shape
    return x.reshape(b, t, groups, h // groups, d).transpose(0, 2, 3, 1, 4)


def _heads_last(x: Float[Array, "B G R T D"]) -> Float[Array, "B T H D"]:
    b, g, r, t, d = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(b, t, g * r, d)


def _scores(q: Float[Array, "B G R T D"], k: Float[Array, "B G S D"]) -> Array:
    b, g, r, t, d = q.shape
    flat = jnp.einsum("bgtd,bgsd->bgts", q.reshape(b, g, r * t, d), k)
    return flat.reshape(b, g, r, t, -1) / np.sqrt(d)


def _weighted(p: Float[Array, "B G R T S"], v: Float[Array, "B G S D"]) -> Array:
    b, g, r, t, s = p.shape
    out = jnp.einsum("bgts,bgsd->bgtd", p.reshape(b, g, r * t, s), v)
    return out.reshape(b, g, r, t, -1)


def causal(q: Float[Array, "B G R T D"], k: Float[Array, "B G T D"], v: Array) -> Array:
    """Causal attention over the stream, in chunks of rows; only the last block needs a mask."""
    t = q.shape[3]
    out = []
    for begin in range(0, t, CHUNK):
        end = min(begin + CHUNK, t)
        rows = q[..., begin:end, :]
        hidden = np.triu(np.ones((end - begin, end - begin), bool), 1)
        near = _scores(rows, k[:, :, begin:end])
        near = jnp.where(hidden[None, None, None], HIDDEN, near)
        top = near.max(-1, keepdims=True)
        far = _scores(rows, k[:, :, :begin]) if begin else None
        if far is not None:
            top = jnp.maximum(top, far.max(-1, keepdims=True))
        top = jax.lax.stop_gradient(top)
        p = jnp.exp(near - top)
        mixed, total = _weighted(p, v[:, :, begin:end]), p.sum(-1, keepdims=True)
        if far is not None:
            p = jnp.exp(far - top)
            mixed, total = mixed + _weighted(p, v[:, :, :begin]), total + p.sum(-1, keepdims=True)
        out.append(mixed / total)
    return jnp.concatenate(out, 3)


def asked(
    q: Float[Array, "B G R QW D"], k: Array, v: Array, own_k: Array, own_v: Array, known: Array
) -> Array:
    """Attention of Q questions of W words over the stream and over their own earlier words.

    Args:
        q: rotated queries of the questions' words.
        k, v: [B, G, S, D] of the stream.
        own_k, own_v: [B, G, QW, D] of the words.
        known: bool [B, Q, S], what of the stream each question may see.
    """
    b, g, r, rows, d = q.shape
    n = known.shape[1]
    w = rows // n
    far = _scores(q, k).reshape(b, g, r, n, w, -1)
    far = jnp.where(known[:, None, None, :, None], far, HIDDEN)
    words = q.reshape(b, g, r, n, w, d)
    own_k, own_v = (x.reshape(b, g, n, w, d) for x in (own_k, own_v))
    near = jnp.einsum("bgrnwd,bgnud->bgrnwu", words, own_k) / np.sqrt(d)
    later = np.arange(w)[None, :] > np.arange(w)[:, None]
    near = jnp.where(later[None, None, None, None], HIDDEN, near)
    top = jnp.maximum(far.max(-1, keepdims=True), near.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    far, near = jnp.exp(far - top), jnp.exp(near - top)
    total = far.sum(-1, keepdims=True) + near.sum(-1, keepdims=True)
    out = _weighted(far.reshape(b, g, r, rows, -1), v).reshape(b, g, r, n, w, d)
    out = out + jnp.einsum("bgrnwu,bgnud->bgrnwd", near, own_v)
    return (out / total).reshape(b, g, r, rows, d)


def forward(
    params: Params, config: tiny.TinyConfig, batch: Batch
) -> tuple[Float[Array, "B Q V"], tuple[Array, Array, Array]]:
    """Answer logits, and hidden vectors of the stream for `auxiliary_loss`.

    The latter are the encoders' outputs (vision [B, F, 16, E], audio [B, F, 4, E]) and what the
    last layer reads of the stream [B, F, 20, E].
    """
    decoder, weights = tiny.decoder_config(config), params["decoder"]
    b, f = batch.begin.shape
    n, w = batch.ids.shape[1:]
    groups = config.kv_heads
    seen, vision = tiny.vision_stem(
        params, config, batch.frames.reshape(b * f, *batch.frames.shape[2:])
    )
    heard, audio = tiny.audio_stem(
        params, config, batch.logmel.reshape(b * f, *batch.logmel.shape[2:])
    )
    x, rel, _, _ = tiny.layout(config, vision, audio)
    x = x.reshape(b, f * config.tokens, config.width)

    begin = jnp.stack([batch.begin, 0 * batch.begin, 0 * batch.begin], -1)
    pos = (begin[:, :, None] + rel[None, None]).reshape(b, -1, 3)
    last = jnp.take_along_axis(begin, (batch.time - 1)[:, :, None], 1)
    word = jnp.asarray(tiny.question_positions(w) + np.array([[tiny.TICKS, 0, 0]], np.int32))
    word_pos = (last[:, :, None] + word[None, None]).reshape(b, n * w, 3)
    turn, word_turn = (angles(decoder.rope, p)[:, :, None] for p in (pos, word_pos))
    second = np.arange(f * config.tokens) // config.tokens
    known = second[None, None, :] < batch.time[:, :, None]

    # Rows of all streams lie in one [N, E] matrix between attentions: twice as fast on a CPU.
    h = x.reshape(-1, config.width)
    q_h = embed(weights, batch.ids).reshape(-1, config.width)

    def side(x: Array, angle: Array | None = None) -> Array:
        x = x.reshape(b, -1, *x.shape[1:])
        return _heads_first(x if angle is None else rotate(x, angle), groups)

    for index, kind in enumerate(decoder.kinds):
        number = decoder.kinds[:index].count(kind)
        if kind is not None:
            layer = at_layer(weights["mixers"][decoder.stacks.index(kind)], number)
            after, q_h = through_state(layer, decoder, kind, h, q_h, batch.time, f)
            h = after if index + 1 < config.layers else h
            continue
        layer = layer_at(weights, number)
        q, k, v = qkv(layer, decoder, h)
        k, v = side(k, turn)[:, :, 0], side(v)[:, :, 0]
        own_q, own_k, own_v = qkv(layer, decoder, q_h)
        own_k, own_v = side(own_k, word_turn)[:, :, 0], side(own_v)[:, :, 0]
        mixed = asked(side(own_q, word_turn), k, v, own_k, own_v, known)
        q_h = finish(layer, decoder, q_h, _heads_last(mixed).reshape(-1, *own_q.shape[1:]))
        if index + 1 < config.layers:  # nobody reads the stream side of the last layer
            mixed = causal(side(q, turn), k, v)
            h = finish(layer, decoder, h, _heads_last(mixed).reshape(-1, *q.shape[1:]))
    at = batch.ask[:, :, None, None]
    rows = jnp.take_along_axis(q_h.reshape(b, n, w, -1), at, 2)[:, :, 0]
    plain = {"scale": jnp.ones((config.width,))}
    hidden = rms_norm(h, plain, decoder.norm_eps).reshape(b, f, -1, config.width)
    seen, heard = (x.reshape(b, f, *x.shape[1:]) for x in (seen, heard))
    return logits(weights, decoder, rows), (seen, heard, hidden)


def cross_entropy(score: Float[Array, "*N V"], target: Array) -> Float[Array, "*N"]:
    """-log p(target)."""
    chosen = jnp.take_along_axis(score, target[..., None], -1)[..., 0]
    return jax.nn.logsumexp(score, -1) - chosen


def auxiliary_loss(heads: Params, features: tuple[Array, Array, Array], batch: Batch) -> Array:
    """Loss of naming colour, glyph and sound (encoders) and the number of times (decoder)."""
    seen, heard, hidden = features
    total = jnp.zeros(())
    for name, x, label, empty, share in (
        ("colour", seen, batch.colour, EMPTY_WEIGHT, 1 / 3),
        ("glyph", seen, batch.glyph, EMPTY_WEIGHT, 1 / 3),
        ("sound", heard, batch.sound, EMPTY_WEIGHT, 1 / 3),
        ("number", hidden, batch.number, 0.0, 1.0),
    ):
        loss = cross_entropy(linear(x, heads[name]), jnp.maximum(label, 0))
        weight = jnp.where(label > 0, 1.0, jnp.where(label == 0, empty, 0.0))
        total += share * (loss * weight).sum() / (weight.sum() + 1e-6)
    return total


def loss(
    trained: Params, config: tiny.TinyConfig, batch: Batch, auxiliary_weight: float
) -> tuple[Array, Metrics]:
    """Loss of {"model": ..., "auxiliary": ...} on a batch."""
    score, features = forward(trained["model"], config, batch)
    answer = cross_entropy(score, batch.answer).mean()
    auxiliary = auxiliary_loss(trained["auxiliary"], features, batch)
    right = (score.argmax(-1) == batch.answer).mean()
    return answer + auxiliary_weight * auxiliary, Metrics(answer, auxiliary, right)
