"""OmniMem against the released code: the policy's own `write`, on recorded tensors."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from golden_files import cases, found

from jaxmem import kv as tk
from jaxmem.decoder.layer import layer_step
from jaxmem.decoder.program import make_program, spec_of
from jaxmem.kernels.attend import attend
from jaxmem.kernels.received import mass
from jaxmem.kernels.segment import Segment
from jaxmem.kv import KV
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Chunk, Embeds, Received
from jaxmem.memory.omnimem import avba
from jaxmem.memory.omnimem.omnimem import OmniMem, Slots, gather
from jaxmem.memory.parts import scores
from jaxmem.rope import rope_1d

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# Sizes are rounded up, so that the files share a few compilations (and every chunk is padded).
ROOM, CHUNK = 640, 80


def pytest_generate_tests(metafunc):
    """One test per file that the folder of golden vectors holds."""
    patterns = {
        "select_file": "select_*.npz",
        "script_file": "avba_script*.npz",
        "shipped_file": "avba_shipped*.npz",
        "profile_file": "profile_*.json",
    }
    for argument, pattern in patterns.items():
        if argument in metafunc.fixturenames:
            files = found(metafunc.config, f"omnimem/{pattern}")
            files = [file for file in files if "quirk" not in file.stem]
            metafunc.parametrize(argument, cases(metafunc.config, files))


def options(z) -> dict:
    """Return the options of `OmniMem` that a file's settings mean."""
    more: dict = {"lam": float(z["lam"])}
    if "importance_normalised" in z:
        more["form"] = "sum"
    if "global_factor" in z:
        more["global_factor"] = float(z["global_factor"])
    return more


def caps(z) -> np.ndarray:
    """Return the budget table of the file's one layer."""
    if "cap_joint" in z:
        return np.asarray([int(z["cap_joint"])])
    return np.asarray([[int(z["cap_audio"]), int(z["cap_visual"])]])


def sizes_of(z) -> Spec:
    """Return the sizes of the file's one layer."""
    kv_heads, _, head_dim = z["k_pool"].shape
    width, axes = z["pool_hidden"].shape[1], z["positions"].shape[0]
    return Spec(layers=1, kv_heads=kv_heads, head_dim=head_dim, width=width, axes=axes)


def padded(x, n: int, fill=0):
    """Return rows padded to `n`, by numpy: eager JAX would compile for every file's shape."""
    out = np.full((n, *x.shape[1:]), fill, x.dtype)
    out[: len(x)] = x
    return out


def kv_of(z, rows: slice, n: int) -> KV:
    """Return pool rows as tokens, padded to `n`; `order` is the pool index."""
    order = np.arange(len(z["modality"]), dtype=np.int32)[rows]
    k = padded(z["k_pool"].transpose(1, 0, 2)[rows], n)
    return KV(
        k=k,
        v=k,
        pos=padded(z["positions"].T[rows].astype(np.int32)[:, None], n),
        index=padded(order[:, None], n),
        modality=padded(z["modality"][rows].astype(np.int8)[:, None], n),
    )


@partial(jax.jit, static_argnames="form")
def masses(q, held: KV, fresh: KV, form: str) -> Received:
    """Return the attention that recorded, already rotated queries and keys give."""
    segments = [
        Segment(held.k, held.v, tk.valid(held)),
        Segment(fresh.k, fresh.v, tk.valid(fresh), last=jnp.arange(len(q), dtype=jnp.int32)),
    ]
    rope = rope_1d(q.shape[-1])
    _, lse = attend(q, segments, rope=rope)
    real = fresh.modality[:, 0] != tk.EMPTY
    return Received(*mass(q, segments, lse, rope=rope, rows=real, form=form, reduce="head_mean"))


@partial(jax.jit, static_argnums=(0, 1))
def written(memory: OmniMem, spec: Spec, state: State, chunk: Chunk) -> State:
    """Return the state after a chunk; budgets are in the state, so one memory serves all files."""
    return memory.write(spec, state, chunk)[0]


pooled = jax.jit(gather, static_argnames=("carry", "exact"))


