"""`Retention` against plain loops over the whole stream: the published mask, at any chunking."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import jaxmem as jm
from jaxmem import rope as rp
from jaxmem.bound import question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.scorer import add_scorer, init_scorer
from jaxmem.memory.parts.retained import Held, retention, until

CFG = small.config(axes=1)
SIZE, BUDGET = 8, 6
ROWS = jax.tree.map(np.asarray, small.stream_rows(CFG, 4, SIZE, lengths=[8, 5, 8, 7]))


@cache
def weights():
    scorer = init_scorer(CFG, jax.random.key(1))
    return add_scorer(small.params(CFG), {"kernel": 3 * scorer["kernel"], "a": -0.5 * scorer["a"]})


def quotas_of(kinds, share):
    """Return the parts of the budget after a stream of these kinds."""
    audio = 0 if share is None else round(BUDGET * share)
    parts = {False: BUDGET - audio, True: audio}
    there = {bool(share is not None and k == jm.Modality.AUDIO) for k in kinds}
    return {part: BUDGET if len(there) == 1 else parts[part] for part in there}


def mask_of(score, kinds, share):
    """Return which of N tokens each of them sees, by a loop; equal scores go to the newer one."""
    n = len(kinds)
    seen = np.zeros((n, n), bool)
    for t in range(n):
        for audio, quota in quotas_of(kinds[: t + 1], share).items():
            own = [
                j
                for j in range(t + 1)
                if (share is not None and kinds[j] == jm.Modality.AUDIO) == audio
            ]
            best = sorted(own, key=lambda j: (score[j], j))[::-1][:quota]
            seen[t, best] = True
    return seen


def dense(share, x, pos, kinds):
    """Return the last layer's output of one pass with the published mask over all rows."""
    h, pos = jnp.asarray(x), jnp.asarray(pos)[:, None]
    for l in range(CFG.layers):
        layer = dec.layer_at(weights(), l)
        q, k, v = dec.qkv(layer, CFG, h)
        score = retention(layer["retention"], v)
        mask = jnp.stack([mask_of(s, kinds, share) for s in np.asarray(score).T])
        shared = CFG.heads // CFG.kv_heads
        q, k = rp.rope(q, pos, CFG.rope), rp.rope(k, pos, CFG.rope)
        k, v = (jnp.repeat(z, shared, 1) for z in (k, v))
        z = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(CFG.head_dim)
        z = z + jnp.repeat(score.T, shared, 0)[:, None]
        z = jnp.where(jnp.repeat(mask, shared, 0), z, -jnp.inf)
        top = jnp.max(z, -1, keepdims=True)
        p = jnp.exp(z - jnp.where(jnp.isfinite(top), top, 0.0))
        a = p / jnp.maximum(p.sum(-1, keepdims=True), 1e-30)  # a row may not see even itself
        h = dec.finish(layer, CFG, h, jnp.einsum("hqk,khd->qhd", a, v))
    return h


def recut(rows, sizes):
    """Return the real rows of a stream in chunks of other sizes, padded to SIZE."""
    x, pos, _ = small.flat(rows)
    kinds = np.concatenate([k[k != 0] for k in rows.modality])
    assert sum(sizes) == len(x) and max(sizes) <= SIZE
    chunks, at = [], 0
    for n in sizes:
        base = pos[at, :1]
        end = pos[at + n, :1] if at + n < len(x) else pos[-1:, 0] + 1
        pad = lambda a, n=n: np.pad(a, [(0, SIZE - n)] + [(0, 0)] * (a.ndim - 1))
        part = slice(at, at + n)
        chunks.append(
            jm.Embeds(
                pad(x[part]), pad(pos[part] - base).astype(np.int32), pad(kinds[part]),
                (end - base).astype(np.int32),
            )
        )  # fmt: skip
        at += n
    return jax.tree.map(lambda *leaves: np.stack(leaves), *chunks)


@pytest.mark.parametrize(
    ("share", "sizes"),
    [
        pytest.param(None, (8, 5, 8, 7), marks=pytest.mark.slow),
        pytest.param(None, (1,) * 28, marks=pytest.mark.slow),
        (0.34, (8, 8, 8, 4)),
        pytest.param(0.34, (1, 2, 3, 4, 5, 6, 7), marks=pytest.mark.slow),
    ],
)
def test_streaming_is_full_attention_with_the_mask(share, sizes):
    memory = jm.Retention(BUDGET, audio_share=share)
    program = make_program(CFG, memory, spec_of(CFG, chunk=SIZE))
    rows = recut(ROWS, sizes)
    carry = jm.stream(weights(), init_carry(program), rows, program=program)

    ids = [3, 1, 4]
    question = question_rows(weights(), ids, program=program)
    answer = jm.ask(weights(), carry, question, program=program, max_new=4)
    said = np.asarray(answer.ids)
    got = jm.log_prob(weights(), carry, question, said, program=program)

    x, pos, end = small.flat(ROWS)
    kinds = np.concatenate([k[k != 0] for k in ROWS.modality])
    more = np.asarray(dec.embed(weights(), jnp.asarray([*ids, *said])))
    x = np.concatenate([x, more])
    pos = np.concatenate([pos, end + np.arange(len(more))[:, None]]).astype(np.int32)
    kinds = np.concatenate([kinds, np.full(len(more), jm.Modality.TEXT)])
    logits = dec.logits(weights(), CFG, dense(share, x, pos, kinds))[-len(said) - 1 : -1]
    want = jax.nn.log_softmax(logits)
    np.testing.assert_array_equal(np.argmax(want, -1), said)
    np.testing.assert_allclose(got, want[np.arange(len(said)), said], atol=2e-4)


