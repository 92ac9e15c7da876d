"""CriticalKV: the laws, a plain loop in two stages, and the decoder's output projection."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, held, pick, standard, stream

from jaxmem import kv as tk
from jaxmem.memory.compression.criticalkv import CriticalKV
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.compression.tova import TOVA
from jaxmem.memory.exchange import Attention, Requires
from jaxmem.memory.parts.scored import Scored

BUDGET = 16


@dataclass(frozen=True)
class Plain(Scored):
    """Keeps what receives the most attention."""

    @property
    def requires(self):
        return Requires(attention=Attention())

    def score(self, candidates):
        return candidates.received


MEMORIES = {
    "snapkv": CriticalKV(SnapKV(BUDGET, window=3, kernel=5, audio_share=0.25)),
    "shared": CriticalKV(TOVA(BUDGET, audio_share=None)),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", MEMORIES)
def test_law(name, law):
    LAWS[law](MEMORIES[name])


def norms(v):
    """Return the mean over a group's query heads of |W_o^h v|_1, [tokens, G]."""
    output = np.asarray(laws.project(np.eye(SPEC.width), laws.HEADS, SPEC.head_dim))
    out = np.zeros(v.shape[:2])
    for g in range(SPEC.kv_heads):
        heads = range(2 * g, 2 * g + 2)
        for i, value in enumerate(v[:, g]):
            out[i, g] = np.mean([np.abs(value @ output[:, h].T).sum() for h in heads])
    return out


def masses(tokens, chunks, c, head):
    """Return what `laws.see` says that tokens receive in chunk c: token -> mass."""
    order = np.asarray([2 * i + 1 for i in tokens], np.int32) + 977 * head
    salt = np.sum(chunks.end[c], dtype=np.int32)
    return dict(zip(tokens, np.asarray(laws.noise(jnp.asarray(order), salt)), strict=True))


@pytest.mark.parametrize(("share", "first"), [(None, 0.5), (0.25, 0.25)])
def test_a_plain_loop_keeps_the_same(share, first):
    flat, chunks = stream(sum(CUTS)), standard()
    kinds, weight = flat.tokens.modality[:, 0], norms(flat.tokens.v)
    memory = CriticalKV(Plain(BUDGET, audio_share=share), first=first)
    _, (final, trace) = laws.usual(memory)
    kept, begin, weighed = [[], []], 0, 0
    for c, cut in enumerate(CUTS):
        for g in range(2):
            s = masses([*kept[g], *range(begin, begin + cut)], chunks, c, g)
            parts = [(sorted(s), BUDGET)]
            if share:
                sound = [i for i in sorted(s) if kinds[i] == tk.AUDIO]
                parts = [(sorted({*s} - {*sound}), 12), (sound, 4)]
            kept[g] = []
            for part, cap in parts:
                ranked = sorted(part, key=lambda i: -s[i])
                certain, rest = ranked[: int(first * cap)], ranked[int(first * cap) :]
                rest = sorted(rest, key=lambda i: -(s[i] + 1e-4) * weight[i, g])
                kept[g] += certain + rest[: cap - len(certain)]
                weighed += {*kept[g]} != {*ranked[:cap]}
            kept[g].sort()
            ours = held(laws.of_head(pick(pick(trace, 0), c), g))
            np.testing.assert_array_equal((ours - 1) // 2, kept[g], err_msg=f"chunk {c} head {g}")
        begin += cut
    assert weighed
    for g in range(2):
        np.testing.assert_allclose(final.slots.norm[0, :, g], weight[kept[g], g], rtol=1e-5)


def test_first_of_one_is_the_score_alone():
    states = []
    plain = Plain(BUDGET, audio_share=None)
    for memory in (CriticalKV(plain, first=1.0), plain):
        states.append(laws.run(memory, memory.init(SPEC), standard())[0])
    laws.assert_same(states[0].slots.kv, states[1].slots.kv, "kept")


def test_in_the_decoder():
    """Norms are those of the layer's own projection, and an ample budget is full attention."""
    memory = CriticalKV(Plain(64, audio_share=0.5))
    weights, rows, program, carry = small.streamed(memory)
    cfg = program.config
    slots = carry.state.slots  # of both layers, one behind the other
    for l in range(cfg.layers):
        mine = jax.tree.map(lambda x, l=l: np.asarray(x[64 * l : 64 * l + 20]), slots)
        kernel = np.asarray(weights["layers"]["o"]["kernel"][l]).reshape(4, 16, 24)
        for g in range(2):
            each = [np.abs(mine.kv.v[:, g] @ kernel[h]).sum(1) for h in (2 * g, 2 * g + 1)]
            np.testing.assert_allclose(mine.norm[:, g], np.mean(each, axis=0), rtol=1e-4)

    small.assert_full_attention(weights, rows, program, carry)


def test_without_the_projection_or_with_wrong_options_it_says_so():
    memory = MEMORIES["shared"]
    seen = laws.see(memory, memory.init(SPEC), pick(standard(), 0))
    with pytest.raises(ValueError, match="output"):
        memory.write(SPEC, memory.init(SPEC), seen._replace(output=None))
    with pytest.raises(ValueError, match="first"):
        CriticalKV(Plain(8), first=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        CriticalKV(Plain(0))
