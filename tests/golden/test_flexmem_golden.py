"""FlexMem against the released code: scores, schedules, MemIndex, and whole streams.

Index sets are the same; scores agree to 1e-5 with the released code without its bfloat16 cast.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import cases, found
from weights import decoder_config, decoder_params, read

from jaxmem import kv as tk
from jaxmem.bound import question_rows
from jaxmem.decoder.answer import first_pass, prefill
from jaxmem.decoder.decoder import logits
from jaxmem.decoder.step import chunk_step, init_carry, make_prefix, make_program, spec_of
from jaxmem.kernels.attend import attend
from jaxmem.kernels.received import mass, row_mass
from jaxmem.kernels.segment import Segment
from jaxmem.kv import KV
from jaxmem.memory.bank import retrieval
from jaxmem.memory.bank.bank import append, init_bank
from jaxmem.memory.base import Memory, Spec, State, at_layer
from jaxmem.memory.exchange import Chunk, Embeds, Probed, Question, Received
from jaxmem.memory.flexmem import clips, memindex
from jaxmem.memory.flexmem.flexmem import FlexMem, pathways
from jaxmem.memory.flexmem.memindex import Encoding, MemIndex
from jaxmem.rope import rope_1d

PAD = 3  # rows of padding after a clip
SHALLOW = FlexMem().shallow  # first layers with evenly spaced rows, as released
RELEASED = (14, 22, 26)  # layers that the released code reads, whatever the model
KNOWN = Encoding("the rows of a probe stand in for its text")


SLOW = ("schedule_std", "stream_fast")


def pytest_generate_tests(metafunc):
    kinds = {"scores": "scores", "schedule": "schedule", "memindex_file": "memindex",
             "stream": "stream"}  # fmt: skip
    for name in metafunc.fixturenames:
        if name in kinds:
            files = found(metafunc.config, f"flexmem/{kinds[name]}*.npz")
            metafunc.parametrize(name, cases(metafunc.config, files, SLOW))


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
    probed = None
    if int(z["n_question"]):
        at, t = place[begin + n :], jnp.arange(len(q) - n)
        own = [part(k[:n], v[:n], begin, at), part(k[n:], v[n:], begin + n, at, t)]
        chunk = passed(q[n:], at, own)[3][int(begin > p)]
        given = Received(jnp.zeros((1, 1, 1, 1)), chunk[None, None])
        probed = Probed(given, jnp.ones((1, 1), jnp.int32))
    fresh = KV(k[:n], v[:n], at[:n, None], t[:, None], np.full((n, 1), tk.VISION, np.int8))
    chunk = got[int(begin > p)]
    return Chunk(
        fresh, at[0], received=Received(chunk[None], chunk[None]), given=rows[None], probed=probed
    )


def test_scores_and_picks(scores):
    z = read(scores)
    n, context_ratio, local_ratio = sizes(z)
    local, context = z["local_saliency"], z["context_score_fp32"]
    seen = None
    if "attention" in z:
        seen = clip_pass(z)
        received, aggregated = pathways(seen)
        np.testing.assert_allclose(received[0], local, rtol=1e-5)
        np.testing.assert_allclose(aggregated[0], context, rtol=1e-5)
        # The released code adds up the mass on the history in bfloat16.
        np.testing.assert_allclose(aggregated[0], z["context_score_released"], rtol=2**-8)
        local, context = received[0], aggregated[0]
        if seen.probed is not None:
            g = memindex.of_probe(seen, 0)
            np.testing.assert_allclose(g, z["clip_relevance"], rtol=1e-5)
    even = np.asarray([int(z["layer_idx"]) < SHALLOW])
    kind = jnp.asarray(np.where(np.arange(n + PAD) < n, tk.VISION, tk.EMPTY).astype(np.int8))
    quotas = {
        "local": clips.shares(kind, local_ratio, True),
        "context": clips.shares(kind, context_ratio, False),
        "index": jnp.full((1,), len(z.get("index_idx", ()))),
    }
    for name, score in (("local", local), ("context", context), ("index", local)):
        if f"{name}_idx" not in z:
            continue
        expected = z[f"{name}_idx"]
        score = jnp.pad(jnp.asarray(score), (0, PAD), constant_values=9.0)  # garbage at the end
        pick = jax.jit(clips.picks, static_argnums=4)
        index, keep = pick(score[None], even, kind, quotas[name], len(expected) + 2)
        np.testing.assert_array_equal(np.asarray(index)[keep], expected)
        for part, at in (("key", 0), ("value", 1)):
            if seen is not None and f"{name}_{part}" in z:
                own = np.asarray(seen.kv[at])[expected].transpose(1, 0, 2)
                np.testing.assert_allclose(own, z[f"{name}_{part}"], rtol=1e-5, atol=1e-6)


def options(z) -> dict:
    """The options of a memory that a file says, with a bank for all of its clips."""
    n, context_ratio, local_ratio = sizes(z)
    return {
        "clip": n,
        "window": int(z["preblk"]),
        "context_ratio": context_ratio,
        "local_ratio": local_ratio,
        "topk": int(z["topb"]),
        "capacity": int(z["n_clips"]) * (n // local_ratio),
    }


def test_schedule(schedule):
    """Which clips are visible at every clip, with relevances from the file in place of a probe."""
    z = read(schedule)
    n, context_ratio, local_ratio = sizes(z)
    many, standard = int(z["n_clips"]), "g_per_layer" in z
    g = z["g_per_layer"] if standard else np.zeros((SHALLOW + 1, many))
    layers, p = len(g), int(z["n_sink"])
    memory = FlexMem(**options(z), reader=KNOWN, long_term=standard)
    spec = Spec(layers, kv_heads=1, head_dim=2, width=2, chunk=n, prefix=p)
    rows = Embeds(
        jnp.zeros((n, 2)), jnp.arange(n)[:, None], jnp.full((n,), 2, jnp.int8), jnp.full(1, n)
    )

    @jax.jit
    def step(state, bank, c, g):
        view = memory.view(spec, state, rows, bank)
        index = jnp.broadcast_to((c * (n + 1) + jnp.arange(n))[None, :, None], (layers, n, 1))
        one = jnp.zeros((layers, n, 1, 2))
        pos = view.base[:, None, None] + jnp.arange(n)[None, :, None, None]
        kind = jnp.full((layers, n, 1), tk.VISION, jnp.int8)
        probe = jnp.broadcast_to((g / n)[:, None, None, None], (layers, 1, 1, n))
        score = jax.random.uniform(jax.random.key(c), (layers, 1, n))
        seen = Chunk(
            KV(one, one, pos, index, kind),
            view.base + n,
            received=Received(score, score),
            given=score[:, 0],
            probed=Probed(Received(probe, probe), jnp.ones((layers, 1), jnp.int32)),
        )
        state, evicted = memory.write(spec, state, seen)
        for l in range(layers):
            bank = append(bank, jnp.int32(l), at_layer(evicted, l))
        return view, state, bank

    def seen_clips(view):
        """The clips of a view, local memories first: (local, context)."""
        index, held = (
            np.asarray(view.kv.index)[..., 0],
            np.asarray(view.kv.modality)[..., 0] != 0,
        )
        clip = np.where(held, index // (n + 1), -1)
        assert (clip == clip[:1]).all(), "layers read different clips"
        clip, count = clip[0], int(held[0].sum())
        np.testing.assert_array_equal(view.base, np.full((layers, 1), p + count))
        pos = np.asarray(view.kv.pos)[:, :count, 0, 0]
        np.testing.assert_array_equal(pos, np.broadcast_to(p + np.arange(count), pos.shape))
        assert (np.diff(index[0, :count]) > 0).all() and not held[:, count:].any()
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
        np.testing.assert_allclose(state.aux.relevance[:many], z["g_total"], rtol=1e-5)
        np.testing.assert_array_equal(recalled(memory.recall(spec, state, None, bank).kv, n),
                                      z["final_recall"])  # fmt: skip
    else:
        view, _, _ = step(state, bank, jnp.int32(many), jnp.zeros((layers,)))
        expected = z["visible_context"][many]
        np.testing.assert_array_equal(seen_clips(view)[1], expected[expected >= 0])


def recalled(kv, n):
    """The clips of n rows that a view's first layer holds."""
    held = np.asarray(kv.modality)[0, :, 0] != 0
    return np.unique(np.asarray(kv.index)[0, :, 0][held] // (n + 1))


def test_memindex(memindex_file):
    z = read(memindex_file)
    layers, many, topk = len(z["layers"]), int(z["n_clips"]), int(z["topb"])
    index = MemIndex(tuple(range(layers)), keys=z["index_key"].shape[3])
    keys = jnp.asarray(z["index_key"].transpose(2, 0, 3, 1, 4))
    sink = jnp.asarray(z["sink_key"].transpose(0, 2, 1, 3))
    p, (groups, dim) = sink.shape[1], sink.shape[2:]
    rope = rope_1d(int(z["head_dim"]), float(z["rope_theta"]))
    spec = Spec(layers, kv_heads=groups, head_dim=dim, width=1, prefix=p, rope=rope)
    where = jnp.broadcast_to(jnp.arange(p)[None, :, None], (layers, p, 1))
    prefix = KV(sink, sink, where[..., None], where, jnp.full((layers, p, 1), 1, jnp.int8))
    q = z["query"].transpose(0, 2, 1, 3)
    asked = q.shape[1]
    q = jnp.asarray(np.concatenate([q, np.full_like(q[:, :2], 7)], 1))  # a padded question
    query = Question(q, jnp.arange(asked + 2) < asked, prefix)
    # Lines of the ledger that no clip has filled yet hold nothing.
    keys = jnp.pad(keys, [(0, topk)] + [(0, 0)] * 4)
    held = jnp.where(jnp.arange(many + topk) < many, index.keys, 0)
    per_layer = jax.jit(partial(memindex.layer_scores, index, spec))(keys, held, query)
    np.testing.assert_allclose(per_layer[:, :many], z["score_per_layer"], rtol=1e-5)
    np.testing.assert_array_equal(per_layer[:, many:], 0)
    score = memindex.scores(index, spec, keys, held, query)
    np.testing.assert_allclose(score[:many], z["score"], rtol=1e-5)
    chosen, keep = retrieval.best(score, jnp.int32(many), topk, 1)
    np.testing.assert_array_equal(np.asarray(chosen)[keep], z["recalled"])


SEEN: list[Chunk] = []
"""What the last write saw, while its step is traced."""


@dataclass(frozen=True)
class Watched(FlexMem):
    """The memory, whose writes can be watched."""

    def write(self, spec, state, chunk):
        SEEN.append(chunk)
        return super().write(spec, state, chunk)


@dataclass(frozen=True)
class Shown(Memory):
    """A question reads the view that the state carries as its aux."""

    per = "stack"

    def init(self, spec, layer=0):
        return State(spec.empty(1), None)

    def recall(self, spec, state, question, bank=None):
        return state.aux


def released_layers(z, layers):
    """The layers that the released code reads; those at the same depths in a model with fewer."""
    if "layers" in z:
        return tuple(int(l) for l in z["layers"])
    return RELEASED if layers > max(RELEASED) else MemIndex().read_layers(layers)


def test_stream(stream):
    z = read(stream)
    n, context_ratio, local_ratio = sizes(z)
    config, params = decoder_config(z), decoder_params(z, head="lm_head")
    known, index = "g" in z, None
    if "index_idx" in z:
        read_layers = released_layers(z, config.layers)
        index = MemIndex(read_layers, keys=z["index_idx"].shape[-1])
    memory = Watched(**options(z), **(
        {"reader": KNOWN, "index": index} if known else {"reader": index}))  # fmt: skip
    spec = spec_of(config, chunk=n, prefix=len(z["input_ids_system"]))
    program = make_program(config, memory, spec)

    def text(ids, more=0):
        return question_rows(params, ids, program=program, size=len(ids) + more)

    prefix = make_prefix(params, config, text(z["input_ids_system"]))
    probes = jax.tree.map(lambda x: x[None], text(z["question_ids"], PAD)) if known else None

    @jax.jit
    def step(carry, rows):
        carry, _ = chunk_step(params, program, carry, rows, prefix, probes)
        return carry, SEEN.pop()

    kind = jnp.full((n,), tk.VISION, jnp.int8)
    rel = jnp.arange(n, dtype=jnp.int32)[:, None]
    carry = init_carry(program)
    for c, x in enumerate(z["clip_features"]):
        rows = Embeds(jnp.asarray(x), rel, kind, jnp.full((1,), n, jnp.int32))
        carry, seen = step(carry, rows)
        begin = c * (n + 1)
        local = np.asarray(carry.bank.slots.index)[:, c * (n // local_ratio) :, 0]
        own = local[:, : n // local_ratio] - begin
        np.testing.assert_array_equal(own, z["local_idx"][c])
        held = min(c + 1, int(z["preblk"])) * (n // context_ratio)
        newest = np.asarray(carry.state.slots.index)[:, held - n // context_ratio : held, 0]
        np.testing.assert_array_equal(newest - begin, z["context_idx"][c])
        if index is not None:
            layers = np.asarray(index.layers)
            kept = z["index_idx"][c][layers]
            expected = np.take_along_axis(np.asarray(seen.kv.k)[layers], kept[..., None, None], 1)
            np.testing.assert_array_equal(np.asarray(carry.state.aux.keys)[c], expected)
    if known:
        relevance = carry.state.aux.relevance[: int(z["n_clips"])]
        np.testing.assert_allclose(relevance, z["g"], rtol=1e-5)

    question = text(z["input_ids_tail"])
    query = None
    if not known:  # the released code retrieves by the question and then passes the whole tail
        asking = text(z["question_ids"])
        query = Question(first_pass(params, program, asking, prefix), asking.modality != 0, prefix)
    view = jax.jit(partial(memory.recall, spec))(carry.state, query, carry.bank)
    np.testing.assert_array_equal(recalled(view.kv, n), z["recalled"])
    held = np.asarray(view.kv.modality)[0, :, 0] != 0
    for name in z:
        if name.startswith("answer_prefix_key_l"):
            layer = int(name.removeprefix("answer_prefix_key_l"))
            keys = np.asarray(view.kv.k)[layer][held].transpose(1, 0, 2)
            np.testing.assert_allclose(keys, z[name], rtol=1e-4, atol=5e-5)

    answering = make_program(config, Shown(), spec)
    shown = init_carry(answering)._replace(state=State(carry.state.slots, view))
    h = jax.jit(lambda c, q: prefill(params, answering, c, q, room=1, prefix=prefix)[1])(
        shown, question
    )
    close = 4e-6 * config.layers  # rounding grows with depth: 1e-4 for the released 28 layers
    np.testing.assert_allclose(logits(params, config, h), z["logits"], rtol=1e-4, atol=close)
