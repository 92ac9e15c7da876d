"""HERMES against the released code: scores, kept sets, re-indexing, and whole streams."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import read

from jaxmem import kv as tk
from jaxmem.decoder.answer import decode, prefill
from jaxmem.decoder.decoder import DecoderConfig, embed, logits
from jaxmem.decoder.program import Carry
from jaxmem.decoder.step import chunk_step, init_carry, make_prefix, make_program, spec_of
from jaxmem.kernels.select import select
from jaxmem.kv import KV
from jaxmem.loop import probe_rows, question_rows
from jaxmem.memory.base import Embeds, State
from jaxmem.memory.hermes import bands
from jaxmem.memory.hermes.hermes import LLAVA, QWEN, attention_received, hermes, importance
from jaxmem.memory.hermes.merge import Slots, shrink
from jaxmem.memory.parts import positions
from jaxmem.rope import mrope_sectioned, rope, rope_1d

SMOOTHING = np.asarray([0.1, 0.3, 0.4])
MODES = ["lazy", "lazy_compact", "eager"]
STREAMS = [f"stream_{family}_{mode}" for family in ("llava", "qwen") for mode in MODES]
PAD = 3  # padding rows behind every chunk


def load(golden, name):
    path = golden / "hermes" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} in the golden folder")
    return read(path)


def table(z):
    """The file's rotary embedding."""
    if "mrope_section" in z:
        sections = tuple(int(s) for s in z["mrope_section"])
        return mrope_sectioned(int(z["head_dim"]), float(z["rope_theta"]), sections)
    return rope_1d(int(z["head_dim"]), float(z["rope_theta"]))


@partial(jax.jit, static_argnums=2)
def turn(k, pos, rotary):
    return jax.vmap(lambda k, p: rope(k, p[:, None], rotary))(k, pos)


def layered_rope(k, pos, rotary):
    """Rotate keys [L, N, G, D] to positions [L, N, A]."""
    return np.asarray(turn(k, pos, rotary))


def kept_of(z, prefix=""):
    """The kept cache indices of every layer, prefix and padding left out."""
    rows = zip(z[f"{prefix}keep_indices"], z[f"{prefix}keep_len"], strict=True)
    return [row[int(z["prefix_len"]) : n] - int(z["prefix_len"]) for row, n in rows]


def band_of(z):
    band = bands.split(int(z["num_layers"]))
    assert (band.middle, band.deep) == (int(z["short_threshold"]), int(z["long_threshold"]))
    return band


@jax.jit
def chosen(smoothed, caps):
    return jax.vmap(lambda s, c: select(s[None], c[None], slots=64))(smoothed, caps)


@pytest.mark.parametrize("name", ["prune_llava", "prune_qwen"])
def test_scores_and_selection(golden, name):
    z = load(golden, name)
    band, p, n = band_of(z), int(z["prefix_len"]), int(z["num_visual"])
    deep = (band.of == bands.DEEP)[:, None]
    mean = lambda text: z[f"attn_{text}"].mean((1, 2))[:, p : p + n]
    attention = np.where(deep, mean("global"), mean("mixed"))
    # Garbage behind the valid entries must not matter.
    attention = np.concatenate([attention, np.full((band.layers, 7), 9.0)], 1).astype(np.float32)
    valid = np.broadcast_to(np.arange(n + 7) < n, attention.shape)

    mix = LLAVA if name.endswith("llava") else QWEN
    raw = importance(jnp.asarray(attention), jnp.asarray(valid), mix, band)
    np.testing.assert_allclose(raw[:, :n], z["raw_scores"], atol=1e-5)
    smoothed = bands.smooth(raw, SMOOTHING[band.of], recursive=True)
    np.testing.assert_allclose(smoothed[:, :n], z["smoothed_scores"], atol=1e-5)
    ranked = jnp.where(valid, smoothed, -jnp.inf)
    index, keep = chosen(ranked, jnp.asarray(z["budget"]))
    for l, expected in enumerate(kept_of(z)):
        np.testing.assert_array_equal(index[l][keep[l]], expected)


