"""Decoders that mix layers with a state and layers that attend to a memory, under every memory."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem.asking import ask, log_prob
from jaxmem.bound import Bound, bind, probe_rows, question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.program import Text, init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.decoder.stretches import stretches
from jaxmem.kv import EMPTY
from jaxmem.loop import start, stream
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import FeatureMemory
from jaxmem.memory.baselines import Full, Recent
from jaxmem.memory.by_name import build
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.saving import restore, save


class Sum(NamedTuple):
    total: jax.Array  # [E]


@dataclass(frozen=True)
class Leaky(Mixer):
    """A sum that forgets: s <- rate s + x W, y = s V."""

    rate: float = 0.9

    def weights(self, width, key):
        return dict(zip("wv", jax.random.normal(key, (2, width, width)) / width, strict=True))

    def init(self, width):
        return Sum(jnp.zeros(width, jnp.float32))

    def chunk(self, weights, state, x, real):
        def row(total, item):
            fresh, is_real = item
            total = jnp.where(is_real, self.rate * total + fresh, total)
            return total, total

        total, all_totals = jax.lax.scan(row, state.total, (x @ weights["w"], real))
        return all_totals @ weights["v"], Sum(total)


SLOW, FAST = Leaky(0.9), Leaky(0.5)
KINDS = (SLOW, SLOW, None, SLOW, SLOW, None, FAST)
SIZE, LENGTHS = 8, (8, 5, 0, 7)
CFG = replace(small.config(layers=len(KINDS), axes=1), mixers=KINDS)
PREFIX = Text((3, 1, 4, 1, 5))
FRAME = {"frame": (2, 2)}
OPTIONS = small.options(SIZE)


def spec(**more):
    return spec_of(CFG, chunk=SIZE, **FRAME, **more)


@pytest.fixture(scope="module")
def weights():
    return small.scored(small.params(CFG), CFG)


@pytest.fixture(scope="module")
def rows():
    return small.stream_rows(CFG, len(LENGTHS), SIZE, lengths=LENGTHS)


@jax.jit
def entering(layer, h):
    return dec.rms_norm(h, layer["norm"], CFG.norm_eps) @ layer["mixer"]["w"]


@jax.jit
def leaving(layer, h):
    return h + dec.mlp(layer, CFG, dec.rms_norm(h, layer["mlp_norm"], CFG.norm_eps))


def one_pass(weights, x, pos, inputs=None):
    """The last layer's output [N, E] of everything at once, layers written out one by one.

    Inputs of the layers that attend are appended to `inputs`. Loops and cuts are NumPy's: JAX
    would compile each of their operations.
    """
    weights = {name: jax.tree.map(np.asarray, weights[name]) for name in ("layers", "mixers")}
    h, seen = np.asarray(x), {kind: 0 for kind in KINDS}
    for kind in KINDS:
        number, seen[kind] = seen[kind], seen[kind] + 1
        if kind is None:
            if inputs is not None:
                inputs.append(h)
            plain = replace(CFG, layers=1, mixers=())
            layer = jax.tree.map(lambda w, l=number: w[l : l + 1], weights["layers"])
            h = np.asarray(small.one_pass({"layers": layer}, plain, h, pos))
            continue
        layer = jax.tree.map(lambda w, l=number: w[l], weights["mixers"][CFG.stacks.index(kind)])
        total, out = np.zeros(CFG.width, np.float32), []
        for row in np.asarray(entering(layer, h)):
            total = np.float32(kind.rate) * total + row
            out.append(total @ layer["mixer"]["v"])
        h = np.asarray(leaving(layer, h + np.stack(out)))
    return h


def after(weights, program, rows, bound=None):
    bound = Bound(weights) if bound is None else bound
    return stream(bound, start(program, bound), rows, program=program)


def test_a_hybrid_decoder_is_its_layers_one_by_one(weights, rows):
    program = make_program(CFG, Full(64), spec())
    carry = after(weights, program, rows)
    question = small.chunk(small.stream_rows(CFG, 1, 4, seed=1), 0)
    x, pos, end = small.flat(rows)
    x, pos = np.concatenate([x, question.x]), np.concatenate([pos, np.asarray(question.pos) + end])
    _, h = small.prefilled(weights, program, carry, question, room=1)
    np.testing.assert_allclose(h, one_pass(weights, x, pos)[-4:], atol=2e-4)


def test_an_answer_is_written_through_the_states(weights, rows):
    """Each token that is decoded gets the logits that one pass over everything before it gives."""
    program = make_program(CFG, Full(64), spec())
    carry = after(weights, program, rows)
    words, answer = [2, 7, 1], jnp.asarray([5, 9, 11])
    question = question_rows(weights, words, program=program)
    scores = log_prob(weights, carry, question, answer, program=program)
    x, pos, end = small.flat(rows)
    text = dec.embed(weights, jnp.asarray([*words, *answer[:-1]]))
    x = np.concatenate([x, text])
    pos = np.concatenate([pos, end + np.arange(len(text))[:, None]])
    h = one_pass(weights, x, pos)[-len(answer) :]
    want = jax.nn.log_softmax(dec.logits(weights, CFG, h))[jnp.arange(len(answer)), answer]
    np.testing.assert_allclose(scores, want, atol=2e-4)


def test_a_prefix_leaves_its_states_in_front_of_the_stream(weights, rows):
    program = make_program(CFG, Full(64), spec(prefix=len(PREFIX.ids)), prefix=PREFIX)
    bound = bind(program, weights)
    with pytest.raises(ValueError, match=r"start\(program, bound\)"):
        start(program)
    carry = after(weights, program, rows, bound)
    question = small.chunk(small.stream_rows(CFG, 1, 4, seed=1), 0)
    x, pos, end = small.flat(rows)
    n = len(PREFIX.ids)
    front = dec.embed(weights, jnp.asarray(PREFIX.ids))
    x = np.concatenate([front, x, question.x])
    pos = np.concatenate([np.arange(n)[:, None], pos + n, np.asarray(question.pos) + end + n])
    more = {"room": 1, "prefix": bound.prefix, "states": bound.states}
    _, h = small.prefilled(weights, program, carry, question, **more)
    np.testing.assert_allclose(h, one_pass(weights, x, pos)[-4:], atol=2e-4)


FEW = ("omnimem", "hermes", "rekv", "moviechat")
"""One of each way to be driven: statistics, a stack with probes, a bank, features."""


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]
)
def test_every_memory_runs_on_the_layers_that_attend(weights, rows, name):
    sizes = spec(prefix=len(PREFIX.ids))
    memory = build(name, 12, sizes, OPTIONS.get(name))
    program = make_program(CFG, memory, sizes, prefix=PREFIX)
    assert program.spec.layers == CFG.attends == 2
    bound, probes = bind(program, weights), program.requires.probes
    if probes:
        texts = [[1, 2, 3], [4, 5]][: probes.count]
        bound = bound._replace(probes=probe_rows(weights, texts, program=program))
    carry = after(weights, program, rows, bound)
    before = jax.tree.map(np.array, carry)
    question = question_rows(weights, [2, 7, 1], program=program)
    answer = ask(bound, carry, question, program=program, max_new=3)
    assert np.all(np.isfinite(answer.first))
    jax.tree.map(np.testing.assert_array_equal, carry, before)
    watched = not isinstance(memory, FeatureMemory)  # no layer runs while features are taken
    for one, front in zip(carry.states, bound.states, strict=True):
        assert np.array_equal(one.total, front.total) != watched
        assert one.total.dtype == jnp.float32


def test_states_do_not_depend_on_the_cut_of_a_stream_or_on_padding(weights, rows):
    program = make_program(CFG, Full(64), spec())
    whole = after(weights, program, rows)
    x, _, _ = small.flat(rows)
    real = np.asarray(rows.modality) != EMPTY
    one = jax.tree.map(
        lambda leaf: leaf.reshape(-1, 1, *leaf.shape[2:])[real.reshape(-1)],
        (rows.x, rows.pos, rows.modality),
    )
    steps = np.diff(np.concatenate([small.flat(rows)[1][:, 0], [small.flat(rows)[2][0]]]))
    rel = jnp.zeros_like(one[1])
    cut = small.Embeds(one[0], rel, one[2], jnp.asarray(steps, jnp.int32)[:, None])
    single = make_program(CFG, Full(64), spec_of(CFG, chunk=1))
    pieces = after(weights, single, cut)
    assert len(x) == len(cut.x)
    for a, b in zip(jax.tree.leaves(whole.states), jax.tree.leaves(pieces.states), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    padding = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:1]), rows)
    again = stream(weights, whole, padding, program=program)
    jax.tree.map(np.testing.assert_array_equal, again.states, whole.states)


def test_streams_side_by_side_are_the_streams_one_by_one(weights, rows):
    program = make_program(CFG, Recent(6), spec())
    other = jax.tree.map(lambda x: x[::-1], rows)
    both = jax.tree.map(lambda *x: jnp.stack(x), rows, other)
    carries = jax.vmap(lambda r: stream(weights, init_carry(program), r, program=program))(both)
    for i, mine in enumerate((rows, other)):
        alone = after(weights, program, mine)
        for a, b in zip(jax.tree.leaves(carries), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)


@pytest.mark.slow
def test_gradients_reach_the_first_chunk_through_the_states(weights, rows):
    program = make_program(CFG, Recent(4), spec())
    question = question_rows(weights, [2, 7, 1], program=program)

    def loss(first):
        mine = rows._replace(x=rows.x.at[0].set(first))
        carry = stream(weights, init_carry(program), mine, program=program, remat=True)
        return -log_prob(weights, carry, question, jnp.asarray([5]), program=program)[0]

    grad = jax.jit(jax.grad(loss))(rows.x[0])
    assert np.all(np.isfinite(grad)) and np.abs(grad).max() > 0


def test_a_saved_stream_with_other_layer_kinds_is_refused(weights, rows, tmp_path):
    program = make_program(CFG, Recent(6), spec())
    carry = after(weights, program, rows)
    save(tmp_path / "s", carry, program=program, params=weights)
    back = restore(tmp_path / "s", program, params=weights)
    jax.tree.map(np.testing.assert_array_equal, back, carry)
    other = replace(CFG, mixers=(FAST, *KINDS[1:]))
    with pytest.raises(ValueError, match="layers are .*Leaky.* this one.s are"):
        restore(tmp_path / "s", make_program(other, Recent(6), spec_of(other, chunk=SIZE, **FRAME)))


def test_mixers_must_name_every_layer():
    with pytest.raises(ValueError, match="mixers names 2 layers but the decoder has 7"):
        replace(CFG, mixers=(SLOW, None))


@dataclass(frozen=True)
class Odd(Leaky):
    """A mixer that gives something else than the contract says."""

    way: str = ""

    def chunk(self, weights, state, x, real):
        y, new = super().chunk(weights, state, x, real)
        return {
            "shorter": (y, Sum(new.total[:3])),
            "narrow": (y, Sum(new.total.astype(jnp.bfloat16))),
            "more": (y, (*new, new.total)),
            "mapping": (y, {"total": new.total}),
            "row": (y[:1], new),
            "alone": y,
            "triple": (y, new, new),
        }.get(self.way, (y, new))


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("shorter", r"another state, whose total is float32 \(3,\) after the chunk and float32 "
         r"\(24,\) before it: return"),
        ("narrow", r"whose total is bfloat16 \(24,\) after the chunk and float32 \(24,\) before"),
        ("more", r"whose 0 is float32 \(24,\) after the chunk and absent before it: return"),
        ("mapping", r"a state of PyTreeDef.*'total'.*, expected PyTreeDef.*Sum.*: return"),
        ("row", r"outputs of \(1, 24\) for rows of \(8, 24\): return one output for each row"),
        ("alone", "one array, expected a pair: return the outputs"),
        ("triple", "a tuple, expected a pair: return the outputs"),
    ],
)  # fmt: skip
def test_a_mixer_that_breaks_its_contract_is_refused_by_name(way, said, rows):
    mixer = Odd(0.9, way)
    cfg = replace(CFG, layers=2, mixers=(mixer, None))
    program = make_program(cfg, Recent(6), spec_of(cfg, chunk=SIZE))
    shapes = jax.eval_shape(lambda: dec.init_decoder(cfg, jax.random.key(0)))
    step = lambda weights, row: chunk_step(weights, program, init_carry(program), row)
    with pytest.raises(ValueError, match=f"^Odd.chunk returned .*{said}"):
        jax.eval_shape(step, shapes, small.chunk(rows, 0))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mixers": list(KINDS)}, r"mixers is a list, expected a tuple: give mixers=tuple"),
        ({"mixers": SLOW}, "mixers is a Leaky, expected a tuple"),
        ({"mixers": (None, *["mamba2"] * 6)}, "mixers has 'mamba2' for layer 2, expected .*: make"),
        ({"mixers": (Mamba2,) * 7}, "mixers has <class .*Mamba2'> for layer 1, expected .*: make"),
        ({"heads": 0, "kv_heads": 0}, "must be at least 1, got 0 and 0: give 1 of each"),
        ({"kv_heads": -1}, "must be at least 1, got 4 and -1: give 1 of each"),
    ],
)
def test_configs_of_no_mixers_and_no_heads_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(CFG, **changed)


@pytest.mark.parametrize(
    ("kinds", "windows", "want"),
    [
        ((None,) * 5, (4, 4, 9, 9, 9), [(1, 2, 4), (1, 3, 9)]),
        ((SLOW, SLOW, SLOW, None) * 3, (7, 7, 7), [(4, 3, 7)]),
        (KINDS, (3, 3), [(3, 2, 3), (1, 1, 0)]),
        ((SLOW, None) * 2 + (None, SLOW), (1, 1, 2), [(2, 2, 1), (1, 1, 2), (1, 1, 0)]),
        ((SLOW,) * 4, (), [(1, 4, 0)]),
    ],
)
def test_stretches_cover_every_layer_in_order(kinds, windows, want):
    found = stretches(kinds, windows)
    assert [(len(s.kinds), s.times, s.window) for s in found] == want
    places = [place for s in found for i in range(s.times) for place in s.places(i)]
    assert [p.number for p in places] == list(range(len(kinds)))
    assert tuple(p.kind for p in places) == kinds
    for kind in set(kinds):
        assert [p.layer for p in places if p.kind == kind] == list(range(kinds.count(kind)))
