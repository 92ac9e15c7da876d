"""StreamMem against plain loops over tokens and frames, its laws, and its place in the decoder."""

from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, pick, standard

from jaxmem import kv as tk
from jaxmem.decoder.step import chunk_step
from jaxmem.loop import init_carry, make_program, probe_rows, spec_of
from jaxmem.loop import stream as small_stream
from jaxmem.memory.base import Embeds, Received
from jaxmem.memory.video.streammem import TEMPLATE, merge_frames, streammem

BUDGET, FRAME = 16, 2
MEMORIES = {
    "usual": streammem(BUDGET, FRAME, audio_share=0.25),
    "heads": streammem(BUDGET, FRAME, per_head=True, audio_share=0.25),
    "published": streammem(BUDGET, FRAME, per_kind=False),
    "mean": streammem(BUDGET, FRAME, prototypes="mean", per_head=True, per_kind=False),
    "plain": streammem(BUDGET, FRAME, prototypes="none", per_head=True, audio_share=0.25),
}


# Prototypes are no tokens that were written: the subset is a law of "plain" only.
OF_PROTOTYPES = [law for law in LAWS if law != "subset"]


@pytest.mark.parametrize(
    ("name", "law"),
    [
        *(("heads", law) for law in OF_PROTOTYPES),
        ("plain", "subset"),
        *(pytest.param("usual", law, marks=pytest.mark.slow) for law in OF_PROTOTYPES),
        *(pytest.param("plain", law, marks=pytest.mark.slow) for law in OF_PROTOTYPES),
    ],
)
def test_law(name, law):
    LAWS[law](MEMORIES[name])


def frames_of(kind):
    """Return the rows of every frame of a chunk: FRAME vision rows each, the last maybe fewer."""
    image = [t for t in range(len(kind)) if kind[t] == tk.VISION]
    return [image[i : i + FRAME] for i in range(0, len(image), FRAME)]


def plain(memory, name, seen, held, head):
    """One write in one KV head, token by token; `held` and the result: order -> token."""
    group = 0 if seen.tokens.modality.shape[1] == 1 else head
    shared = name in ("usual", "plain", "heads")
    audio = round(BUDGET * 0.25) if shared else 0
    fresh = {}
    for t in range(seen.tokens.modality.shape[0]):
        if seen.tokens.modality[t, 0]:
            fresh[int(seen.tokens.index[t, group])] = {
                "k": seen.tokens.k[t, head],
                "v": seen.tokens.v[t, head],
                "pos": seen.tokens.pos[t, group],
                "kind": int(seen.tokens.modality[t, group]),
                "score": seen.probe.chunk[0, group, t],
            }
    for i, order in enumerate(sorted(held)):
        held[order]["score"] = seen.probe.memory[0, group, i]
    pool = held | fresh
    visual = [o for o in pool if pool[o]["kind"] != tk.AUDIO or not shared]
    if name != "plain" and len(visual) > BUDGET - audio:
        for rows in frames_of(seen.tokens.modality[:, 0]):
            members = [int(seen.tokens.index[t, group]) for t in rows]
            alpha = np.asarray([fresh[o]["score"] if name != "mean" else 1.0 for o in members])
            alpha = alpha / alpha.sum()
            mean = {x: sum(a * fresh[o][x] for a, o in zip(alpha, members, strict=True))
                    for x in ("k", "v", "pos")}  # fmt: skip
            least = min(members, key=lambda o: fresh[o]["score"])
            pool[least] = {**mean, "pos": np.floor(mean["pos"] + 0.5), "kind": tk.SUMMARY,
                           "score": np.inf}  # fmt: skip
    best = sorted(pool, key=lambda o: -pool[o]["score"])
    if not shared:
        return {o: pool[o] for o in sorted(best[:BUDGET])}
    sound = [o for o in best if pool[o]["kind"] == tk.AUDIO][:audio]
    other = [o for o in best if pool[o]["kind"] != tk.AUDIO][: BUDGET - audio]
    return {o: pool[o] for o in sorted(sound + other)}


