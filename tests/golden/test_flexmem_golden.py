"""FlexMem against the released code: scores, schedules, MemIndex, and whole streams.

Index sets are the same; scores agree to 1e-5 with the released code without its bfloat16 cast.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from weights import decoder_config, decoder_params, read

from jaxmem import kv as tk
from jaxmem.decoder.answer import first_pass, prefill
from jaxmem.decoder.decoder import logits
from jaxmem.decoder.step import chunk_step, init_carry, make_prefix, make_program, spec_of
from jaxmem.kernels.attend import attend
from jaxmem.kernels.received import mass, row_mass
from jaxmem.kernels.segment import Segment
from jaxmem.kv import KV
from jaxmem.loop import question_rows
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.bank.bank import append_spill, init_bank
from jaxmem.memory.base import Chunk, Embeds, Question, Received, Spec, State, at_layer
from jaxmem.memory.flexmem import clips
from jaxmem.memory.flexmem import memindex as relevance
from jaxmem.memory.flexmem.flexmem import flexmem, pathways
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.rope import rope_1d

PAD = 3  # rows of padding behind a clip


def pytest_generate_tests(metafunc):
    given = metafunc.config.getoption("--golden")
    folder = metafunc.config.rootpath / "tests/golden/data" if given is None else given
    for name in metafunc.fixturenames:
        if name in ("scores", "schedule", "memindex", "stream"):
            files = sorted(Path(folder).glob(f"flexmem/{name}_*.npz"))
            if name == "memindex":
                files = sorted(Path(folder).glob("flexmem/memindex*.npz"))
            metafunc.parametrize(name, files, ids=[f.stem for f in files])


def sizes(z):
    return int(z["n_visual"]), int(z["preratio"]), int(z["decratio"])


def clip_pass(z) -> Chunk:
    """What the layer of a scores file reports, from its weights and its input."""
    h, g, d = (int(z[name]) for name in ("num_heads", "num_kv_heads", "head_dim"))
    rope, p, n = rope_1d(d, float(z["rope_theta"])), int(z["n_sink"]), int(z["n_visual"])
    linear = lambda name, heads: (
        z["hidden"] @ z[f"w.{name}.weight"].T + z[f"w.{name}.bias"]
    ).reshape(-1, heads, d)
    q, k, v = linear("q_proj", h), linear("k_proj", g), linear("v_proj", g)
    past = [z[f"past_{x}"].transpose(1, 0, 2) for x in ("key", "value")]
    begin = len(past[0])
    place = np.arange(begin + len(q), dtype=np.int32)[:, None]

    def part(k, v, first, rows, last=None):
        here = place[first : first + len(k), None]
        return Segment(*map(jnp.asarray, (k, v)), jnp.ones((len(k), 1), bool), here, rows, last)

    def passed(q, rows, own):
        parts = [
            part(past[0][p:], past[1][p:], p, rows),
            *own,
            part(past[0][:p], past[1][:p], 0, rows),
        ]
        parts = [s for s in parts if len(s.k)]
        out, lse = attend(jnp.asarray(q), parts, rope=rope)
        real = jnp.ones((len(q),), bool)
        return out, parts, lse, mass(jnp.asarray(q), parts, lse, rope=rope, rows=real)

    t = jnp.arange(n)
    at = place[begin : begin + n]
    out, parts, lse, got = passed(q[:n], at, [part(k[:n], v[:n], begin, at, t)])
    rows = jnp.zeros((n,))
    if begin > p:
        rows = row_mass(jnp.asarray(q[:n]), parts, lse, rope=rope, segment=0)
    theirs = z["attn_output"][:n]
    np.testing.assert_allclose(
        np.asarray(out).reshape(n, -1) @ z["w.o_proj.weight"].T, theirs, atol=5e-5
    )
    probe = None
    if int(z["n_question"]):
        at, t = place[begin + n :], jnp.arange(len(q) - n)
        own = [part(k[:n], v[:n], begin, at), part(k[n:], v[n:], begin + n, at, t)]
        chunk = passed(q[n:], at, own)[3][int(begin > p)]
        probe = Received(jnp.zeros((1, 1, 1, 1)), chunk[None, None])
    tokens = KV(k[:n], v[:n], at[:n, None], t[:, None], np.full((n, 1), tk.VISION, np.int8))
    chunk = got[int(begin > p)]
    return Chunk(tokens, at[0], at[0], jnp.zeros(()), mass=Received(chunk[None], chunk[None]),
                rows=rows[None], probe=probe)  # fmt: skip


def test_scores_and_picks(scores):
    z = read(scores)
    n, context_ratio, local_ratio = sizes(z)
    local, context = z["local_saliency"], z["context_score_fp32"]
    if "attention" in z:
        seen = clip_pass(z)
        received, aggregated = pathways(seen)
        np.testing.assert_allclose(received[0], local, rtol=1e-5)
        np.testing.assert_allclose(aggregated[0], context, rtol=1e-5)
        np.testing.assert_allclose(aggregated[0], z["context_score_released"], atol=3e-3)
        local, context = received[0], aggregated[0]
        if seen.probe is not None:
            g = relevance.of_probe(seen, 0)
            np.testing.assert_allclose(g, z["clip_relevance"], rtol=1e-5)
    even = np.asarray([int(z["layer_idx"]) < 3])
    kind = jnp.asarray(np.where(np.arange(n + PAD) < n, tk.VISION, tk.EMPTY).astype(np.int8))
    five = jnp.full((1,), 5)
    for score, name, cap in (
        (local, "local", clips.shares(kind, local_ratio, True)),
        (context, "context", clips.shares(kind, context_ratio, False)),
        (local, "index", five),
    ):
        if f"{name}_idx" not in z:
            continue
        expected = z[f"{name}_idx"]
        score = jnp.pad(jnp.asarray(score), (0, PAD), constant_values=9.0)  # garbage behind
        pick = jax.jit(clips.picks, static_argnums=4)
        index, keep = pick(score[None], even, kind, cap, len(expected) + 2)
        np.testing.assert_array_equal(np.asarray(index)[keep], expected)
        for part, at in (("key", 0), ("value", 1)):
            if "attention" in z and f"{name}_{part}" in z:
                own = np.asarray(seen.tokens[at])[expected].transpose(1, 0, 2)
                np.testing.assert_allclose(own, z[f"{name}_{part}"], rtol=1e-5, atol=1e-6)


def test_schedule(schedule):
    """Which clips are visible at every clip, with relevances from the file in place of a probe."""
    z = read(schedule)
    n, context_ratio, local_ratio = sizes(z)
    many, g = int(z["n_clips"]), z.get("g_per_layer", np.zeros((5, int(z["n_clips"]))))
    layers, p = len(g), int(z["n_sink"])
    standard = "g_per_layer" in z
    memory = flexmem(
        n,
        window=int(z["preblk"]),
        context_ratio=context_ratio,
        local_ratio=local_ratio,
        topk=int(z["topb"]),
        long_term=standard,
    )
    spec = Spec(layers, 1, 1, 2, 2, chunk=n, prefix=p, bank=many * (n // local_ratio))
    rows = Embeds(
        jnp.zeros((n, 2)), jnp.arange(n)[:, None], jnp.full((n,), 2, jnp.int8), jnp.full(1, n)
    )

    @jax.jit
    def step(state, bank, c, g):
        view = memory.view(state, bank, rows)
        order = jnp.broadcast_to((c * (n + 1) + jnp.arange(n))[None, :, None], (layers, n, 1))
        one = jnp.zeros((layers, n, 1, 2))
        pos = view.base[:, None, None] + jnp.arange(n)[None, :, None, None]
        kind = jnp.full((layers, n, 1), tk.VISION, jnp.int8)
        probe = jnp.broadcast_to((g / n)[:, None, None, None], (layers, 1, 1, n))
        score = jax.random.uniform(jax.random.key(c), (layers, 1, n))
        tokens = KV(one, one, pos, order, kind)
        seen = Chunk(tokens, view.base, view.base + n, jnp.arange(layers),
                     mass=Received(score, score),
                    rows=score[:, 0], probe=Received(probe, probe))  # fmt: skip
        state, spill = memory.write(state, seen)
        for l in range(layers):
            bank = append_spill(bank, jnp.int32(l), at_layer(spill, l))
        return view, state, bank

    def seen_clips(view):
        """The clips of a view, local memories first: (local, context)."""
        order, held = (
            np.asarray(view.tokens.index)[..., 0],
            np.asarray(view.tokens.modality)[..., 0] != 0,
        )
        clip = np.where(held, order // (n + 1), -1)
        assert (clip == clip[:1]).all(), "layers read different clips"
        clip, count = clip[0], int(held[0].sum())
        np.testing.assert_array_equal(view.base, np.full((layers, 1), p + count))
        pos = np.asarray(view.tokens.pos)[:, :count, 0, 0]
        np.testing.assert_array_equal(pos, np.broadcast_to(p + np.arange(count), pos.shape))
        assert (np.diff(order[0, :count]) > 0).all() and not held[:, count:].any()
        ids, counts = np.unique(clip[:count], return_counts=True)
        split = local_slots if (local_slots := n // local_ratio) != n // context_ratio else -1
        assert set(counts) <= {split, n // context_ratio}
        return ids[counts == split], ids[counts != split]

    state, bank = memory.init(spec), init_bank(memory, spec)
    for c in range(many):
        view, state, bank = step(state, bank, jnp.int32(c), jnp.asarray(g[:, c], jnp.float32))
        for got, name in zip(seen_clips(view), ("visible_local", "visible_context"), strict=True):
            expected = z[name][c]
            np.testing.assert_array_equal(got, expected[expected >= 0], err_msg=f"{name} {c}")
    if standard:
        np.testing.assert_allclose(state.aux.relevance, z["g_total"], rtol=1e-5)
        recalled = memory.recall(state, bank, None).tokens
        held = np.asarray(recalled.modality)[0, :, 0] != 0
        ids = np.unique(np.asarray(recalled.index)[0, :, 0][held] // (n + 1))
        np.testing.assert_array_equal(ids, z["final_recall"])
    else:
        view, _, _ = step(state, bank, jnp.int32(many), jnp.zeros((layers,)))
        expected = z["visible_context"][many]
        np.testing.assert_array_equal(seen_clips(view)[1], expected[expected >= 0])


def test_memindex(memindex):
    z = read(memindex)
    layers, many = len(z["layers"]), int(z["n_clips"])
    index = MemIndex(rope_1d(int(z["head_dim"]), float(z["rope_theta"])), tuple(range(layers)),
                     keys=z["index_key"].shape[3])  # fmt: skip
    keys = jnp.asarray(z["index_key"].transpose(2, 0, 3, 1, 4))
    sink = jnp.asarray(z["sink_key"].transpose(0, 2, 1, 3))
    p = sink.shape[1]
    where = jnp.broadcast_to(jnp.arange(p)[None, :, None], (layers, p, 1))
    prefix = KV(sink, sink, where[..., None], where, jnp.full((layers, p, 1), 1, jnp.int8))
    q = z["query"].transpose(0, 2, 1, 3)
    asked = q.shape[1]
    q = jnp.asarray(np.concatenate([q, np.full_like(q[:, :2], 7)], 1))  # a padded question
    query = Question(q, jnp.arange(asked + 2) < asked, prefix)
    # Lines of the ledger that no clip has filled yet hold nothing.
    keys = jnp.pad(keys, [(0, 4)] + [(0, 0)] * 4)
    held = jnp.where(jnp.arange(many + 4) < many, index.keys, 0)
    per_layer = jax.jit(partial(relevance.layer_scores, index))(keys, held, query)
    np.testing.assert_allclose(per_layer[:, :many], z["score_per_layer"], rtol=1e-5)
    np.testing.assert_array_equal(per_layer[:, many:], 0)
    score = relevance.scores(index, keys, held, query)
    np.testing.assert_allclose(score[:many], z["score"], rtol=1e-5)
    chosen, keep = blocks.best(score, jnp.int32(many), int(z["topb"]), 1)
    np.testing.assert_array_equal(np.asarray(chosen)[keep], z["recalled"])


def watched(memory):
    """The memory, with what each write saw beside the state's notes."""
    inner = lambda state: State(state.slots, state.aux[0])

    def write(state, seen):
        after, spill = memory.write(inner(state), seen)
        return State(after.slots, (after.aux, seen)), spill

    view = lambda state, bank, rows: memory.view(inner(state), bank, rows)
    recall = lambda state, bank, query: memory.recall(inner(state), bank, query)
    init = lambda spec: State(memory.init(spec).slots, (memory.init(spec).aux, None))
    return memory._replace(init=init, view=view, write=write, recall=recall)


