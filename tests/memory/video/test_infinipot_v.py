"""InfiniPot-V: its laws, what moves and what stands still, and frames counted by every head."""

from dataclasses import replace
from functools import partial

import jax
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, cut, held, pick, standard, stream

from jaxmem import kv as kvs
from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.loop import stream as small_stream
from jaxmem.memory.video.infinipot_v import InfiniPotV
from jaxmem.rope import mrope_sectioned, rope

BUDGET = 16
GRID = (2, 2)
PLAIN = {"grid": GRID, "rotated": False}
MEMORIES = {
    "usual": InfiniPotV(BUDGET, audio_share=0.25),
    "pooled": InfiniPotV(BUDGET, pooling=True, audio_share=None, **PLAIN),
    "shared": InfiniPotV(BUDGET, per_head=False, audio_share=0.25, newest=3, **PLAIN),
    "renumbered": InfiniPotV(BUDGET, audio_share=0.25, reindex=True, **PLAIN),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["usual", "pooled", "shared"])
def test_law(name, law):
    if name == "pooled" and law == "padding_and_room":
        pytest.skip("the pooling window depends on how many frames a chunk can hold")
    LAWS[law](MEMORIES[name])


def after(memory, chunks, spec=SPEC):
    write = compiled(lambda s, c: memory.write(spec, s, laws.see(memory, s, c))[0])
    state = memory.init(spec)
    for c in range(chunks.end.shape[0]):
        state = write(state, pick(chunks, c))
    return jax.device_get(state)