@pytest.mark.parametrize("quotas", [(5,), (4, 2), (5, 0)])
def test_rows_lose_sight_as_in_a_loop(quotas):
    """Few different scores, so that ties are many; what a memory holds is the best so far."""
    rng = np.random.default_rng(len(quotas))
    slots, rows = 7, 9
    for trial in range(80):
        n = max(0, rng.integers(-3, slots + 1))
        real = rng.integers(1, rows + 1)
        kinds = rng.choice([2, 3], slots + rows, p=[0.9, 0.1] if trial % 2 else [0.3, 0.7])
        score = rng.integers(0, 4, (slots + rows, 2)).astype(np.float32)
        kinds[n:slots] = 0
        kinds[slots + real :] = 0
        there = np.repeat(kinds[:, None], 2, 1).astype(np.int8)
        held = Held(score[:slots], there[:slots], np.asarray(quotas, np.int32))
        ends = jax.jit(until)(held, score[slots:], there[slots:, 0])
        got = np.concatenate(ends)
        for g in range(2):
            want = np.full(slots + rows, rows)
            for t in range(rows)[::-1]:
                past = [j for j in range(slots + t + 1) if kinds[j]]
                audio = lambda j, kinds=kinds: len(quotas) == 2 and kinds[j] == 3
                for part, quota in enumerate(quotas):
                    own = [j for j in past if audio(j) == part]
                    many = sum(quotas) if len(own) == len(past) else quota
                    out = sorted(own, key=lambda j: (score[j, g], j))[::-1][many:]
                    want[out] = t
            mine = kinds != 0
            # A row before a token's own does not see it anyway.
            own = np.maximum(np.arange(slots + rows) - slots, 0)
            np.testing.assert_array_equal(np.maximum(got[:, g], own)[mine],
                                          np.maximum(want, own)[mine])  # fmt: skip


def test_a_token_that_is_dropped_never_returns_and_equal_scores_go_to_the_newer():
    memory = jm.Retention(2, audio_share=None)
    spec = jm.Spec(layers=1, kv_heads=1, head_dim=2, width=4, chunk=2)
    state = memory.init(spec)
    for first, scores in ((0, (2.0, 1.0)), (2, (1.0, 0.5)), (4, (2.0, 2.0))):
        kv = spec.empty(2)._replace(
            index=jnp.arange(first, first + 2)[:, None], modality=jnp.full((2, 1), 2, jnp.int8)
        )
        chunk = jm.Chunk(kv, jnp.asarray([first + 2]), retention=jnp.asarray(scores)[:, None])
        state, _ = memory.write(spec, state, chunk)
        kept = {0: [0, 1], 2: [0, 2], 4: [4, 5]}[first]
        np.testing.assert_array_equal(state.slots.kv.index[:, 0], kept)


def test_without_logits_it_is_a_score_like_any_other():
    """An ample budget is full attention, of weights that were never trained with a score."""
    memory = jm.Retention(32, logits=False)
    program = make_program(CFG, memory, spec_of(CFG, chunk=SIZE))
    carry = jm.stream(weights(), init_carry(program), ROWS, program=program)
    small.assert_full_attention(weights(), ROWS, program, carry)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="newest=2, floor=0.0, per_head=True: use logits=False"):
        jm.Retention(8, newest=2)
    with pytest.raises(ValueError, match="newest=0, floor=0.0, per_head=False"):
        jm.Retention(8, per_head=False)
    with pytest.raises(ValueError, match="takes it with logits=False"):
        jm.WithBank(jm.Retention(8), 64)
    jm.WithBank(jm.Retention(8, logits=False), 64)
    program = make_program(CFG, jm.Retention(8), spec_of(CFG, chunk=SIZE))
    with pytest.raises(ValueError, match="python -m jaxmem.experiments.scorer"):
        jm.stream(small.params(CFG), init_carry(program), ROWS, program=program)
    scorer = init_scorer(CFG, jax.random.key(0))
    with pytest.raises(ValueError, match=r"kernel \(2, 32, 1\) and a \(2, 2\), expected"):
        add_scorer(small.params(CFG), scorer | {"kernel": scorer["kernel"][..., :1]})


SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in (None, jm.Recorded)]


@pytest.mark.parametrize("around", [partial(jm.Quantized, bits=8), *SLOW])
def test_scores_are_part_of_the_state(around):
    memory = jm.Retention(BUDGET)
    plain = make_program(CFG, memory, spec_of(CFG, chunk=SIZE))
    program = make_program(CFG, around(memory) if around else memory, plain.spec)
    carry = jm.stream(weights(), init_carry(program), ROWS, program=program)
    state = carry.state.slots
    score = state.rest.score if hasattr(state, "rest") else state.score
    assert score.shape == (CFG.layers * BUDGET, CFG.kv_heads) and score.dtype == jnp.float32
    assert np.all(np.asarray(score) > 0)
    extra = jm.nbytes(memory, plain.spec) - jm.nbytes(jm.Knorm(BUDGET), plain.spec)
    assert extra == score.nbytes