@pytest.mark.parametrize("name", [f"shrink_{f}_{m}" for f in ("llava", "qwen") for m in MODES])
def test_positions_keys_and_summaries(golden, name):
    z = load(golden, name)
    band, rotary, p, m = band_of(z), table(z), int(z["prefix_len"]), int(z["kv_size"])
    pos = z["pos"][:, None] if z["pos"].ndim == 2 else z["pos"]
    pos = pos.swapaxes(1, 2)  # [L, P + n, A]
    k, v = (z[x].swapaxes(1, 2) for x in "kv")
    k = layered_rope(k, -pos, rotary)  # as they are stored: before rotation
    expected = z["pos_new"] if z["pos_new"].ndim == 3 else z["pos_new"][:, None]
    expected = expected.swapaxes(1, 2)

    limit = int(z["max_position_embeddings"]) - 1024
    far = bool(pos.max() > limit)
    assert far == (name.endswith("lazy_compact"))
    close = far or not int(z["streaming"])
    start = jnp.full(pos.shape[-1:], p, pos.dtype)

    @jax.jit
    def one(pool, index, keep, fold):
        out = shrink(pool, index, keep, fold=fold, close=close, start=start)
        begin = positions.behind(out.placed, out.held, start)
        return out.tokens, rope(out.tokens.k, out.tokens.pos, rotary), begin

    for l, kept in enumerate(kept_of(z)):
        n = pos.shape[1] - p
        pool = KV(
            k=jnp.asarray(k[l, p:]),
            v=jnp.asarray(v[l, p:]),
            pos=jnp.asarray(pos[l, p:, None]),
            index=jnp.arange(n, dtype=jnp.int32)[:, None],
            modality=jnp.full((n, 1), tk.VISION, jnp.int8),
        )
        index = jnp.asarray(np.resize(kept, m))
        keep = jnp.arange(m) < len(kept)
        out, turned, begin = one(Slots(pool), index, keep, band.of[l] == bands.DEEP)
        np.testing.assert_allclose(out.pos[:, 0], expected[l, p:], atol=1e-5)
        np.testing.assert_allclose(turned, z["k_new"][l].swapaxes(0, 1)[p:], atol=1e-5)
        np.testing.assert_allclose(out.v, z["v_new"][l].swapaxes(0, 1)[p:], atol=1e-5)
        next_ = z["next_offset" if "next_offset" in z else "next_start"][l]
        np.testing.assert_array_equal(begin, np.full_like(begin, next_))
        kinds = [tk.VISION] * len(kept) + [tk.SUMMARY] * (m - len(kept))
        np.testing.assert_array_equal(out.modality[:, 0], kinds)


def decoder(z, w):
    """A stream file's decoder: parameters and config."""
    of = {"q": "wq", "k": "wk", "v": "wv", "o": "wo", "gate": "w_gate", "up": "w_up",
          "down": "w_down"}  # fmt: skip
    layers = {name: {"kernel": w[theirs].swapaxes(1, 2)} for name, theirs in of.items()}
    for name in "qkv":
        layers[name]["bias"] = w[f"b{name}"]
    layers |= {"attn_norm": {"scale": w["input_norm"]}, "mlp_norm": {"scale": w["post_norm"]}}
    params = {
        "layers": layers,
        "embedding": {"embedding": w["embed"]},
        "norm": {"scale": w["final_norm"]},
        "head": {"kernel": w["lm_head"].T},
    }
    config = DecoderConfig(
        layers=int(z["num_layers"]),
        width=w["embed"].shape[1],
        heads=int(z["num_heads"]),
        kv_heads=int(z["num_kv_heads"]),
        head_dim=int(z["head_dim"]),
        mlp_width=w["w_up"].shape[1],
        vocab=w["embed"].shape[0],
        rope=table(z),
        qkv_bias=True,
        norm_eps=float(z["rms_norm_eps"]),
    )
    return jax.tree.map(jnp.asarray, params), config


def watched(memory):
    """The memory, with what each write saw in place of the state's notes."""
    return memory._replace(
        write=lambda state, seen: (State(memory.write(state, seen)[0], seen), None)
    )


def memory_of(z, **more):
    qwen = "mrope_section" in z
    return hermes(
        int(z["kv_size"]),
        mix=QWEN if qwen else LLAVA,
        positions="lazy" if int(z["streaming"]) else "eager",
        max_position=int(z["max_position_embeddings"]),
        shared_offset=table(z) if qwen else None,
        per_kind=False,
        **more,
    )