def replay(z, table, **more) -> tuple[State, Chunk]:
    """Return the state before the file's step, and what the layer sees of its chunk."""
    m, c = int(z["n_memory"]), int(z["n_chunk"])
    room = ROOM * (1 + (len(z["modality"]) + int(np.sum(table))) // ROOM)
    memory = OmniMem(table, text=room - int(np.sum(table)), **more)
    state = memory.init(sizes_of(z))
    hidden = z["pool_hidden"]
    stored = padded(z.get("stored_importance", np.zeros(m, np.float32)), room)
    vectors = hidden[:m] / np.linalg.norm(hidden[:m], axis=1, keepdims=True)
    slots = Slots(kv_of(z, slice(0, m), room), stored, padded(vectors, room))

    # Padding rows hold anything but zeros: nothing may read them.
    size = CHUNK * (1 + c // CHUNK)
    fresh = kv_of(z, slice(m, m + c), size)
    chunk_hidden = padded(hidden[m:], size, 7.0)
    q = padded(z["q_chunk"].transpose(1, 0, 2), size, 3.0)
    seen = Chunk(fresh, np.zeros(state.aux.next_pos.shape, np.int32), hidden=chunk_hidden)
    asked = memory.requires.attention
    if asked is not None:
        seen = seen._replace(received=masses(q, slots.kv, fresh, asked.form))
    return State(slots, state.aux), seen


def kept(state: State) -> np.ndarray:
    tokens = state.slots.kv
    return np.asarray(tokens.index)[np.asarray(tokens.modality) != tk.EMPTY]


def test_kept_set(select_file):
    z = weights.read(select_file)
    state, seen = replay(z, caps(z), **options(z))
    pool = pooled(state.slots, seen)
    new = written(OmniMem(1, **options(z)), sizes_of(z), state, seen)
    n = len(z["modality"])
    av = z["modality"] != tk.TEXT

    if "importance_new" in z:
        if "importance" in z:
            np.testing.assert_allclose(pool.importance[:n], z["importance"], **CLOSE)
        stored = np.asarray(new.slots.importance)
        np.testing.assert_allclose(
            stored[: len(z["importance_kept"])], z["importance_kept"], **CLOSE
        )
        assert not stored[len(z["importance_kept"]) :].any()
    else:
        assert seen.received is None and float(z["lam"]) == 0.0
    similarity = 2 * np.asarray(pool.redundancy[:n])
    s = pool.redundancy
    if "global_factor" in z:
        extra = float(z["global_factor"]) * scores.block_redundancy(pool.slots.unit)
        similarity, s = similarity + np.asarray(extra[:n]), s + 0.5 * extra
    if "similarity_sum" in z:
        np.testing.assert_allclose(similarity, z["similarity_sum"], **CLOSE)
    lam = float(z["lam"])
    if "importance_normalised" in z or lam == 0:
        score = scores.additive(pool.importance, s, lam)
    else:
        score = scores.product(pool.importance, s, lam, 0.5)
    np.testing.assert_allclose(np.asarray(score)[:n][av], z["score"][av], **CLOSE)
    np.testing.assert_array_equal(kept(new), z["kept_idx"])


def test_exact_importance(select_file):
    z = weights.read(select_file)
    if "importance_exact_new" not in z:
        pytest.skip("the file has no exact importance")
    state, seen = replay(z, caps(z), **(options(z) | {"importance": "exact"}))
    pool = pooled(state.slots, seen, carry=0.0, exact=True)
    n = len(z["modality"])
    np.testing.assert_allclose(pool.importance[:n], z["importance_exact_new"], **CLOSE)


def test_duplicates_are_evicted_and_nothing_is_nan(golden):
    path = golden / "omnimem" / "select_quirk_duplicates.npz"
    if not path.exists():
        pytest.skip("no file of duplicates")
    z = weights.read(path)
    hidden = z["pool_hidden"]
    same = np.all(hidden[1:] == hidden[:-1], axis=1)
    inner = np.flatnonzero(same[1:] & same[:-1]) + 1
    assert len(inner) and np.isnan(z["score"]).any()
    assert np.isin(inner, z["kept_idx"]).any(), "the released code keeps some of them"

    state, seen = replay(z, caps(z), **options(z))
    new = written(OmniMem(1, **options(z)), sizes_of(z), state, seen)
    assert not np.isin(inner, kept(new)).any()
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in (new.slots.importance, new.slots.unit))


def test_pair_caps_work_without_audio(golden):
    path = golden / "omnimem" / "select_no_audio_joint.npz"
    if not path.exists():
        pytest.skip("no file without audio")
    z = weights.read(path)
    # Half of the slots are audio's, which no audio competes for: they are lent to vision.
    audio = int(z["cap_joint"]) // 2
    state, seen = replay(z, [[audio, int(z["cap_joint"]) - audio]], **options(z))
    new = written(OmniMem(1, **options(z)), sizes_of(z), state, seen)
    np.testing.assert_array_equal(kept(new), z["kept_idx"])


def test_two_chunks_through_one_layer(golden):
    path = golden / "omnimem" / "two_chunks_one_layer.npz"
    if not path.exists():
        pytest.skip("no file of two chunks")
    z = weights.read(path)
    config, params = weights.decoder_config(z), weights.decoder_params(z)
    table = [[int(z["cap_audio"]), int(z["cap_visual"])]]
    texts = int(np.sum(z["modality"] == tk.TEXT))
    memory = OmniMem(table, lam=float(z["lam"]), text=texts)
    spec = spec_of(config, chunk=max(int(z["chunk1"]), int(z["chunk2"])))
    program, state = make_program(config, memory, spec), memory.init(spec)

    @jax.jit
    def step(state, rows, clock):
        view = memory.view(spec, state, rows)
        layer = jnp.zeros((), jnp.int32)
        out = layer_step(params, program, layer, rows.x, view, rows, clock)
        return out.h, gather(state.slots, out.chunk), memory.write(spec, state, out.chunk)[0]

    begin, size = 0, spec.chunk
    for i, length in enumerate((int(z["chunk1"]), int(z["chunk2"])), start=1):
        cut = slice(begin, begin + length)
        rows = Embeds(
            x=padded(z["hidden"][cut], size),
            pos=padded(z["positions"].T[cut].astype(np.int32), size),
            modality=padded(z["modality"][cut].astype(np.int8), size),
            advance=np.zeros((spec.axes,), np.int32),
        )
        n = len(kept(state))
        out, pool, state = step(state, rows, np.int32(begin))
        np.testing.assert_allclose(out[:length], z[f"layer_out{i}"][n:], **CLOSE)
        np.testing.assert_allclose(pool.importance[: n + length], z[f"importance{i}"], **CLOSE)
        stored = z[f"stored{i}"]
        np.testing.assert_allclose(state.slots.importance[: len(stored)], stored, **CLOSE)
        begin += length
    np.testing.assert_array_equal(kept(state), z["kept2_global"])


def table_of(profile: avba.Profile, params: np.ndarray) -> np.ndarray:
    """Return the budget table that a file's settings make of a profile."""
    average, temperature, ratio, low, high = params.tolist()
    return avba.table(
        profile, average=average, temperature=temperature, ratio=ratio, low=low, high=high
    )


def test_avba_script(script_file):
    z = weights.read(script_file)
    names = (
        "entropy_audio",
        "entropy_visual",
        "entropy_all",
        "cosine_similarity_audio",
        "cosine_similarity_visual",
    )
    rows = [avba.average_rows(z[f"signals_{name}"], z["signals_video_id"]) for name in names]
    profile = avba.profile_of(avba.Signals(*rows))
    delta = z["profile_C_all"] - z["profile_C_all"].max()
    np.testing.assert_allclose(profile.delta, delta, atol=1e-6)
    rho = z["profile_C_visual"] / z["profile_C_audio"]
    np.testing.assert_allclose(profile.rho, rho, rtol=1e-6)
    sets = [name for name in z if name.startswith("set") and name.endswith("_params")]
    for name in sets:
        table = table_of(profile, z[name])
        np.testing.assert_array_equal(table, z[name.replace("params", "caps")])


def ours(profile: avba.Profile) -> avba.Profile:
    """Return the shipped profile that is nearest to a file's; skip the test if none is near."""
    shipped = [avba.profile(name) for name in avba.PROFILES]
    shipped = [one for one in shipped if one.delta.shape == profile.delta.shape]
    distance = [np.abs(one.delta - profile.delta).mean() for one in shipped]
    if not shipped or min(distance) > 0.01:
        pytest.skip("a profile of another model")
    return shipped[int(np.argmin(distance))]


@pytest.mark.parametrize("own", [False, True], ids=["recorded profile", "shipped profile"])
def test_avba_published_tables(shipped_file, own):
    z = weights.read(shipped_file)
    profile = avba.Profile(z["profile_deltaC"], z["profile_rho"])
    if own:
        profile = ours(profile)
    tables = [name for name in z if name.startswith("table") and name.endswith("_params")]
    assert tables
    for name in tables:
        error = np.abs(table_of(profile, z[name]) - z[name.replace("params", "caps")])
        most = np.maximum(2, z.get(name.replace("params", "maxerr"), 2))
        assert np.all(error.max(axis=0) <= most), name


def test_shipped_profiles_are_those_of_the_files(profile_file):
    """Recovered where no clip hides a layer: all layers have to agree, also the deepest."""
    document = json.loads(profile_file.read_text())
    recorded = avba.Profile(np.asarray(document["delta"]), np.asarray(document["rho"]))
    shipped = ours(recorded)
    np.testing.assert_allclose(shipped.delta, recorded.delta, atol=1e-6)
    np.testing.assert_allclose(shipped.rho, recorded.rho, atol=1e-6)
