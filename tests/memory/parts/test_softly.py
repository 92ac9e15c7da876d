"""Soft selection: the choice is the hard one, its gradient that of finite differences."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import SPEC

from jaxmem.kv import AUDIO, EMPTY, VISION
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.omnimem import omnimem
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.parts import scored, softly
from jaxmem.memory.parts.scored import Scored

T, SLOTS = 6, 5
WIDE = replace(SPEC, dtype="float64", axes=1, step=None)
KINDS = np.array([VISION, AUDIO, VISION, VISION, AUDIO, EMPTY], np.int8)


@dataclass(frozen=True)
class Longest(Scored):
    """Keeps the keys of the largest square, in the dtype of the keys."""

    def score(self, candidates):
        return jnp.sum(jnp.square(candidates.kv.k), axis=-1).T


MEMORIES = {
    "omnimem": OmniMem(SLOTS, lam=0.0, audio_share=0.4, soft=0.3),
    "additive": OmniMem(SLOTS, lam=0.0, audio_share=None, form="sum", soft=0.3),
    "per_head": Longest(SLOTS, audio_share=0.4, soft=2.0),
}


def read(memory, params, rows):
    """Return what a question reads after three chunks of one layer: attention, written out."""
    state = memory.init(WIDE)
    groups = memory.kv(state).modality.shape[1]
    kinds, t = jnp.asarray(KINDS)[:, None], jnp.arange(T, dtype=jnp.int32)[:, None]
    spread = lambda x: jnp.broadcast_to(x, (T, groups))
    for number, x in enumerate(rows):
        x = jnp.where(kinds != EMPTY, x, 0)
        k, v = (jnp.einsum("te,egd->tgd", x, params[name]) for name in ("k", "v"))
        kv = WIDE.empty(T, groups)._replace(k=k, v=v, modality=spread(kinds))
        kv = kv._replace(index=spread(number * (T + 1) + t))
        state, _ = memory.write(WIDE, state, Chunk(kv, jnp.zeros(1, jnp.int32), hidden=x))
    view = memory.view(WIDE, state, None)
    logits = jnp.einsum("gd,ngd->ng", params["q"], view.kv.k)
    logits += 0.0 if view.bias is None else view.bias
    weight = jax.nn.softmax(jnp.where(view.kv.modality != EMPTY, logits, -jnp.inf), axis=0)
    return jnp.sum(jnp.einsum("ng,ngd->gd", weight, view.kv.v) * params["o"])


class Surrogate:
    """The estimator as a plain function: gates whose choice, threshold and value stay as noted."""

    def __init__(self):
        self.noted, self.at = [], None

    def log_gate(self, scores, caps, *, temperature):
        """The logarithm of the gates [..., N] of scores [..., C, N]."""
        if self.at is None:
            self.noted.append(note(np.asarray(scores), np.asarray(caps), temperature))
            chosen, lowest, contested, before = self.noted[-1]
        else:
            chosen, lowest, contested, before = self.noted[self.at]
            self.at += 1
        move = jax.nn.sigmoid((jnp.where(chosen, scores, 0.0) - lowest) / temperature) - before
        return jnp.sum(jnp.where(chosen & contested, jnp.log(1 + move), 0.0), axis=-2)

    def gates_of(self, score, modality, quotas, soft):
        ranked, lent = scored.competition(score, modality, quotas)
        return self.log_gate(ranked, lent, temperature=soft).T


def note(scores, caps, temperature):
    """What is chosen by sorting, the lowest chosen score, whether any is dropped, the sigmoids."""
    place = np.argsort(np.argsort(-scores, axis=-1), axis=-1)
    able = scores > -np.inf
    chosen = able & (place < caps[:, None])
    lowest = np.where(chosen, scores, np.inf).min(axis=-1, keepdims=True)
    lowest = np.where(np.isfinite(lowest), lowest, 0.0)
    contested = able.sum(axis=-1, keepdims=True) > caps[:, None]
    away = np.where(chosen, scores, 0.0) - lowest
    return chosen, lowest, contested, 1 / (1 + np.exp(-away / temperature))


NAMES = [pytest.param(n, marks=pytest.mark.slow) if n != "omnimem" else n for n in MEMORIES]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences_in_float64(name, monkeypatch):
    """Of the gates with choice, threshold and value held, which is what the estimator says."""
    memory, rng = MEMORIES[name], np.random.default_rng(3)
    with jax.enable_x64(True):
        draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
        heads = (SPEC.kv_heads, SPEC.head_dim)
        params = {"k": draw(6, *heads), "v": draw(6, *heads), "q": draw(*heads), "o": draw(*heads)}
        rows, away = draw(3, T, 6), draw(3, T, 6)
        value, slope = jax.jit(jax.value_and_grad(partial(read, memory, params)))(rows)

        plainly = Surrogate()
        monkeypatch.setattr(scored, "gates_of", plainly.gates_of)
        monkeypatch.setattr(omnimem, "log_gate", plainly.log_gate)
        noted, found = read(memory, params, rows), []
        for step in (1e-5, -1e-5):
            plainly.at = 0
            found.append(read(memory, params, rows + step * away))
        difference = (found[0] - found[1]) / 2e-5
        assert slope.dtype == jnp.float64 and sum(np.sum(n[2]) for n in plainly.noted) >= 2
        np.testing.assert_allclose(noted, value, rtol=1e-12)
        np.testing.assert_allclose(jnp.vdot(slope, away), difference, rtol=1e-7)


def test_where_nothing_is_dropped_there_is_no_gate():
    scores, caps = jnp.array([[1.0, 3.0, 2.0, -jnp.inf]]), jnp.array([3])
    of = lambda scores, caps: jnp.sum(softly.log_gate(scores, caps, temperature=0.5))
    assert not np.any(jax.grad(of)(scores, caps))
    slope = jax.grad(of)(scores, caps - 1)[0]
    assert slope[2] == 0.5 and 0 < slope[1] < 0.5 and slope[0] == slope[3] == 0
