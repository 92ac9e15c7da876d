"""Expected Attention: the laws, a plain loop over its formulas, and the decoder's queries."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, held, pick, standard, stream

from jaxmem import kv as tk
from jaxmem.decoder.decoder import layer_at, qkv
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.memory.compression import expected_attention as ea
from jaxmem.memory.exchange import Requires
from jaxmem.memory.parts.scored import Scored

BUDGET = 16
ROPE = SPEC.rope
memory_of = partial(ea.ExpectedAttention, BUDGET, future=7)
MEMORIES = {
    "default": memory_of(audio_share=0.25),
    "published": memory_of(audio_share=None),
    "plain": memory_of(audio_share=None, sinks=2, covariance=False, value_norm=False),
    "clock": memory_of(audio_share=0.25, eps=0.05),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["default", "published"])
def test_law(name, law):
    LAWS[law](MEMORIES[name])


def turn(pos):
    """Return the matrix that rotates a vector to a position, from the definition."""
    matrix, half = np.zeros((4, 4)), 2
    for i, (freq, axis) in enumerate(zip(ROPE.inv_freq, ROPE.axis, strict=True)):
        angle = pos[axis] * freq
        matrix[i, i] = matrix[half + i, half + i] = np.cos(angle)
        matrix[half + i, i], matrix[i, half + i] = np.sin(angle), -np.sin(angle)
    return matrix


def expected(flat, pool, rows, end, head, *, sinks=4, step=(1, 1, 1), covariance=True, eps=0.0,
             value_norm=True):  # fmt: skip
    """Return token -> score for a KV head, with queries turned forward and keys where they are."""
    numbers = [i for i in pool if i >= sinks]
    mean_turn = np.mean([turn(end + np.multiply(step, i)) for i in range(7)], axis=0)
    queries = np.asarray(laws.project(flat.hidden, laws.HEADS, SPEC.head_dim), np.float64)
    total = dict.fromkeys(numbers, 0.0)
    each = laws.HEADS // SPEC.kv_heads
    for h in range(head * each, (head + 1) * each):
        q = queries[[i for i in rows if i >= sinks], h]
        mean = mean_turn @ (q.mean(axis=0) if len(q) else np.zeros(4))
        cov = np.cov(q.T, bias=True) if len(q) else np.zeros((4, 4))
        cov = mean_turn @ cov @ mean_turn.T
        z = []
        for i in numbers:
            k = turn(flat.tokens.pos[i, 0]) @ flat.tokens.k[i, head]
            z.append(k @ mean / 2 + covariance * (k @ cov @ k) / 8)
        weights = np.exp(np.array(z) - max(z))
        for i, w in zip(numbers, weights / weights.sum(), strict=True):
            total[i] += w / each
    for i in numbers:
        total[i] += eps
        if value_norm:
            total[i] *= np.linalg.norm(flat.tokens.v[i, head])
    return total | {i: np.inf for i in pool if i < sinks}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("default", {}),
        ("published", {}),
        ("plain", {"sinks": 2, "covariance": False, "value_norm": False}),
        ("clock", {"eps": 0.05}),
    ],
)
def test_a_plain_loop_keeps_the_same(name, options):
    flat, chunks = stream(sum(CUTS)), standard()
    kinds, memory = flat.tokens.modality[:, 0], MEMORIES[name]
    shared = name in ("published", "plain")
    kept = [list(range(CUTS[0])) for _ in range(2)]
    trace = pick(laws.usual(memory)[1][1], 0)
    begin = 0
    for c, cut in enumerate(CUTS):
        rows = range(begin, begin + cut)
        for g in range(2):
            pool = sorted({*kept[g], *rows})
            s = expected(flat, pool, rows, chunks.end[c], g, **options) if cut else {}
            parts = [(pool, BUDGET)]
            if not shared:
                sound = [i for i in pool if kinds[i] == tk.AUDIO]
                parts = [(sorted({*pool} - {*sound}), 12), (sound, 4)]
            if cut:
                newer = lambda i, s=s: (s[i], i)  # wins among equals
                kept[g] = sorted(i for part, n in parts for i in sorted(part, key=newer)[-n:])
            ours = held(laws.of_head(pick(trace, c), g))
            np.testing.assert_array_equal((ours - 1) // 2, kept[g], err_msg=f"chunk {c} head {g}")
        begin += cut
    assert kept[0] != kept[1]


def test_contiguous_positions_compare_keys_where_they_are_read():
    """A pool at scattered positions scores as one at 0, 1, 2, ... does."""
    flat = stream(20)
    scattered = flat._replace(tokens=flat.tokens._replace(pos=flat.tokens.pos * 3 + 5))
    states = []
    index = np.broadcast_to(np.arange(20, dtype=np.int32)[:, None, None], flat.tokens.pos.shape)
    dense = flat._replace(tokens=flat.tokens._replace(pos=index))
    for source, reindex in ((scattered, True), (dense, False)):
        chunk = pick(laws.cut(source, [20], 20), 0)._replace(end=np.full(3, 20))
        memory = memory_of(audio_share=None, reindex=reindex)
        states.append(laws.step(memory, memory.init(SPEC), chunk))
    np.testing.assert_array_equal(*(s.slots.kv.index for s in states))
    np.testing.assert_array_equal(memory.view(SPEC, states[1], None).base, [20] * 3)


@pytest.mark.parametrize("step", [(1, 1, 1), (2, 0, 0)])
def test_rows_to_come_advance_as_text_does(step):
    """Whatever a token of text advances the position axes by, the score is the plain loop's."""
    spec, flat = replace(SPEC, step=step), stream(12)
    memory = memory_of(audio_share=None)
    chunk = pick(laws.cut(flat, [12], 12), 0)
    seen = laws.see(memory, memory.init(spec), chunk)
    score = memory.score(memory.candidates(spec, memory.init(spec), seen))[:, :12]
    for g in range(2):
        want = expected(flat, range(12), range(12), chunk.end, g, step=step)
        np.testing.assert_allclose(score[g], [want[i] for i in range(12)], rtol=2e-4)


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_sinks_leave_a_slot_to_the_stream(budget):
    memory = ea.ExpectedAttention(budget, future=7, audio_share=None)
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    kept = (np.asarray(state.slots.kv.index) - 1) // 2
    np.testing.assert_array_equal(kept[: budget - 1, 0], np.arange(min(4, budget - 1)))
    assert (kept[-1] > 4).all()


