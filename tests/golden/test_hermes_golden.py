"""HERMES against the released code: scores, kept sets, closed positions, and whole streams."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import cases, found
from weights import read

from jaxmem import kv as tk
from jaxmem.bound import probe_rows, question_rows
from jaxmem.decoder.answer import decode, prefill
from jaxmem.decoder.decoder import DecoderConfig, embed, logits
from jaxmem.decoder.layer import layer_step
from jaxmem.decoder.step import chunk_step, init_carry, make_prefix, make_program, spec_of
from jaxmem.kernels.select import select
from jaxmem.kv import KV
from jaxmem.memory.exchange import Chunk, Embeds, Probes
from jaxmem.memory.hermes import bands
from jaxmem.memory.hermes.bands import LLAVA, QWEN
from jaxmem.memory.hermes.hermes import Hermes, attention_received, importance
from jaxmem.memory.hermes.merge import shrink
from jaxmem.memory.parts import positions
from jaxmem.rope import Rope, mrope_sectioned, rope, rope_1d

RELEASED = Hermes(8)  # its defaults: smoothing, margin
SMOOTHING = np.asarray(RELEASED.smoothing)
PAD = 3  # padding rows after every chunk
PROMPTS = ("local", "global", "mixed")


SLOW = ("stream_llava_eager", "stream_llava_lazy", "stream_qwen_lazy", "stream_qwen_lazy_compact")
SLOW_OF = {"stream": (*SLOW, "stream_llava_lazy_compact"), "attended": ("stream_llava_lazy",)}


def pytest_generate_tests(metafunc):
    """Every file of a kind is a case; weights lie beside the streams that they are of."""
    kinds = {"prune": "prune", "shrink_file": "shrink", "stream": "stream",
             "attended": "stream", "exact_attention": "exact_attention"}  # fmt: skip
    for name, kind in kinds.items():
        if name in metafunc.fixturenames:
            files = found(metafunc.config, f"hermes/{kind}_*.npz")
            files = [f for f in files if not f.stem.endswith("_weights")]
            if name == "attended":
                files = [f for f in files if attended_steps(read(f))]
            metafunc.parametrize(name, cases(metafunc.config, files, SLOW_OF.get(name, ())))


def attended_steps(z):
    """The steps whose attention is in a stream file."""
    return [s for s in range(int(z["num_steps"])) if f"s{s}_attn_{PROMPTS[0]}" in z]


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


@partial(jax.jit, static_argnums=2)
def chosen(smoothed, quotas, slots):
    return jax.vmap(lambda s, c: select(s[None], c[None], slots=slots))(smoothed, quotas)


def test_scores_and_selection(prune):
    z = read(prune)
    band, p, n = band_of(z), int(z["prefix_len"]), int(z["num_visual"])
    deep = (band.of == bands.DEEP)[:, None]
    mean = lambda text: z[f"attn_{text}"].mean((1, 2))[:, p : p + n]
    attention = np.where(deep, mean("global"), mean("mixed"))
    # Garbage after the valid entries must not matter.
    attention = np.concatenate([attention, np.full((band.layers, PAD), 9.0)], 1)
    attention = attention.astype(np.float32)
    valid = np.broadcast_to(np.arange(n + PAD) < n, attention.shape)

    mix = QWEN if "qwen" in prune.stem else LLAVA
    raw = importance(jnp.asarray(attention), jnp.asarray(valid), mix, band)
    np.testing.assert_allclose(raw[:, :n], z["raw_scores"], atol=1e-5)
    smoothed = bands.smooth(raw, SMOOTHING[band.of], recursive=True)
    np.testing.assert_allclose(smoothed[:, :n], z["smoothed_scores"], atol=1e-5)
    ranked = jnp.where(valid, smoothed, -jnp.inf)
    index, keep = chosen(ranked, jnp.asarray(z["budget"]), int(z["kv_size"]))
    for l, expected in enumerate(kept_of(z)):
        np.testing.assert_array_equal(index[l][keep[l]], expected)


def test_positions_keys_and_summaries(shrink_file):
    z = read(shrink_file)
    band, rotary, p, m = band_of(z), table(z), int(z["prefix_len"]), int(z["kv_size"])
    pos = z["pos"][:, None] if z["pos"].ndim == 2 else z["pos"]
    pos = pos.swapaxes(1, 2)  # [L, P + n, A]
    k, v = (z[x].swapaxes(1, 2) for x in "kv")
    k = layered_rope(k, -pos, rotary)  # as they are stored: before rotation
    expected = z["pos_new"] if z["pos_new"].ndim == 3 else z["pos_new"][:, None]
    expected = expected.swapaxes(1, 2)

    np.testing.assert_allclose(pos.max(), z["old_max_position"], rtol=1e-6)
    limit = int(z["max_position_embeddings"]) - RELEASED.margin
    close = bool(pos.max() > limit) or not int(z["streaming"])
    start = jnp.full(pos.shape[-1:], p, pos.dtype)

    @jax.jit
    def one(pool, index, keep, fold):
        out = shrink(pool, index, keep, fold=fold, close=close, start=start)
        begin = positions.following(out.pos[:, 0], tk.valid(out)[:, 0], start)
        return out, rope(out.k, out.pos, rotary), begin

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
        out, turned, begin = one(pool, index, keep, band.of[l] == bands.DEEP)
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
    return jax.device_put(params), config


SEEN: list[Chunk] = []
"""What the last write saw, while its step is traced."""


@dataclass(frozen=True)
class Watched(Hermes):
    """The memory, whose writes can be watched."""

    def write(self, spec, state, chunk):
        SEEN.append(chunk)
        return super().write(spec, state, chunk)


@dataclass(frozen=True)
class SharedOffset(Watched):
    """The released Qwen code, which rotates the new rows of all layers from layer 0's offset.

    It records the offsets that each layer would have, and everything else follows the record.
    Keys are stored turned by the difference, at the recorded position: that is the same rotation.
    """

    rotary: Rope = None  # type: ignore[assignment]

    def view(self, spec, state, embeds, bank=None):
        view = super().view(spec, state, embeds, bank)
        return view._replace(base=jnp.broadcast_to(view.base[:1], view.base.shape))

    def write(self, spec, state, chunk):
        own = state.aux.next_pos
        shift = (own - own[:1])[:, None]
        back = jnp.broadcast_to(-shift, chunk.kv.pos[:, :, 0].shape)
        k, pos = turn(chunk.kv.k, back, self.rotary), chunk.kv.pos + shift[:, :, None]
        return super().write(spec, state, chunk._replace(kv=chunk.kv._replace(k=k, pos=pos)))


@dataclass(frozen=True)
class Everywhere(Watched):
    """So many probes pass through every layer, and nothing is written."""

    count: int = 2

    @property
    def requires(self):
        asked = super().requires
        return asked._replace(probes=Probes(self.count, asked.probes.form))

    def view(self, spec, state, embeds, bank=None):
        return super().view(spec, state, embeds, bank)._replace(probing=None)

    def write(self, spec, state, chunk):
        SEEN.append(chunk)
        return state, None


@dataclass(frozen=True)
class EverywhereShared(Everywhere, SharedOffset):
    """Both: `Everywhere` for the released Qwen code."""


def options(z):
    """The options of a memory that a file says."""
    qwen = "mrope_section" in z
    return {
        "budget": int(z["kv_size"]),
        "mix": "qwen" if qwen else "llava",
        "positions": "lazy" if int(z["streaming"]) else "eager",
        "max_position": int(z["max_position_embeddings"]),
        "audio_share": None,
        **({"rotary": table(z)} if qwen else {}),
    }


def step_with_shared_offset(params, program, carry, embeds, prefix, probes):
    """One chunk as the released Qwen code passes it: probes come after the recorded offsets."""
    memory, spec = program.memory, program.spec
    views = memory.view(spec, carry.state, embeds)
    shift = carry.state.aux.next_pos - views.base

    def body(h, item):
        layer, view, pinned, shift = item
        mine = probes._replace(pos=probes.pos + shift[None, None])
        out = layer_step(params, program, layer, h, view, embeds, carry.clock, pinned, mine)
        return out.h, out.chunk

    index = jnp.arange(spec.layers, dtype=jnp.int32)
    _, chunk = jax.lax.scan(body, embeds.x, (index, views, prefix, shift))
    state, _ = memory.write(spec, carry.state, chunk)
    fresh = jnp.sum(embeds.modality != tk.EMPTY, dtype=jnp.int32)
    return carry._replace(state=state, clock=carry.clock + fresh + 1)


def chunk_rows(z, s):
    """Chunk s of a stream, with padding at the end."""
    if "features" in z:
        x = z["features"][s]
        rel = np.arange(len(x), dtype=np.int32)[:, None]
    else:
        x, merge = z[f"s{s}_features"], int(z["spatial_merge_size"])
        t, h, w = z["grids_thw"][s] // [1, merge, merge]
        rel = np.stack(np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij"), -1)
        rel = rel.reshape(-1, 3).astype(np.float32)
        step = 2 / float(z["sample_fps"]) * float(z["tokens_per_second"])
        rel[:, 0] = rel[:, 0] * np.float32(step)
    n = len(x)
    padded = lambda a, fill: np.concatenate([a, np.full((PAD, *a.shape[1:]), fill, a.dtype)])
    advance = np.full(rel.shape[1], np.floor(rel.max()) + 1, rel.dtype)
    kind = np.where(np.arange(n + PAD) < n, tk.VISION, tk.EMPTY).astype(np.int8)
    return Embeds(*(jnp.asarray(a) for a in (padded(x, 5.0), padded(rel, 77), kind, advance)))


class Asked(NamedTuple):
    """Programs and arrays of one stream file."""

    z: Any
    params: Any
    config: DecoderConfig
    memory: Hermes
    spec: Any
    program: Any
    prefix: KV


class Run(Asked):
    """One stream through the decoder, chunk by chunk."""

    @staticmethod
    def of(path) -> "Run":
        z = read(path)
        params, config = decoder(z, read(path.with_name(f"{path.stem}_weights.npz")))
        qwen = "mrope_section" in z
        memory = SharedOffset(**options(z)) if qwen else Watched(**options(z))
        dtype = jnp.float32 if qwen else jnp.int32
        rows = max(len(chunk_rows(z, s).x) for s in range(int(z["num_steps"])))
        spec = spec_of(config, chunk=rows, prefix=int(z["prefix_len"]), pos_dtype=dtype)
        program = make_program(config, memory, spec)
        prompt = question_rows(params, z["init_ids"], program=program, size=len(z["init_ids"]))
        prefix = make_prefix(params, config, prompt, pos_dtype=dtype)
        return Run(z, params, config, memory, spec, program, prefix)

    def step(self, carry, rows, probes, memory=None):
        """Pass one chunk; return the carry, and what the write saw."""
        memory = memory or self.memory
        return _step(self.config, memory, self.spec, self.params, carry, rows, self.prefix, probes)

    def scores(self, before, seen):
        """What a write computes on its way: attention, raw and smoothed scores [L, S + T]."""
        return _scores(self.memory, band_of(self.z), before, seen)

    def probes(self, s, names=("mixed", "global"), z=None):
        ids = [(self.z if z is None else z)[f"s{s}_ids_{n}" if z is None else f"ids_{n}"]
               for n in names]  # fmt: skip
        return probe_rows(self.params, ids, program=self.program)

    def write(self, carry, s):
        return self.step(carry, chunk_rows(self.z, s), self.probes(s))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step(config, memory, spec, params, carry, rows, prefix, probes):
    program = make_program(config, memory, spec)
    if isinstance(memory, SharedOffset):
        carry = step_with_shared_offset(params, program, carry, rows, prefix, probes)
    else:
        carry = chunk_step(params, program, carry, rows, prefix, probes)[0]
    return carry, SEEN.pop()


@partial(jax.jit, static_argnums=(0, 1))
def _scores(memory, band, before, seen):
    n = jnp.sum(before.slots.modality[..., 0] != 0, axis=1)
    valid = n + jnp.sum(seen.kv.modality[..., 0] != 0, axis=1)
    attention = attention_received(seen, n, band)
    valid = jnp.arange(attention.shape[1])[None] < valid[:, None]
    raw = importance(attention, valid, bands.MIXES[memory.mix], band)
    return attention, raw, bands.smooth(raw, SMOOTHING[band.of], recursive=True)


def check_cache(run, state, s):
    """Positions, rotated keys and values of prefix and memory after step s."""
    z, tokens = run.z, state.slots
    record = np.asarray(tokens.pos[:, :, 0])
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


def test_stream(stream):
    run = Run.of(stream)
    carry, z = init_carry(run.program), run.z
    for s in range(int(z["num_steps"])):
        before = carry.state
        starts = z[f"s{s}_start_pos" if f"s{s}_start_pos" in z else f"s{s}_offset"]
        np.testing.assert_array_equal(before.aux.next_pos[:, 0], starts)
        carry, seen = run.write(carry, s)
        if int(z["compressed"][s]):
            check_scores(run, before, seen, s)
        else:  # nothing is dropped: the probes did not run
            assert not any(np.asarray(part).any() for part in seen.probed.received)
        check_cache(run, carry.state, s)
        if f"s{s}_qa_prompt_ids" in z:
            check_answer(run, carry, s)


@cache
def before_step(path, step):
    run = Run.of(path)
    carry = init_carry(run.program)
    for s in range(step):
        carry, _ = run.write(carry, s)
    return run, carry


def received(run, carry, s, attention, probes, n):
    """Mean attention of every probe on every layer's pool [L, probes, n], none of them skipped."""
    kind = EverywhereShared if isinstance(run.memory, SharedOffset) else Everywhere
    memory = kind(**options(run.z), attention=attention, count=probes.modality.shape[0])
    _, seen = run.step(carry, chunk_rows(run.z, s), probes, memory)
    filled = int(jnp.sum(carry.state.slots.modality[0, :, 0] != 0))
    memory, chunk = seen.probed.received
    both = jnp.concatenate([memory[..., 0, :filled], chunk[..., 0, :]], -1)
    return np.asarray(both[..., :n] / seen.probed.rows[..., None])


