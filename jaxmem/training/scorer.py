"""Learning the score of `Retention` for a decoder that is frozen.

Every question is answered over the tokens that the score would have kept of the stream before it;
the choice is a straight-through gate (`kernels.select.gate`), so what was dropped has a gradient,
too. The stream itself is taken as full attention makes it: one pass over it serves all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmem.decoder.decoder import DecoderConfig, finish, logits, qkv
from jaxmem.kernels.select import gate
from jaxmem.kv import EMPTY, KV
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.parts.retained import log_retention
from jaxmem.memory.parts.scored import competition
from jaxmem.rope import rope
from jaxmem.typing import Array, Float, Int, Num, Params


class Examples(NamedTuple):
    """One stream, and n questions at each of M moments; more streams are a leading axis."""

    tokens: KV  # [L, S] of the stream, as full attention makes them
    seen: Int[Any, "M"]  # how many of them came before the moment
    begin: Num[Any, "M A"]  # position where its questions begin
    rows: Embeds  # questions, and answers but for their last token [M, n, R, ...]
    target: Int[Any, "M n R"]  # token that is to follow a row; -1: any


def kept(
    scorer: Params,
    tokens: KV,
    seen: Int[Array, ""],
    quotas: Int[Array, "C"],
    temperature: float = 1.0,
) -> Float[Array, "G S"]:
    """Return 1 for what a layer's heads keep of its first `seen` tokens, else 0, with a gradient.

    Args:
      scorer: weights of the layer.
      tokens: of the layer [S].
      seen: how many tokens came so far.
      quotas: of the budget's parts: (all), or (all but audio, audio).
      temperature: of the gate, in units of the score's logarithm.
    """
    score = log_retention(scorer, tokens.v).T
    there = jnp.arange(score.shape[1], dtype=jnp.int32)[:, None] < seen
    kinds = jnp.where(there, tokens.modality, EMPTY)
    kinds = jnp.broadcast_to(kinds, score.T.shape)
    parts, caps = competition(score, kinds, quotas)
    gates = jax.vmap(partial(gate, temperature=temperature), in_axes=(0, None))(parts, caps)
    return jnp.sum(gates, axis=1)


def answers(
    decoder: Params,
    config: DecoderConfig,
    tokens: KV,
    gates: Float[Array, "L G S"],
    begin: Num[Array, "A"],
    rows: Embeds,
) -> Float[Array, "R V"]:
    """Return the logits after every row of a question over gated tokens.

    Args:
      decoder: weights.
      config: of the decoder.
      tokens: of the stream [L, S].
      gates: what each token's share of attention is multiplied by.
      begin: position where the question begins.
      rows: the question.
    """
    pos = (begin[None] + rows.pos)[:, None]
    later = jnp.arange(len(pos))[:, None] < jnp.arange(len(pos))[None]

    def layer(h: Array, given: tuple[Params, KV, Array]) -> tuple[Array, None]:
        weights, kv, open_ = given
        q, k, v = qkv(weights, config, h)
        q, k = rope(q, pos, config.rope), rope(k, pos, config.rope)
        far = _logits(q, rope(kv.k, kv.pos, config.rope))
        near = jnp.where(later[None, None], -jnp.inf, _logits(q, k))
        top = jnp.maximum(jnp.max(far, -1), jnp.max(near, -1))[..., None]
        top = jax.lax.stop_gradient(top)
        far, near = jnp.exp(far - top) * open_[:, None, None], jnp.exp(near - top)
        total = jnp.sum(far, -1) + jnp.sum(near, -1)
        out = jnp.einsum("grqs,sgd->grqd", far, kv.v) + jnp.einsum("grqs,sgd->grqd", near, v)
        out = (out / total[..., None]).transpose(2, 0, 1, 3).reshape(q.shape)
        return finish(weights, config, h, out.astype(h.dtype)), None

    h, _ = jax.lax.scan(layer, rows.x, (decoder["layers"], tokens, gates))
    return logits(decoder, config, h)


def _logits(q: Float[Array, "Q H D"], k: Float[Array, "S G D"]) -> Float[Array, "G R Q S"]:
    rows, heads, dim = q.shape
    q = q.reshape(rows, k.shape[1], heads // k.shape[1], dim)
    return jnp.einsum("qgrd,sgd->grqs", q, k).astype(jnp.float32) * dim**-0.5


def loss(
    scorer: Params,
    decoder: Params,
    config: DecoderConfig,
    examples: Examples,
    quotas: Int[Array, "C"],
    temperature: float = 1.0,
) -> tuple[Array, Array]:
    """Return the cross-entropy of the answers about one stream, and the share that is right.

    Args:
      scorer: weights of all layers.
      decoder: frozen weights.
      config: of the decoder.
      examples: of one stream.
      quotas: see `kept`.
      temperature: of the gate.
    """

    def moment(seen: Array, begin: Array, rows: Embeds, target: Array) -> tuple[Array, Array]:
        one = lambda s, t: kept(s, t, seen, quotas, temperature)
        gates = jax.vmap(one)(scorer, examples.tokens)
        ask = lambda r: answers(decoder, config, examples.tokens, gates, begin, r)
        score = jax.vmap(ask)(rows)
        chosen = jnp.take_along_axis(score, jnp.maximum(target, 0)[..., None], -1)[..., 0]
        counts = target >= 0
        lost = jnp.where(counts, jax.nn.logsumexp(score, -1) - chosen, 0.0)
        right = jnp.where(counts, jnp.argmax(score, -1) == target, False)
        return jnp.sum(lost), jnp.sum(right)

    found = jax.vmap(moment)(examples.seen, examples.begin, examples.rows, examples.target)
    many = jnp.maximum(jnp.sum(examples.target >= 0), 1)
    return jnp.sum(found[0]) / many, jnp.sum(found[1]) / many


def fit(
    scorer: Params,
    decoder: Params,
    config: DecoderConfig,
    batches: Iterable[tuple[Examples, Int[Any, "C"]]],
    optimizer: optax.GradientTransformation,
    *,
    temperature: float = 1.0,
    report: Callable[[int, float, float], None] = lambda step, loss, right: None,
) -> Params:
    """Return the scorer after one step of the optimizer for every batch.

    Args:
      scorer: first weights, from `init_scorer`.
      decoder: frozen weights.
      config: of the decoder.
      batches: examples of several streams [B, ...], and the budget's parts in slots.
      optimizer: of the scorer's weights.
      temperature: of the gate.
      report: is told the number of the step (from 1), its loss and its share of right answers.

    Raises:
      ValueError: for a decoder with layers that do not attend.
    """
    if config.stacks:
        raise ValueError(
            f"the decoder has {config.layers - config.attends} layers with a state, which see what "
            "a score drops; a scorer is learned for decoders whose layers all attend."
        )

    @jax.jit
    def step(scorer: Params, state: Any, batch: Examples, quotas: Array):
        def mean(scorer: Params) -> tuple[Array, Array]:
            one = lambda b: loss(scorer, decoder, config, b, quotas, temperature)
            return jax.tree.map(jnp.mean, jax.vmap(one)(batch))

        (lost, right), slope = jax.value_and_grad(mean, has_aux=True)(scorer)
        change, state = optimizer.update(slope, state, scorer)
        return optax.apply_updates(scorer, change), state, lost, right

    state = optimizer.init(scorer)
    for i, (batch, quotas) in enumerate(batches, 1):
        scorer, state, lost, right = step(scorer, state, batch, jnp.asarray(quotas, jnp.int32))
        report(i, float(lost), float(right))
    return scorer
