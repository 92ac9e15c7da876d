"""Decoders in which every layer has a state and none attends: no key is held, and nothing grows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem.asking import ask, log_prob
from jaxmem.bound import bind, question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.checks import check_weights
from jaxmem.decoder.program import Text, make_program, spec_of
from jaxmem.finite import check_answer
from jaxmem.loop import start, stream
from jaxmem.memory.baselines import Recent
from jaxmem.memory.by_name import build
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.linear import LinearAttention
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.mixers.mom import MoM
from jaxmem.mixers.titans import Titans
from jaxmem.saving import restore, save

SIZE, LENGTHS, PREFIX = 8, (8, 5, 0, 7), Text((3, 1, 4, 1, 5))
ONE, OTHER = Mamba2(4, 6, 5, block=4), GatedDelta(2, key_dim=4, block=4)
CFG = replace(small.config(layers=3, axes=1), mixers=(ONE, OTHER, ONE), mlp_width=0)
REST = (LinearAttention(2, 6, block=4), MoM(2, 4, block=4), Titans(2, 4, rows=3))


@pytest.fixture(scope="module")
def weights():
    return small.params(CFG)


@pytest.fixture(scope="module")
def rows():
    return small.stream_rows(CFG, len(LENGTHS), SIZE, lengths=LENGTHS)


def one_pass(weights, x, cfg=CFG):
    """The last layer's output [N, E] of everything at once, layers written out one by one."""
    h, seen = x, dict.fromkeys(cfg.kinds, 0)
    for kind in cfg.kinds:
        number, seen[kind] = seen[kind], seen[kind] + 1
        layer = jax.tree.map(lambda w, l=number: w[l], weights["mixers"][cfg.stacks.index(kind)])
        inner = dec.rms_norm(h, layer["norm"], CFG.norm_eps)
        y, _ = kind.chunk(layer["mixer"], kind.init(CFG.width), inner, jnp.ones(len(h), bool))
        h = h + y
    return h


def program_of(memory=None, prefix=PREFIX, cfg=CFG):
    sizes = spec_of(cfg, chunk=SIZE, prefix=len(prefix.ids) if prefix else 0)
    return make_program(cfg, memory or Recent(6), sizes, prefix=prefix)


@pytest.mark.parametrize(
    "cfg",
    [CFG, pytest.param(replace(CFG, mixers=REST), marks=pytest.mark.slow)],
    ids=["two", "others"],
)
def test_a_stream_a_question_and_its_answer_are_one_pass(cfg, rows):
    """With a prompt in front, padding in between, and what is decoded at the end."""
    program, weights = program_of(cfg=cfg), small.params(cfg)
    bound = bind(program, weights)
    carry = stream(bound, start(program, bound), rows, program=program)
    before = jax.tree.map(np.array, carry)
    words, answer = [2, 7, 1], jnp.asarray([5, 9, 11])
    question = question_rows(weights, words, program=program)
    scores = log_prob(bound, carry, question, answer, program=program)
    text = lambda ids: dec.embed(weights, jnp.asarray(ids))
    x = [text(PREFIX.ids), jnp.asarray(small.flat(rows)[0]), text([*words, *answer[:-1]])]
    h = jax.jit(one_pass, static_argnums=2)(weights, jnp.concatenate(x), cfg)[-len(answer) :]
    want = jax.nn.log_softmax(dec.logits(weights, cfg, h))[jnp.arange(len(answer)), answer]
    np.testing.assert_allclose(scores, want, atol=2e-4)
    assert np.all(np.isfinite(ask(bound, carry, question, program=program, max_new=3).first))
    jax.tree.map(np.testing.assert_array_equal, carry, before)


def test_bytes_are_those_of_the_states_however_long_the_stream(weights, rows):
    program = program_of(prefix=None)
    carry = start(program)
    assert sum(x.nbytes for x in jax.tree.leaves((carry.state.slots, carry.bank))) == 0
    size = sum(x.nbytes for x in jax.tree.leaves(carry))
    for _ in range(3):
        carry = stream(weights, carry, rows, program=program)
        assert sum(x.nbytes for x in jax.tree.leaves(carry)) == size


def test_it_is_saved_and_restored(weights, rows, tmp_path):
    program = program_of(prefix=None)
    carry = stream(weights, start(program), rows, program=program)
    save(tmp_path / "s", carry, program=program, params=weights)
    back = restore(tmp_path / "s", program, params=weights)
    jax.tree.map(np.testing.assert_array_equal, back, carry)


def test_weights_have_no_layers_that_attend(weights):
    assert "layers" not in weights and len(weights["mixers"]) == 2
    hybrid = replace(CFG, mixers=(ONE, None, ONE), mlp_width=16)
    program = make_program(hybrid, Recent(6), spec_of(hybrid, chunk=SIZE))
    with pytest.raises(ValueError, match="have 0 layers that attend but the decoder has 1"):
        stream(weights, start(program), small.stream_rows(CFG, 1, SIZE), program=program)


def shapes_of(*mixers):
    cfg = replace(CFG, layers=len(mixers), mixers=mixers, mlp_width=0)
    return jax.eval_shape(lambda: dec.init_decoder(cfg, jax.random.key(0)))