def check_attention(run, carry, s, attention, theirs, z=None):
    p = int(run.z["prefix_len"])
    n = run.z[f"s{s}_raw_scores"].shape[1]
    got = received(run, carry, s, attention, run.probes(s, PROMPTS, z), n)
    # The released Qwen code takes these softmaxes in float16.
    close = 1e-3 if "mrope_section" in run.z else 1e-6
    for i, name in enumerate(PROMPTS):
        expected = theirs(name).mean((1, 2))[:, p : p + n]
        np.testing.assert_allclose(got[:, i], expected, atol=close)


def test_attention_of_all_prompts_in_all_layers(attended):
    z = read(attended)
    for s in attended_steps(z):
        run, carry = before_step(attended, s)
        check_attention(run, carry, s, "official", lambda name, s=s: z[f"s{s}_attn_{name}"])


def test_exact_attention_of_all_prompts_in_all_layers(exact_attention):
    """Of causal passes; the file is beside the stream of its name whose gaps are closed lazily."""
    z = read(exact_attention)
    family = exact_attention.stem.removeprefix("exact_attention_")
    stream = exact_attention.with_name(f"stream_{family}_lazy.npz")
    run, carry = before_step(stream, int(z["step"]))
    check_attention(run, carry, int(z["step"]), "exact", lambda name: z[f"attn_{name}"], z)