@pytest.mark.parametrize("name", MEMORIES)
def test_against_a_plain_loop(name):
    """Keys, values, places, kinds and numbers of every KV head after every chunk."""
    memory, chunks = MEMORIES[name], standard()
    state, held = memory.init(SPEC), [{}, {}]
    write = compiled(lambda s, c: (laws.see(memory, s, c), laws.step(memory, s, c)))
    many = 0
    for c in range(len(CUTS)):
        seen, state = jax.device_get(write(state, pick(chunks, c)))
        tokens = state.slots.tokens
        for head in range(2):
            held[head] = plain(memory, name, seen, held[head], head)
            want, n = held[head], len(held[head])
            group = 0 if tokens.modality.shape[1] == 1 else head
            np.testing.assert_array_equal(tokens.index[:n, group], list(want))
            assert not tokens.modality[n:].any()
            for field, at in (("k", head), ("v", head), ("pos", group), ("kind", group)):
                expected = np.stack([want[o][field] for o in want])
                got = getattr(tokens, field)[:n, at]
                np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=f"{field}, {c}")
            many += sum(token["kind"] == tk.SUMMARY for token in want.values())
    assert (many > 0) == (name != "plain")


def test_prototype_positions_stay_exact_late_in_a_stream():
    memory, chunk = MEMORIES["published"], pick(standard(), 0)
    kind = np.full((8, 1), tk.VISION, np.int8)
    late = lambda x: np.asarray(x) + np.asarray(2**30 + 1, np.int32)
    tokens = chunk.tokens._replace(pos=np.full((8, 1, 3), 5, np.int32), modality=kind)
    chunk = chunk._replace(tokens=tokens._replace(pos=late(tokens.pos)))
    state, step = memory.init(SPEC), compiled(partial(laws.step, memory))
    for _ in range(3):
        state = step(state, chunk)
    assert np.sum(state.slots.tokens.modality == tk.SUMMARY) >= 4
    np.testing.assert_array_equal(state.slots.tokens.pos, late(5))


def test_underflowed_attention_weighs_a_frame_evenly():
    memory, chunk = streammem(2, 4, per_kind=False), pick(standard(), 0)
    tokens = chunk.tokens._replace(modality=np.full((8, 1), tk.VISION, np.int8))

    @compiled
    def write(state, chunk):
        seen = laws.see(memory, state, chunk)
        nothing = jax.tree.map(jnp.zeros_like, seen.probe)
        return memory.write(state, seen._replace(probe=nothing))[0].slots.tokens

    tokens = write(memory.init(SPEC), chunk._replace(tokens=tokens))
    np.testing.assert_array_equal(tokens.modality, tk.SUMMARY)
    want = chunk.tokens.k.reshape(2, 4, 2, 4).mean(1)
    np.testing.assert_allclose(tokens.k, want, atol=1e-6)


@pytest.mark.parametrize("delta", [0.95, 0.5, -1.0])
def test_merging_against_a_plain_loop(delta):
    """Runs of similar frames between text and sound, padding last, one frame incomplete."""
    rng = np.random.default_rng(0)
    scene = rng.normal(size=(3, 2 * 6)).astype(np.float32)
    order = (0, 0, 1, 1, 1, 2, 2)  # the last frame is cut after one row
    noisy = [scene[s] + rng.normal(size=12).astype(np.float32) * (0.05 + 0.1 * i)
             for i, s in enumerate(order)]  # fmt: skip
    x, kind = [], []
    for i, image in enumerate(noisy):
        if i % 2 == 0:
            x.append(rng.normal(size=6))
            kind.append(tk.TEXT)
        rows = image.reshape(2, 6)[: 1 if i == 6 else 2]
        x.extend(rows)
        kind.extend([tk.VISION] * len(rows))
    size, n = 20, len(x)
    x = np.pad(np.asarray(x, np.float32), ((0, size - n), (0, 0)), constant_values=7)
    kind = np.pad(np.asarray(kind, np.int8), (0, size - n))
    rel = np.arange(size)[:, None].astype(np.int32)
    deep = np.stack([2 * x, x + 1])
    rows = Embeds(x, rel, kind, np.asarray([n], np.int32), deep)

    kept, image = [], [t for t in range(n) if kind[t] == tk.VISION]
    frames = [image[i : i + 2] for i in range(0, len(image), 2)]
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    runs = []
    for i, members in enumerate(frames):
        near = i and len(members) == 2 and cosine(x[members].ravel(), x[frames[i - 1]].ravel())
        if i and len(members) == 2 and near > delta:
            runs[-1].append(members)
        else:
            runs.append([members])
    assert {0.95: 1, 0.5: 1, -1.0: 1}[delta] <= len(runs) < len(frames)
    out = {t: x[t] for t in range(n) if kind[t] == tk.TEXT}
    for run in runs:
        for p, t in enumerate(run[0]):
            out[t] = np.mean([x[members[p]] for members in run], axis=0)
    kept = sorted(out)

    got = jax.jit(partial(merge_frames, frame=2, delta=delta))(rows)
    np.testing.assert_array_equal(got.modality[: len(kept)], kind[kept])
    np.testing.assert_array_equal(got.pos[: len(kept)], rel[kept])
    assert not np.asarray(got.modality[len(kept) :]).any()
    want = np.stack([out[t] for t in kept])
    np.testing.assert_allclose(got.x[: len(kept)], want, atol=1e-5)
    np.testing.assert_allclose(got.deepstack[0, : len(kept)], 2 * want, atol=1e-5)
    np.testing.assert_allclose(got.deepstack[1, : len(kept)], want + 1, atol=1e-5)
    np.testing.assert_array_equal(got.advance, rows.advance)