def chunk_rows(z, s):
    """Chunk s of a stream, with padding behind."""
    if "features" in z:
        x = z["features"][s]
        rel = np.arange(len(x), dtype=np.int32)[:, None]
    else:
        x = z[f"s{s}_features"]
        t, h, w = z["grids_thw"][s] // [1, 2, 2]
        rel = np.stack(np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij"), -1)
        rel = rel.reshape(-1, 3).astype(np.float32)
        step = 2 / float(z["sample_fps"]) * float(z["tokens_per_second"])
        rel[:, 0] = rel[:, 0] * np.float32(step)
    n = len(x)
    behind = lambda a, fill: np.concatenate([a, np.full((PAD, *a.shape[1:]), fill, a.dtype)])
    span = np.full(rel.shape[1], np.floor(rel.max()) + 1, rel.dtype)
    kind = np.where(np.arange(n + PAD) < n, tk.VISION, tk.EMPTY).astype(np.int8)
    return Embeds(*(jnp.asarray(a) for a in (behind(x, 5.0), behind(rel, 77), kind, span)))


class Run:
    """One stream through the decoder, chunk by chunk."""

    def __init__(self, golden, name):
        self.z = z = load(golden, name)
        self.params, self.config = decoder(z, load(golden, f"{name}_weights"))
        self.memory = memory_of(z)
        dtype = jnp.float32 if "mrope_section" in z else jnp.int32
        rows = len(chunk_rows(z, 0).x) if "features" in z else max(
            len(z[f"s{s}_features"]) + PAD for s in range(int(z["num_steps"])))  # fmt: skip
        self.spec = spec_of(self.config, chunk=rows, prefix=int(z["prefix_len"]), pos_dtype=dtype)
        self.program = make_program(self.config, watched(self.memory), self.spec)
        prompt = question_rows(self.params, z["init_ids"], program=self.program,
                               size=len(z["init_ids"]))  # fmt: skip
        self.prefix = make_prefix(self.params, self.config, prompt, pos_dtype=dtype)
        self.step = jax.jit(
            lambda carry, rows, probes: chunk_step(
                self.params, self.program, carry, rows, self.prefix, probes
            )[0]
        )

        self.scores = jax.jit(self.scored)

    def scored(self, before, seen):
        """What a write computes on its way: attention, raw and smoothed scores [L, S + T]."""
        band, mix = band_of(self.z), QWEN if "mrope_section" in self.z else LLAVA
        n = jnp.sum(before.slots.tokens.modality[..., 0] != 0, axis=1)
        valid = n + jnp.sum(seen.tokens.modality[..., 0] != 0, axis=1)
        attention = attention_received(seen, n, band)
        valid = jnp.arange(attention.shape[1])[None] < valid[:, None]
        raw = importance(attention, valid, mix, band)
        return attention, raw, bands.smooth(raw, SMOOTHING[band.of], recursive=True)

    def start(self) -> Carry:
        return init_carry(self.program)

    def probes(self, s, names=("mixed", "global"), z=None):
        ids = [(self.z if z is None else z)[f"s{s}_ids_{n}" if z is None else f"ids_{n}"]
               for n in names]  # fmt: skip
        return probe_rows(self.params, ids, program=self.program)

    def write(self, carry, s):
        carry = self.step(carry, chunk_rows(self.z, s), self.probes(s))
        return carry._replace(state=carry.state.slots), carry.state.aux


def check_cache(run, state, s):
    """Positions, rotated keys and values of prefix and memory after step s."""
    z, tokens = run.z, state.slots.tokens
    record = tokens.pos[:, :, 0] if state.slots.record is None else state.slots.record
    record = np.asarray(record)
    expected = z[f"s{s}_pos_after"]
    expected = (expected if expected.ndim == 3 else expected[:, None]).swapaxes(1, 2)
    p, n = int(z["prefix_len"]), expected.shape[1] - int(z["prefix_len"])
    held = np.asarray(tokens.modality[..., 0]) != 0
    np.testing.assert_array_equal(held, np.broadcast_to(np.arange(held.shape[1]) < n, held.shape))
    if run.program.spec.pos_dtype == jnp.int32:
        np.testing.assert_array_equal(record[:, :n], expected[:, p:])
    else:  # fractional seconds, summed in float32 in another order
        np.testing.assert_allclose(record[:, :n], expected[:, p:], atol=1e-5)
    order = np.asarray(tokens.index)[:, :n, 0]
    assert (np.diff(order, axis=1) > 0).all()
    if f"s{s}_k_after" not in z:
        return
    parts = [(run.prefix, slice(0, p), p), (tokens, slice(p, None), n)]
    for part, at, size in parts:
        k = layered_rope(part.k, part.pos[:, :, 0], run.config.rope)[:, :size]
        expected_k, expected_v = (z[f"s{s}_{x}_after"].swapaxes(1, 2)[:, at] for x in "kv")
        np.testing.assert_allclose(k, expected_k, atol=1e-4)
        np.testing.assert_allclose(np.asarray(part.v)[:, :size], expected_v, atol=1e-4)


def check_scores(run, before, seen, s):
    """Probe attention, raw and smoothed scores, and the kept set of a step that drops tokens."""
    z, p = run.z, int(run.z["prefix_len"])
    band, fp16 = band_of(z), "mrope_section" in z
    n = z[f"s{s}_raw_scores"].shape[1]
    attention, raw, smoothed = (np.asarray(x)[:, :n] for x in run.scores(before, seen))
    for which, name in ((bands.MIDDLE, "mixed"), (bands.DEEP, "global")):
        expected = z[f"s{s}_attnmean_{name}"][band.of == which, p : p + n]
        # The released Qwen code takes these softmaxes in float16.
        close = 1e-3 if fp16 else 1e-5
        np.testing.assert_allclose(attention[band.of == which], expected, atol=close)
    close = 5e-3 if fp16 else 1e-4
    np.testing.assert_allclose(raw, z[f"s{s}_raw_scores"], atol=close)
    np.testing.assert_allclose(smoothed, z[f"s{s}_smoothed_scores"], atol=close)
    kept = kept_of(z, f"s{s}_")
    for l in range(band.layers):
        best = np.sort(np.argsort(-smoothed[l], kind="stable")[: len(kept[l])])
        np.testing.assert_array_equal(best, kept[l])


def check_answer(run, carry, s):
    """Greedy decoding with the released repetition penalty, over the compressed memory."""
    z, before = run.z, jax.device_get(carry)
    question = question_rows(run.params, z[f"s{s}_qa_prompt_ids"], program=run.program)
    expected = z[f"s{s}_qa_output_ids"]
    ask = jax.jit(lambda c, q: prefill(run.params, run.program, c, q, room=len(expected),
                                       prefix=run.prefix))  # fmt: skip
    more = jax.jit(lambda d, t: decode(run.params, run.program, d, embed(run.params, t)))
    dialogue, h = ask(carry, question)
    out = np.asarray(logits(run.params, run.config, h[len(z[f"s{s}_qa_prompt_ids"]) - 1]))
    ids = []
    for _ in expected:
        fair = out.copy()
        used = np.unique(np.asarray(ids, int))
        penalty = float(z["repetition_penalty"])
        fair[used] = np.where(fair[used] > 0, fair[used] / penalty, fair[used] * penalty)
        ids.append(int(np.argmax(fair)))
        dialogue, h = more(dialogue, jnp.asarray(ids[-1]))
        out = np.asarray(logits(run.params, run.config, h))
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(out, z[f"s{s}_qa_last_logits"], atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(carry))


@pytest.mark.parametrize("name", STREAMS)
def test_stream(golden, name):
    run = Run(golden, name)
    carry, z = run.start(), run.z
    for s in range(int(z["num_steps"])):
        before = carry.state
        starts = z[f"s{s}_start_pos" if f"s{s}_start_pos" in z else f"s{s}_offset"]
        np.testing.assert_array_equal(before.aux.next_pos[:, 0], starts)
        carry, seen = run.write(carry, s)
        if int(z["compressed"][s]):
            check_scores(run, before, seen, s)
        else:  # nothing is dropped: the probes did not run
            assert not any(np.asarray(part).any() for part in seen.probe)
        check_cache(run, carry.state, s)
        if f"s{s}_qa_prompt_ids" in z:
            check_answer(run, carry, s)


@cache
def before_step(golden, name, step):
    run = Run(golden, name)
    carry = run.start()
    for s in range(step):
        carry, _ = run.write(carry, s)
    return run, carry


def received(run, carry, s, attention, probes, n):
    """Mean attention of every probe on every layer's pool [L, probes, n], none of them skipped."""
    memory = memory_of(run.z, attention=attention)
    everywhere = lambda *a: memory.view(*a)._replace(probing=None)
    report = memory._replace(view=everywhere, write=lambda state, seen: (State(state, seen), None))
    program = make_program(run.config, report, run.spec)
    seen = jax.jit(
        lambda c, r, p: chunk_step(run.params, program, c, r, run.prefix, p)[0].state.aux
    )(carry, chunk_rows(run.z, s), probes)
    filled = int(jnp.sum(carry.state.slots.tokens.modality[0, :, 0] != 0))
    both = jnp.concatenate([seen.probe.memory[..., 0, :filled], seen.probe.chunk[..., 0, :]], -1)
    return np.asarray(both[..., :n] / seen.probe_rows[..., None])


@pytest.mark.parametrize("attention", ["official", "exact"])
def test_attention_of_all_prompts_in_all_layers(golden, attention):
    run, carry = before_step(golden, "stream_llava_lazy", 3)
    names, p = ("local", "global", "mixed"), int(run.z["prefix_len"])
    z = load(golden, "exact_attention_llava") if attention == "exact" else None
    probes = run.probes(3, names, z)
    n = run.z["s3_raw_scores"].shape[1]
    got = received(run, carry, 3, attention, probes, n)
    for i, name in enumerate(names):
        rows = run.z[f"s3_attn_{name}"] if z is None else z[f"attn_{name}"]
        np.testing.assert_allclose(got[:, i], rows.mean((1, 2))[:, p : p + n], atol=1e-6)