def of_heads(kv):
    """Return the arrival numbers that every head holds; the stream's index is 2 * arrival + 1."""
    return [(held(laws.of_head(kv, g)) - 1) // 2 for g in range(kv.modality.shape[1])]


def test_heads_keep_different_tokens():
    one, two = of_heads(after(MEMORIES["usual"], standard()).slots.kv)
    assert len(one) == len(two) and set(one.tolist()) != set(two.tolist())


def frames(count, moves):
    """Return frames of four tokens, of which those at `moves` have random keys every time."""
    flat, rng = stream(4 * count, kinds=np.full(4 * count, VISION)), np.random.default_rng(0)
    place = np.arange(4 * count) % 4
    still = rng.normal(size=(4, 2, 4))[place]
    k = np.where(np.isin(place, moves)[:, None, None], flat.tokens.k, still)
    return flat._replace(tokens=flat.tokens._replace(k=k.astype(np.float32)))


@pytest.mark.parametrize("per_head", [True, False])
def test_what_stands_still_is_dropped_and_what_moves_is_kept(per_head):
    """TaR alone: frames of four tokens, three of which never change."""
    chunks = cut(frames(8, moves=[3]), [32], 32)
    memory = InfiniPotV(16, tar_ratio=1.0, audio_share=None, per_head=per_head, **PLAIN)
    for kept in of_heads(after(memory, chunks).slots.kv):
        older = kept[kept < 4 * 6]
        assert len(kept) == 16 and len(older) == 8
        np.testing.assert_array_equal(older[older % 4 == 3], np.arange(3, 24, 4))


def plain(kv, norm, place, spec, memory, budget):
    """Return what one head keeps of a dense pool, and its newest rows, by loops over tokens."""
    kind = kv.modality[:, 0]
    n, frame = int(np.sum(kind != 0)), 2
    keys = np.asarray(kv.k[:, 0], np.float64)
    if memory.rotated:
        keys = np.asarray(rope(kv.k, kv.pos, spec.rope)[:, 0], np.float64)
    unit = keys / (np.linalg.norm(keys, axis=-1, keepdims=True) + 1e-9)
    image = [i for i in range(n) if kind[i] == VISION]
    newest = int(len(image) // frame * memory.query_ratio) * frame
    recent, older = image[len(image) - newest :], image[: len(image) - newest]
    alike = lambda i: [unit[i] @ unit[j] for j in recent if place[j] == place[i]]
    tar = {i: -np.mean(alike(i) or [0.0]) for i in older}
    most = max(budget - round((1 - memory.tar_ratio) * budget) - newest, 0)
    forced = recent + sorted(older, key=lambda i: (-tar[i], -i))[:most]
    rest = sorted(set(range(n)) - set(forced), key=lambda i: (-norm[i], -i))
    return sorted((sorted(forced, key=lambda i: -i) + rest)[:budget]), newest


@pytest.mark.parametrize("rotated", [False, True])
def test_every_head_counts_its_own_frames(rotated):
    """Beside text and sound heads hold different numbers of pictures: plain loops over tokens."""
    spec = replace(SPEC, rope=mrope_sectioned(4, 1e4, (1, 1, 0)), frame=(1, 2))
    memory = InfiniPotV(BUDGET, audio_share=None, tar_ratio=0.4, query_ratio=0.6, rotated=rotated)
    flat, rng = stream(sum(CUTS)), np.random.default_rng(3)
    kinds = flat.tokens.modality[:, 0]
    # Loud sound in one head, loud text in the other, so that each pushes out other pictures.
    loud = np.stack([np.where(kinds == AUDIO, 9, 1), np.where(kinds == TEXT, 9, 1)], axis=1)
    tokens = flat.tokens._replace(v=flat.tokens.v * loud[..., None].astype(np.float32))
    flat = flat._replace(tokens=tokens._replace(k=rng.normal(size=tokens.k.shape).astype("f4")))
    chunks = cut(flat, CUTS, 8)
    write = compiled(lambda s, c: memory.write(spec, s, laws.see(memory, s, c))[0])
    state, arrived, differ = memory.init(spec), 0, 0
    index = {2 * i + 1: i for i in range(sum(CUTS))}
    places = (np.cumsum(kinds == VISION) - 1) % 2
    for c, rows in enumerate(CUTS):
        before, recent = jax.device_get(state.slots.kv), []
        state = jax.device_get(write(state, pick(chunks, c)))
        for g in range(2):
            pool = [index[int(o)] for o in held(laws.of_head(before, g))]
            pool += range(arrived, arrived + rows)
            if not pool:
                continue
            kv = jax.tree.map(lambda x, pool=pool: np.asarray(x)[pool], flat.tokens)
            kv = kv._replace(k=kv.k[:, g : g + 1], v=kv.v[:, g : g + 1])
            norm = np.linalg.norm(kv.v[:, 0], axis=-1)
            want, newest = plain(kv, norm, places[pool], spec, memory, BUDGET)
            got, want = of_heads(state.slots.kv)[g], [pool[i] for i in want]
            np.testing.assert_array_equal(got, want, err_msg=f"chunk {c}, head {g}")
            recent.append(newest)
        arrived += rows
        differ += len(set(recent)) == 2
    assert differ, "both heads held equally many frames"


def test_slots_of_audio_are_lent_while_there_is_none():
    """All slots hold pictures, and TaR has its part of all of them."""
    chunks = cut(frames(8, moves=[3]), [32], 32)
    silent = InfiniPotV(16, tar_ratio=1.0, audio_share=0.5, **PLAIN)
    alone = InfiniPotV(16, tar_ratio=1.0, audio_share=None, **PLAIN)
    got, want = (after(memory, chunks).slots.kv for memory in (silent, alone))
    assert int(kvs.count(got)) == 16
    np.testing.assert_array_equal(got.index, want.index)


def test_the_newest_are_always_held():
    memory = InfiniPotV(BUDGET, newest=6, tar_ratio=0.0, audio_share=None, **PLAIN)
    for kept in of_heads(after(memory, standard()).slots.kv):
        np.testing.assert_array_equal(kept[-6:], np.arange(sum(CUTS) - 6, sum(CUTS)))


def test_renumbered_positions():
    view = MEMORIES["renumbered"].recall(SPEC, after(MEMORIES["renumbered"], standard()), None)
    np.testing.assert_array_equal(view.kv.pos[:, 0, 0], np.arange(BUDGET))
    np.testing.assert_array_equal(view.base, [BUDGET] * 3)


@pytest.mark.parametrize("budget", [1, 2, 8])
def test_few_slots_are_a_memory(budget):
    memory = InfiniPotV(budget, **PLAIN)
    assert int(kvs.count(after(memory, standard()).slots.kv)) == budget


def test_frame_and_embedding_come_from_the_model():
    cfg = small.config()
    weights, rows = small.params(cfg), small.stream_rows(cfg, 3, 8, lengths=[8, 5, 8])
    program = make_program(cfg, InfiniPotV(12), spec_of(cfg, chunk=8, frame=GRID))
    carry = small_stream(weights, init_carry(program), rows, program=program)
    asked = question_rows(weights, [1, 2], program=program)
    assert np.isfinite(ask(weights, carry, asked, program=program).first).all()
    for memory, spec, lacks in (
        (InfiniPotV(8), replace(SPEC, frame=None), "Spec.frame"),
        (InfiniPotV(8, grid=GRID), replace(SPEC, rope=None), "Spec.rope"),
    ):
        with pytest.raises(ValueError, match=lacks):
            memory.init(spec)


def test_equal_options_are_equal():
    make = partial(InfiniPotV, 8, grid=GRID)
    assert make() == make() != make(rotated=False) and len({make(), make()}) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InfiniPotV(8, grid=(0, 2)), "grid"),
        (lambda: InfiniPotV(8, tar_ratio=2.0), "between 0 and 1"),
        (lambda: InfiniPotV(0), "budget of at least 1"),
        (lambda: InfiniPotV(8, audio_share=2.0), "audio_share"),
        (lambda: InfiniPotV(8, newest=9), "newest=9"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