FIRST = "2 with Mamba2, of which layer 1 is the first"
NONE, TWO = shapes_of(None, None), shapes_of(ONE, OTHER, ONE)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (shapes_of(ONE, OTHER), f"have 1 layers with a state where the decoder has {FIRST}: give"),
        (shapes_of(ONE, OTHER, ONE, ONE), f"have 3 layers .* the decoder has {FIRST}: give"),
        (shapes_of(OTHER, ONE, OTHER), f"{FIRST}: their mixer.a.kernel is .* absent here; give"),
        (shapes_of(Mamba2(4, 6, 7), OTHER, Mamba2(4, 6, 7)), r"conv.bias is \(2, 38\) there and"),
        (TWO | {"mixers": (TWO["mixers"][0] | {"mlp_norm": {"scale": jnp.ones((2, 24))}},
                           TWO["mixers"][1])}, "mlp_norm.scale is .* there and absent here"),
        (shapes_of(ONE, ONE), r"have 1 stacks .* the decoder has 2 \(Mamba2, GatedDelta\): give"),
        ({k: v for k, v in TWO.items() if k != "mixers"}, "have 0 stacks of layers with a state"),
    ],
    ids=["fewer", "more", "swapped", "larger", "mlp", "one", "none"],
)  # fmt: skip
def test_weights_of_other_layers_with_a_state_are_refused(others, said):
    """By their shapes alone, whatever index the layers would be read at."""
    program = program_of(prefix=None)
    check_weights(program, TWO)
    with pytest.raises(ValueError, match=said):
        check_weights(program, others)


def test_weights_of_a_hybrid_are_not_those_of_its_layers_that_attend():
    plain = replace(CFG, layers=2, mixers=())
    program = make_program(plain, Recent(6), spec_of(plain, chunk=SIZE))
    check_weights(program, NONE)
    with pytest.raises(ValueError, match=r"the decoder has 0 \(all its layers attend\)"):
        check_weights(program, shapes_of(None, ONE, None))


def test_a_stream_and_a_question_refuse_the_weights_of_others(weights, rows):
    program = program_of(prefix=None)
    less = weights | {"mixers": jax.tree.map(lambda x: x[:1], weights["mixers"])}
    with pytest.raises(ValueError, match=f"have 1 layers .* decoder has {FIRST}"):
        stream(less, start(program), rows, program=program)
    question = question_rows(weights, [2, 7, 1], program=program)
    with pytest.raises(ValueError, match=f"have 1 layers .* decoder has {FIRST}"):
        ask(less, start(program), question, program=program)


def test_weights_may_have_adapters_beside_their_matrices():
    pair = {"a": jnp.ones((2, 24, 3)), "b": jnp.ones((2, 3, 4))}
    mixer = TWO["mixers"][0]["mixer"]
    stack = TWO["mixers"][0] | {"mixer": mixer | {"in": mixer["in"] | pair}}
    check_weights(program_of(prefix=None), TWO | {"mixers": (stack, TWO["mixers"][1])})


@pytest.mark.parametrize("name", ["hermes", "moviechat"])
def test_memories_that_need_layers_that_attend_are_refused(name):
    sizes = spec_of(CFG, chunk=SIZE, frame=(2, 2))
    some = spec_of(replace(CFG, mixers=(), mlp_width=8), chunk=SIZE, frame=(2, 2))
    with pytest.raises(ValueError, match="no layer of the decoder attends, so memory"):
        make_program(CFG, build(name, 12, some, small.options(SIZE).get(name)), sizes)


def test_a_state_that_is_not_finite_is_reported_with_its_layer(weights, rows):
    """And with the chunk after which it was so: the third holds padding alone."""
    program = program_of(prefix=None)
    first, rest = (jax.tree.map(lambda x, at=at: x[at], rows) for at in (slice(2, 3), slice(2, 4)))
    mixer = weights["mixers"][0]["mixer"]  # of the second Mamba2, layer 3 of the decoder
    mixer = mixer | {"dt_bias": mixer["dt_bias"].at[1].set(np.nan)}
    stacks = (weights["mixers"][0] | {"mixer": mixer}, *weights["mixers"][1:])
    broken = weights | {"mixers": stacks}
    carry = stream(broken, start(program), first, program=program)
    assert carry.broken.tolist() == [-1, -1]
    carry = stream(weights, carry, rows, program=program)
    carry = stream(broken, carry, rest, program=program)
    assert carry.broken.tolist() == [3, 2]
    question = question_rows(weights, [2, 7, 1], program=program)
    said = "the state of decoder layer 3 of 3, while chunk 4 of the stream was read,"
    with pytest.raises(ValueError, match=said):
        ask(weights, carry, question, program=program)
    with pytest.raises(ValueError, match=said):
        check_answer(np.array([-1]), weights, carry, question, program=program)


def test_an_answer_of_states_alone_that_is_not_finite(weights, rows):
    program = program_of(prefix=None)
    carry = stream(weights, start(program), rows, program=program)
    question = question_rows(weights, [2, 7, 1], program=program)
    bad = weights | {"norm": {"scale": weights["norm"]["scale"] * np.nan}}
    with pytest.raises(ValueError, match="the logits of token 1 of the answer are not finite"):
        ask(bad, carry, question, program=program)
