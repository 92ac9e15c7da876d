"""StreamMem against plain loops over tokens and frames, its laws, and its place in the decoder."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, pick, standard

from jaxmem import kv as tk
from jaxmem.bound import Bound, probe_rows
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.loop import stream as small_stream
from jaxmem.memory.exchange import Embeds, Probed, Probes, Prompt, Received
from jaxmem.memory.video.streammem import StreamMem, merge_frames

BUDGET, FRAME = 16, 2
FRAMED = replace(SPEC, frame=(1, FRAME))
MEMORIES = {
    "usual": StreamMem(BUDGET, frame=FRAME, audio_share=0.25),
    "heads": StreamMem(BUDGET, frame=FRAME, per_head=True, audio_share=0.25),
    "published": StreamMem(BUDGET, frame=FRAME, audio_share=None),
    "mean": StreamMem(BUDGET, frame=FRAME, prototypes="mean", per_head=True, audio_share=None),
    "plain": StreamMem(BUDGET, frame=FRAME, prototypes="none", per_head=True, audio_share=0.25),
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
    """One write in one KV head, token by token; `held` and the result: index -> token."""
    group = 0 if seen.kv.modality.shape[1] == 1 else head
    shared = name in ("usual", "plain", "heads")
    audio = round(BUDGET * 0.25) if shared else 0
    fresh = {}
    for t in range(seen.kv.modality.shape[0]):
        if seen.kv.modality[t, 0]:
            fresh[int(seen.kv.index[t, group])] = {
                "k": seen.kv.k[t, head],
                "v": seen.kv.v[t, head],
                "pos": seen.kv.pos[t, group],
                "modality": int(seen.kv.modality[t, group]),
                "score": seen.probed.received.chunk[0, group, t],
            }
    for i, order in enumerate(sorted(held)):
        held[order]["score"] = seen.probed.received.memory[0, group, i]
    pool = held | fresh
    visual = [o for o in pool if pool[o]["modality"] != tk.AUDIO or not shared]
    if name != "plain" and len(visual) > BUDGET - audio:
        for rows in frames_of(seen.kv.modality[:, 0]):
            members = [int(seen.kv.index[t, group]) for t in rows]
            alpha = np.asarray([fresh[o]["score"] if name != "mean" else 1.0 for o in members])
            alpha = alpha / alpha.sum()
            mean = {x: sum(a * fresh[o][x] for a, o in zip(alpha, members, strict=True))
                    for x in ("k", "v", "pos")}  # fmt: skip
            least = min(members, key=lambda o: fresh[o]["score"])
            pool[least] = {**mean, "pos": np.floor(mean["pos"] + 0.5), "modality": tk.SUMMARY,
                           "score": np.inf}  # fmt: skip
    best = sorted(pool, key=lambda o: -pool[o]["score"])
    if not shared:
        return {o: pool[o] for o in sorted(best[:BUDGET])}
    sound = [o for o in best if pool[o]["modality"] == tk.AUDIO][:audio]
    other = [o for o in best if pool[o]["modality"] != tk.AUDIO][: BUDGET - audio]
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
        tokens = state.slots.kv
        for head in range(2):
            held[head] = plain(memory, name, seen, held[head], head)
            want, n = held[head], len(held[head])
            group = 0 if tokens.modality.shape[1] == 1 else head
            np.testing.assert_array_equal(tokens.index[:n, group], list(want))
            assert not tokens.modality[n:].any()
            for field, at in (("k", head), ("v", head), ("pos", group), ("modality", group)):
                expected = np.stack([want[o][field] for o in want])
                got = getattr(tokens, field)[:n, at]
                np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=f"{field}, {c}")
            many += sum(token["modality"] == tk.SUMMARY for token in want.values())
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
    assert np.sum(state.slots.kv.modality == tk.SUMMARY) >= 4
    np.testing.assert_array_equal(state.slots.kv.pos, late(5))


def test_underflowed_attention_weighs_a_frame_evenly():
    memory, chunk = StreamMem(2, frame=4, audio_share=None), pick(standard(), 0)
    tokens = chunk.tokens._replace(modality=np.full((8, 1), tk.VISION, np.int8))

    @compiled
    def write(state, chunk):
        seen = laws.see(memory, state, chunk)
        nothing = jax.tree.map(jnp.zeros_like, seen.probed)
        return memory.write(SPEC, state, seen._replace(probed=nothing))[0].slots.kv

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
    memory = StreamMem(12, audio_share=None)
    assert memory.requires.probes == Probes(1, "causal")
    program = make_program(cfg, memory, spec_of(cfg, chunk=8, frame=(1, 2)))
    bound = Bound(weights, probes=probe_rows(weights, [[1, 2, 3]], program=program))
    watch = compiled(lambda c, r: small_stream(bound, c, r, program=program))
    carry = watch(init_carry(program), rows)
    kinds = np.asarray(carry.state.slots.kv.modality)
    assert kinds.shape[0] == 24 and (kinds != 0).all() and (kinds == tk.SUMMARY).any()
    fewer = compiled(jax.vmap(lambda rows: merge_frames(rows, 2, -1.0)))(rows)
    merged = watch(init_carry(program), fewer)
    assert not np.array_equal(merged.state.slots.kv.k, carry.state.slots.kv.k)
    with pytest.raises(ValueError, match="scores by 1 probes, got 0"):
        chunk_step(weights, program, init_carry(program), small.chunk(rows, 0))
    seen = laws.see(memory, memory.init(FRAMED), pick(standard(), 0))
    two = jax.tree.map(lambda x: jnp.concatenate([x, x]), seen.probed)
    for probed in (None, two):
        with pytest.raises(ValueError, match="one probe"):
            memory.write(FRAMED, memory.init(FRAMED), seen._replace(probed=probed))


def test_the_probe_is_what_the_template_writes_before_an_answer():
    """The template's own tokens, whatever model it is of; not a question."""
    assert StreamMem(8).prompts(("a question", "an answer")) == (
        Prompt("<|im_end|><|im_start|>assistant\n", "answer_start"),
    )