def test_the_decoder_reports_queries_before_rotation():
    cfg = small.config(axes=1)
    weights = small.params(cfg)
    rows = small.chunk(small.stream_rows(cfg, 1, 8), 0)
    pools = []

    @dataclass(frozen=True)
    class Reader(Scored):
        @property
        def requires(self):
            return Requires(queries=True)

        def score(self, candidates):
            jax.debug.callback(lambda q: pools.append(np.asarray(q)), candidates.queries)
            return -candidates.kv.k[..., 0].T

    memory = Reader(12)
    program = make_program(cfg, memory, spec_of(cfg, chunk=8))
    step = laws.compiled(chunk_step, static_argnums=1)
    jax.block_until_ready(step(weights, program, init_carry(program), rows))
    jax.effects_barrier()
    want = qkv(layer_at(weights, 0), cfg, rows.x)[0]
    np.testing.assert_allclose(pools[0], want, rtol=1e-5, atol=1e-6)
    assert len(pools) == cfg.layers


def test_without_queries_or_with_wrong_options_it_says_so():
    memory = memory_of()
    state = memory.init(SPEC)
    seen = laws.see(memory, state, pick(standard(), 0))
    with pytest.raises(ValueError, match="queries"):
        memory.write(SPEC, state, seen._replace(queries=None))
    for options in ({"sinks": -1}, {"future": 0}, {"audio_share": 2.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ea.ExpectedAttention(BUDGET, **options)


def test_moments_leave_out_sinks_and_padding():
    flat = laws.cut(stream(8), [6], 8)
    memory = memory_of()
    seen = laws.see(memory, memory.init(SPEC), pick(flat, 0))
    mean, cov = ea.moments(memory.candidates(SPEC, memory.init(SPEC), seen), 4)
    q = np.asarray(seen.queries)[4:6]
    np.testing.assert_allclose(mean, q.mean(0), rtol=1e-5, atol=1e-6)
    want = jnp.stack([np.cov(q[:, h].T, bias=True) for h in range(4)])
    np.testing.assert_allclose(cov, want, rtol=1e-5, atol=1e-6)
