"""Flash-VStream against its released code: k-means, merges, semantic attention, both memories."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.memory.base import Spec
from jaxmem.memory.features import clusters as cl
from jaxmem.memory.features.frames import pool_grid, rows_of
from jaxmem.memory.flash_vstream import star
from jaxmem.memory.flash_vstream import synopsis as syn
from jaxmem.memory.flash_vstream.semantic import Maps, attend_groups

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def load(golden):
    def read(name):
        with np.load(golden / "flash_vstream" / f"{name}.npz") as z:
            return {key: z[key] for key in z.files}

    return read


def members(labels, n, slots):
    return [np.flatnonzero(labels[:n] == k).tolist() for k in range(slots)]


def listed(rows):
    return [[int(i) for i in row if i >= 0] for row in rows]


def draws_of(z, prefix=""):
    refill = z.get("refill_draws", np.zeros(0, np.int32))
    return cl.Draws(jnp.asarray(z[prefix + "init_indices"]), jnp.asarray(refill))


KMEANS = ["kmeans", *(f"weighted_kmeans{x}" for x in ("", "_unit", "_refill", "_capped"))]


@pytest.mark.parametrize("name", KMEANS)
@pytest.mark.parametrize("padding", [0, 5])
def test_weighted_kmeans(load, name, padding):
    z = load(name)
    n, slots = len(z["x"]), int(z["T0"])
    x = np.pad(z["x"].reshape(n, -1), ((0, padding), (0, 0)), constant_values=np.nan)
    weights = np.pad(z.get("weights_in", np.ones(n)), (0, padding), constant_values=np.nan)
    fit = partial(cl.weighted_kmeans, rounds=int(z["max_iter"]), tol=float(z["tol"]))
    got = jax.jit(fit)(x, weights.astype(np.float32), jnp.int32(n), draws_of(z))
    np.testing.assert_allclose(got.centres.reshape(z["y"].shape), z["y"], **CLOSE)
    np.testing.assert_array_equal(got.labels[:n], z["labels"])
    assert members(np.asarray(got.labels), n, slots) == listed(z["step_indices"][0])
    assert int(got.rounds) == int(z["exit_iter"]) + 1
    if "weights_out" in z:
        np.testing.assert_array_equal(got.weights, z["weights_out"])


def replay(pairs, slots, held, *, first, drop=None):
    """The source frames of every slot after each step, from the pairs alone."""
    steps = []
    for i, (left, right) in enumerate(pairs):
        held = [*held, [first + i]]
        if left >= 0:
            gone = left
            if drop is None:
                held[right] = sorted(held[left] + held[right])
            elif drop[i]:
                gone = right
            del held[gone]
        steps.append([sorted(h) for h in held])
    return steps


def consolidate(x, start, coins, anywhere):
    """Append frames one by one; return the entries and the pairs joined."""

    def step(held, item):
        frame, coin = item
        return cl.add(held, frame, anywhere=anywhere, coin=coin)

    return jax.lax.scan(step, start, (jnp.asarray(x), coins))


@pytest.mark.parametrize("name", ["drop", "merge", "k_drop", "k_merge"])
def test_pairs(load, name):
    z = load(name)
    slots, anywhere = int(z["T0"]), name.startswith("k_")
    held = cl.empty_merged(slots, z["x"].shape[1:])
    run = jax.jit(partial(consolidate, anywhere=anywhere))
    sources = []
    for suffix, frames in (("", z["x"]), ("2", z.get("x2_new"))):
        if frames is None:
            continue
        coins, flip = None, anywhere
        if "drop" in name:
            drawn = z["coins" + suffix]
            # One draw for each frame that did not fit. Among pairs anywhere, 1 drops the left.
            coins = np.pad(drawn ^ 1 if flip else drawn, (len(frames) - len(drawn), 0))
        held, pairs = run(frames, held, None if coins is None else jnp.asarray(coins))
        np.testing.assert_allclose(held.x, z["y" + suffix], **CLOSE)
        steps = z["step_indices" + suffix]
        # Every call numbers what it sees from 0: the entries it begins with, then its frames.
        sources = [] if not suffix else [[i] for i in range(slots)]
        got = replay(np.asarray(pairs).tolist(), slots, sources, first=len(sources), drop=coins)
        got = got[slots - 1 :] if not suffix else [sources, *got]
        assert got == [[sorted(s) for s in listed(step)] for step in steps]
        if "sim_out" + suffix in z:
            got = np.asarray([[cl.cosine(a, b) for a in held.x] for b in held.x])
            got = np.where(np.eye(slots, dtype=bool), -100, got) if anywhere else np.diag(got, 1)
            np.testing.assert_allclose(got, z["sim_out" + suffix], **CLOSE)
        held = held._replace(size=jnp.ones_like(held.size))


def maps_of(z):
    return Maps(*(jnp.asarray(z[k]) for k in ("wq", "bq", "wk", "bk")))


@pytest.mark.parametrize("padding", [0, 7])
def test_semantic_attention(load, padding):
    z = load("semantic_attention")
    x, slots = z["x"], int(z["T0"])
    x = np.pad(x, ((0, padding), (0, 0), (0, 0)), constant_values=np.nan)
    fit = jax.jit(partial(attend_groups, slots=slots, ratio=float(z["update_ratio"])))
    np.testing.assert_allclose(fit(x, jnp.int32(len(z["x"])), maps_of(z)), z["y"], **CLOSE)
    first = min(2 * slots, len(z["x"]))  # the memory, and a group of as many frames or fewer
    one_group = fit(x, jnp.int32(first), maps_of(z)).reshape(z["after_first_group"].shape)
    np.testing.assert_allclose(one_group, z["after_first_group"], **CLOSE)


def retrieved_of(z):
    """How many frames the file retrieves."""
    return max(len(z[key]) for key in z if key.endswith("retrieved_indices"))


def sizes_of(z):
    return star.Sizes(
        grid=int(z["grid_side"]),
        side=int(z["compress_size"]),
        spatial=int(z["video_current_memory_length"]),
        temporal=int(z["video_long_memory_length"]),
        temporal_side=int(z["compress_long_memory_size"]),
        abstract=int(z["video_Turing_memory_length"]),
        abstract_side=int(z["compress_Turing_memory_size"]),
        retrieved=retrieved_of(z),
        ratio=float(z["compress_Turing_update_ratio"]),
    )


def test_star_offline(load):
    z = load("star_offline")
    sizes = sizes_of(z)
    held = jax.jit(star.offline, static_argnames=("sizes", "form"))(
        z["x"], draws_of(z), maps_of(z), sizes=sizes
    )
    clustered = z["x"][: len(z["x"]) - sizes.spatial]
    pooled = pool_grid(
        pool_grid(clustered, sizes.grid, sizes.side), sizes.side, sizes.temporal_side
    )
    np.testing.assert_allclose(pooled, z["long_pooled"], **CLOSE)
    for name in ("abstract", "temporal", "retrieved", "spatial"):
        np.testing.assert_allclose(getattr(held, name), z[name], **CLOSE)
    np.testing.assert_array_equal(held.weights, z["cluster_weights"])
    np.testing.assert_array_equal(held.frames, z["retrieved_indices"])
    order, _ = cl.heaviest(held.weights, held.temporal_count, sizes.temporal)
    np.testing.assert_array_equal(order, z["sorted_clusters"])
    spec = Spec(layers=1, kv_heads=1, head_dim=2, width=z["x"].shape[-1])
    rows = rows_of(spec, star.blocks_of(held))
    np.testing.assert_allclose(rows.x, z["memory"], **CLOSE)
    np.testing.assert_array_equal(rows.pos[:, 0], np.arange(len(z["memory"])))
    assert int(rows.advance[0]) == len(z["memory"])


def test_star_streaming(load):
    z = load("star_streaming")
    sizes, most = sizes_of(z), int(max(z["step_lengths"])) + 1
    held = star.init_held(sizes, z["x"].shape[-1], most, "as_released")
    step = jax.jit(star.advance, static_argnames=("sizes", "form"))
    at = 0
    for i, n in enumerate(z["step_lengths"]):
        frames = np.full((most, *z["x"].shape[1:]), 7.0, np.float32)
        frames[:n] = z["x"][at : at + n]
        at += n
        first = z.get(f"s{i}_init_indices", np.zeros(sizes.temporal, np.int32))
        refill = z.get(f"s{i}_refill_draws", np.zeros(0, np.int32))
        draws = cl.Draws(jnp.asarray(first), jnp.asarray(refill))
        held = step(held, frames, jnp.int32(n), draws, maps_of(z), sizes=sizes)
        for name in ("temporal", "abstract"):
            want, count = z[f"s{i}_{name}"], int(getattr(held, name + "_count"))
            assert count == len(want)
            np.testing.assert_allclose(getattr(held, name)[:count], want, **CLOSE)
        found = np.asarray(held.frames) >= 0
        wanted = z.get(f"s{i}_retrieved_indices", np.zeros(0, np.int32))
        np.testing.assert_array_equal(np.asarray(held.frames)[found], wanted)
        current = np.concatenate([np.asarray(held.retrieved)[found], held.spatial])
        np.testing.assert_allclose(current, z[f"s{i}_current"], **CLOSE)
        assert int(held.seen) == int(z[f"s{i}_buffer_len"])
        if f"s{i}_cluster_weights" in z:
            want = z[f"s{i}_cluster_weights"]
            np.testing.assert_array_equal(held.weights[: len(want)], want)


QWEN = ["qwen_kmeans_ordered" + x for x in ("", "_weighted", "_few_unique")]


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("padding", [0, 4])
def test_ordered_kmeans(load, name, padding):
    z = load(name)
    n, slots = len(z["x"]), int(z["T0"])
    x = z["x"].reshape(n, -1)
    more = ((0, padding), (0, 0))
    _, distinct = syn.same(np.pad(x, more, constant_values=np.nan), jnp.int32(n))
    assert sorted(z["unique_first_frame"]) == np.flatnonzero(distinct).tolist()
    draws = cl.Draws(jnp.asarray(z.get("init_frames", np.arange(slots))), jnp.zeros(0, jnp.int32))
    weights, times = (np.pad(z[k], (0, padding)) for k in ("weights_in", "times_in"))
    stop = {"rounds": int(z["max_iter"]), "tol": float(z["tol"])}
    fit = jax.jit(partial(syn.ordered_kmeans, **stop))
    got = fit(np.pad(x, more), weights, times, jnp.int32(n), draws)
    np.testing.assert_allclose(got.x.reshape(z["y"].shape), z["y"], **CLOSE)
    np.testing.assert_array_equal(got.weights, z["weights_out"])
    np.testing.assert_allclose(got.times, z["timestamps"], **CLOSE)
    if "init_frames" in z:
        found = cl.weighted_kmeans(x, z["weights_in"], jnp.int32(n), draws, **stop)
        np.testing.assert_array_equal(found.labels, z["labels"])
        by_time = sorted(members(np.asarray(found.labels), n, slots), key=np.mean)
        assert by_time == listed(z["step_indices"])
        assert int(found.rounds) == int(z["exit_iter"]) + 1


def test_pixel_pool(load):
    z = load("qwen_pixel_pool")
    thw = tuple(int(i) for i in z["thw"])
    assert z["new_thw"].tolist() == [thw[0], thw[1] // 2, thw[2] // 2]
    more = {"channels": int(z.get("channels", 3)), "frames": int(z.get("temporal_patch", 2))}
    more["patch"] = math.isqrt(z["x"].shape[1] // (more["channels"] * more["frames"]))
    np.testing.assert_allclose(syn.pixel_pool(z["x"], thw, **more), z["y"], **CLOSE)


def positions(before, numbers, times, real, grid, small, after):
    """The ids of text, video, text: text keeps its ids, the video begins after the first text."""
    place = syn.am_rope(numbers, times, jnp.sum(real), grid, small)
    place = np.asarray(place) + before
    first, last = np.arange(before), np.arange(after) + before + len(place)
    whole = np.concatenate([np.stack([first] * 3, 1), place, np.stack([last] * 3, 1)])
    return whole.T


def halves(thw):
    return int(thw[1]) // 2, int(thw[2]) // 2


def test_flash_memory(load):
    z = load("qwen_flash_memory")
    n, tokens, width = z["x_high"].shape
    slots = int(z["temporal_slots"])
    held = syn.init_held(slots, n, tokens, z["x_low"].shape[1], width)
    draws = cl.Draws(jnp.asarray(z["init_frames"]), jnp.zeros(0, jnp.int32))
    held = jax.jit(syn.advance)(held, z["x_high"], z["x_low"], jnp.int32(n), draws)
    np.testing.assert_allclose(held.x, z["csm"], **CLOSE)
    np.testing.assert_array_equal(held.weights, z["csm_weights"])
    np.testing.assert_array_equal(jnp.round(held.times), z["csm_positions"])
    place, number, real = syn.details(held, int(z["spatial_slots"]))
    clusters, _ = cl.heaviest(held.weights, held.count, int(z["spatial_slots"]))
    np.testing.assert_array_equal(clusters, z["dam_clusters"])
    np.testing.assert_array_equal(place, z["dam_frames"])
    np.testing.assert_array_equal(number, z["dam_frames"])
    memory = np.concatenate([x.reshape(-1, width) for x in (held.high[place], held.x)])
    np.testing.assert_allclose(memory, z["memory"], **CLOSE)
    grid, small = halves(z["thw"]), halves(z["small_thw"])
    visual, ids = z["visual_mask"] == 1, z["position_ids_in"]
    place = np.asarray(syn.am_rope(number, held.times, jnp.sum(real), grid, small))
    want = ids.copy()  # text keeps its ids, the video begins at its first
    want[:, visual] = place.T + ids[:, visual][:, :1]
    np.testing.assert_array_equal(want, z["position_ids_out"])


def test_flash_streaming(load):
    z = load("qwen_flash_streaming")
    total, tokens, width = z["x_high"].shape
    slots, most = int(z["temporal_slots"]), int(z["clip_lengths"].max()) + 1
    held = syn.init_held(slots, total + 1, tokens, z["x_low"].shape[1], width)
    step, at = jax.jit(syn.advance), 0
    for i, n in enumerate(z["clip_lengths"]):
        clip = [np.full((most, *z[k].shape[1:]), 7.0, np.float32) for k in ("x_high", "x_low")]
        for mine, key in zip(clip, ("x_high", "x_low"), strict=True):
            mine[:n] = z[key][at : at + n]
        at += n
        first = jnp.asarray(z.get(f"s{i}_init_points", np.arange(slots)))
        held = step(held, *clip, jnp.int32(n), cl.Draws(first, jnp.zeros(0, jnp.int32)))
        count = int(held.count)
        np.testing.assert_allclose(held.x[:count], z[f"s{i}_csm"], **CLOSE)
        np.testing.assert_array_equal(held.weights[:count], z[f"s{i}_csm_weights"])
        np.testing.assert_allclose(held.times[:count], z[f"s{i}_csm_timestamps"], **CLOSE)
        _, number, real = syn.details(held, int(z["spatial_slots"]))
        np.testing.assert_array_equal(number[np.asarray(real)], z[f"s{i}_dam_frames"])
        if f"s{i}_dam_clusters" in z:
            clusters, _ = cl.heaviest(held.weights, held.count, int(z["spatial_slots"]))
            np.testing.assert_array_equal(clusters, z[f"s{i}_dam_clusters"])
        grid, small = halves(z[f"s{i}_dam_thw"]), halves(z[f"s{i}_csm_thw"])
        before, after = int(z["n_text_before"]), int(z["n_text_after"])
        exists = np.asarray(real)  # fewer details than there is space for, in short clips
        args = (before, number[exists], held.times[:count], real, grid, small)
        got = positions(*args, after)
        assert got.shape[1] - before - after == int(z[f"s{i}_num_visual"])
        np.testing.assert_array_equal(got, z[f"s{i}_position_ids_out"])
