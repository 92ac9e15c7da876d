"""Weights of layers that attend are the decoder's, by name and shape, or refused in a sentence."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
import small

from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.checks import check_weights
from jaxmem.decoder.program import make_program, spec_of
from jaxmem.decoder.scorer import add_scorer, init_scorer
from jaxmem.loop import start, stream
from jaxmem.memory.baselines import Recent
from jaxmem.mixers.gated_delta import GatedDelta

SIZE, STATE = 8, GatedDelta(2, key_dim=4, block=4)
CFG = replace(small.config(layers=3, axes=1), mixers=(STATE, None, None))


def shapes_of(**more):
    """The shapes of a decoder's weights that differs in some fields."""
    cfg = replace(CFG, **more)
    return jax.eval_shape(lambda: dec.init_decoder(cfg, jax.random.key(0)))


def program_of(cfg=CFG):
    return make_program(cfg, Recent(6), spec_of(cfg, chunk=SIZE))


def with_layers(**more):
    """The decoder's own weights with others in its layers that attend."""
    own = shapes_of()
    return own | {"layers": own["layers"] | more}


SHAPE = jax.ShapeDtypeStruct
WIDE = {"kernel": SHAPE((2, 24, 64), jnp.float32)}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (with_layers(q={"kernel": SHAPE((2, 24, 32), jnp.float32)}),
         r"layers.q.kernel is \(2, 24, 32\) in the weights and \(2, 24, 64\) in the decoder"),
        (with_layers(k=WIDE), r"layers.k.kernel is \(2, 24, 64\) .* \(2, 24, 32\) in the decoder"),
        (with_layers(down={"kernel": SHAPE((2, 40, 24), jnp.float32)}),
         r"layers.down.kernel is \(2, 40, 24\) in the weights and \(2, 32, 24\)"),
        (with_layers(o={"kernel": SHAPE((1, 64, 24), jnp.float32)}), r"layers.o.kernel is \(1, 64"),
        (with_layers(v=shapes_of(qkv_bias=True)["layers"]["v"]),
         r"layers.v.bias is \(2, 32\) in the weights and absent in the decoder"),
        ({"layers": {k: x for k, x in shapes_of()["layers"].items() if k != "q_norm"}},
         "layers.q_norm.scale is absent in the weights and"),
    ],
    ids=["heads", "kv heads", "mlp", "fewer", "bias", "norm"],
)  # fmt: skip
def test_others_are_refused(weights, said):
    with pytest.raises(ValueError, match=f"not those .* 2 layers that attend: {said}.*; give"):
        check_weights(program_of(), shapes_of() | weights)


def test_its_own_are_taken_with_adapters_and_a_score():
    pair = {"a": SHAPE((2, 24, 3), jnp.float32), "b": SHAPE((2, 3, 64), jnp.float32)}
    check_weights(program_of(), with_layers(q=shapes_of()["layers"]["q"] | pair))
    scorer = jax.eval_shape(lambda: init_scorer(CFG, jax.random.key(0)))
    check_weights(program_of(), add_scorer(shapes_of(), scorer))
    plain = replace(CFG, mixers=(), mlp_width=0)
    check_weights(program_of(plain), shapes_of(mixers=(), mlp_width=0))


def test_a_stream_and_a_question_refuse_others():
    program, rows = program_of(), small.stream_rows(CFG, 1, SIZE)
    weights, narrow = small.params(CFG), small.params(replace(CFG, mlp_width=16))
    said = r"layers.down.kernel is \(2, 16, 24\) in the weights and \(2, 32, 24\)"
    mixed = weights | {"layers": narrow["layers"]}
    with pytest.raises(ValueError, match=said):
        stream(mixed, start(program), rows, program=program)
    question = question_rows(weights, [2, 7, 1], program=program)
    with pytest.raises(ValueError, match=said):
        ask(mixed, start(program), question, program=program)