def test_stream(stream):
    z = read(stream)
    n, context_ratio, local_ratio = sizes(z)
    config, params = decoder_config(z), decoder_params(z, head="lm_head")
    fast = "g" not in z
    index = MemIndex(config.rope) if "index_idx" in z else None
    memory = flexmem(
        n,
        window=int(z["preblk"]),
        context_ratio=context_ratio,
        local_ratio=local_ratio,
        topk=int(z["topb"]),
        reader="memindex" if fast else "encoding",
        index=index,
    )
    many = int(z["n_clips"])
    more = {"prefix": len(z["input_ids_system"])}
    spec = spec_of(config, chunk=n, bank=many * (n // local_ratio), **more)
    program = make_program(config, watched(memory), spec)
    text = lambda ids, size=None: question_rows(
        params, ids, program=program, size=len(ids) if size is None else size
    )
    prefix = make_prefix(params, config, text(z["input_ids_system"]))
    probes = None
    if not fast:
        probes = jax.tree.map(lambda x: x[None], text(z["question_ids"], 8))
    step = jax.jit(lambda carry, rows: chunk_step(params, program, carry, rows, prefix, probes)[0])
    kind = jnp.full((n,), tk.VISION, jnp.int8)
    rel = jnp.arange(n, dtype=jnp.int32)[:, None]
    carry = init_carry(program)
    for c, x in enumerate(z["clip_features"]):
        rows = Embeds(jnp.asarray(x), rel, kind, jnp.full((1,), n, jnp.int32))
        carry = step(carry, rows)
        notes, seen = carry.state.aux
        carry = carry._replace(state=State(carry.state.slots, (notes, None)))
        begin = c * (n + 1)
        local = np.asarray(carry.bank.slots.index)[:, c * (n // local_ratio) :, 0]
        own = local[:, : n // local_ratio] - begin
        np.testing.assert_array_equal(own, z["local_idx"][c])
        held = min(c + 1, int(z["preblk"])) * (n // context_ratio)
        newest = np.asarray(carry.state.slots.index)[:, held - n // context_ratio : held, 0]
        np.testing.assert_array_equal(newest - begin, z["context_idx"][c])
        if index is not None:
            kept = z["index_idx"][c][np.asarray(index.layers)]
            k = np.asarray(seen.tokens.k)[np.asarray(index.layers)]
            expected = np.take_along_axis(k, kept[:, :, None, None], 1)
            np.testing.assert_array_equal(np.asarray(notes.keys)[c], expected)
    if not fast:
        np.testing.assert_allclose(notes.relevance, z["g"], rtol=1e-5)

    question = text(z["input_ids_tail"])
    before = jax.device_get(carry)
    query = None
    if fast:  # the released code retrieves by the question and then passes the whole tail
        asking = text(z["question_ids"])
        query = Question(first_pass(params, program, asking, prefix), asking.modality != 0, prefix)
    view = jax.jit(program.memory.recall)(carry.state, carry.bank, query)
    held = np.asarray(view.tokens.modality)[0, :, 0] != 0
    ids = np.unique(np.asarray(view.tokens.index)[0, :, 0][held] // (n + 1))
    np.testing.assert_array_equal(ids, z["recalled"])
    keys = np.asarray(view.tokens.k)[3][held].transpose(1, 0, 2)
    np.testing.assert_allclose(keys, z["answer_prefix_key_l3"], rtol=1e-4, atol=5e-5)

    fixed = program.memory._replace(recall=lambda state, bank, query: view)
    answering = make_program(config, fixed, spec)
    h = jax.jit(lambda c, q: prefill(params, answering, c, q, room=1, prefix=prefix)[1])(
        carry, question
    )
    close = 1e-4 if config.layers > 5 else 1e-5
    np.testing.assert_allclose(logits(params, config, h), z["logits"], rtol=1e-4, atol=close)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(carry))