def silent(chunks=6):
    """Return chunks of two frames of four tokens and no sound."""
    return laws.cut(laws.stream(8 * chunks, kinds=np.full(8 * chunks, tk.VISION)), [8] * chunks, 8)


@pytest.mark.parametrize("prototypes", ["weighted", "none"])
def test_slots_of_audio_are_lent_while_there_is_none(prototypes):
    """A silent stream is kept, and folded, as if audio had no part."""
    more = {"frame": 4, "prototypes": prototypes}
    shared, alone = (StreamMem(BUDGET, audio_share=share, **more) for share in (0.5, None))
    after = [jax.device_get(laws.run(m, m.init(SPEC), silent())[0].slots) for m in (shared, alone)]
    assert int(tk.count(after[0].kv)) == BUDGET
    laws.assert_same(after[0], after[1], "silent stream")


@pytest.mark.parametrize("budget", [1, 2, 8])
def test_few_slots_are_a_memory(budget):
    memory = StreamMem(budget, frame=4)
    kv = laws.run(memory, memory.init(SPEC), standard())[0].slots.kv
    assert int(tk.count(kv)) == budget


def test_the_newest_are_always_held():
    memory = StreamMem(BUDGET, frame=4, prototypes="none", audio_share=None, newest=6)
    kv = laws.run(memory, memory.init(SPEC), standard())[0].slots.kv
    want = np.arange(sum(CUTS) - 6, sum(CUTS))
    np.testing.assert_array_equal((laws.held(kv)[-6:] - 1) // 2, want)


def test_equal_options_are_equal():
    assert StreamMem(8) == StreamMem(8) != StreamMem(8, per_head=True)
    assert len({StreamMem(8), StreamMem(8)}) == 1


def test_renumbered_positions():
    memory = StreamMem(BUDGET, frame=FRAME, reindex=True)
    state, _ = laws.run(memory, memory.init(SPEC), standard())
    view = memory.recall(SPEC, state, None)
    np.testing.assert_array_equal(view.kv.pos[:, 0, 0], np.arange(BUDGET))
    np.testing.assert_array_equal(view.base, [BUDGET] * 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StreamMem(8, frame=0), "frame of at least 1"),
        (lambda: StreamMem(8, prototypes="sum"), "'weighted', 'mean', 'none'.*'sum'"),
        (lambda: StreamMem(0), "budget of at least 1"),
        (lambda: StreamMem(8, newest=9), "newest=9"),
        (lambda: StreamMem(8).init(replace(SPEC, frame=None)), "Spec.frame"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_attention_decides():
    """What the probe looks at stays; what it ignores goes (frames of one token: no folding)."""
    memory = StreamMem(4, prototypes="none", audio_share=None)
    chunks = standard()

    @compiled
    def write(state, chunk):
        seen = laws.see(memory, state, chunk)
        loud = jnp.zeros((1, 1, 8)).at[0, 0, jnp.asarray([1, 3, 4, 6])].set(1.0)
        probed = Probed(Received(seen.probed.received.memory[:, :, :4], loud), seen.probed.rows)
        return memory.write(SPEC, state, seen._replace(probed=probed))[0]

    state = write(memory.init(SPEC), pick(chunks, 0))
    np.testing.assert_array_equal((state.slots.kv.index[:, 0] - 1) // 2, [1, 3, 4, 6])