def test_in_the_decoder():
    """The probe scores [prefix | memory | chunk]; merged chunks stream; bad probes are named."""
    cfg = small.config(layers=2, axes=1)
    weights, rows = small.params(cfg), small.stream_rows(cfg, 3, 8, lengths=[8, 5, 8])
    program = make_program(cfg, streammem(12, 2, per_kind=False), spec_of(cfg, chunk=8))
    probes = probe_rows(weights, [[1, 2, 3]], program=program)
    watch = compiled(lambda c, r: small_stream(weights, c, r, program=program, probes=probes))
    carry = watch(init_carry(program), rows)
    kinds = np.asarray(carry.state.slots.tokens.modality)
    assert kinds.shape[0] == 24 and (kinds != 0).all() and (kinds == tk.SUMMARY).any()
    fewer = compiled(jax.vmap(lambda rows: merge_frames(rows, 2, -1.0)))(rows)
    merged = watch(init_carry(program), fewer)
    assert not np.array_equal(merged.state.slots.tokens.k, carry.state.slots.tokens.k)
    with pytest.raises(ValueError, match="pass probes="):
        chunk_step(weights, program, init_carry(program), small.chunk(rows, 0))
    two = probe_rows(weights, [[1], [2]], program=program)
    step = lambda carry: chunk_step(weights, program, carry, small.chunk(rows, 0), None, two)
    with pytest.raises(ValueError, match="one probe"):
        jax.eval_shape(step, init_carry(program))
    assert TEMPLATE.endswith("assistant\n")


def test_renumbered_positions():
    memory = streammem(BUDGET, FRAME, positions="contiguous")
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    view = memory.recall(state, None, None)
    np.testing.assert_array_equal(view.tokens.pos[:, 0, 0], np.arange(BUDGET))
    np.testing.assert_array_equal(view.base, [BUDGET] * 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: streammem(8, 0), "vision tokens of a frame"),
        (lambda: streammem(8, 2, prototypes="sum"), "'weighted', 'mean' or 'none'"),
        (lambda: streammem(0, 2), "at least 1 slot"),
        (lambda: streammem(8, 2, positions="dense"), "'dense'"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_attention_decides():
    """What the probe looks at stays; what it ignores goes (frames of one token: no folding)."""
    memory, chunks = streammem(4, 1, prototypes="none", per_kind=False), standard()

    @compiled
    def write(state, chunk):
        seen = laws.see(memory, state, chunk)
        loud = jnp.zeros((1, 1, 8)).at[0, 0, jnp.asarray([1, 3, 4, 6])].set(1.0)
        probe = Received(seen.probe.memory[:, :, :4], loud)
        return memory.write(state, seen._replace(probe=probe))[0]

    state = write(memory.init(SPEC), pick(chunks, 0))
    np.testing.assert_array_equal((state.slots.tokens.index[:, 0] - 1) // 2, [1, 3, 4, 6])
