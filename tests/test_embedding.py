"""The door for other decoders: `attend` and `attend_stack` do what the decoder of the package does.

Of the other decoders one is the small one, called block by block with nothing but its projections;
one is written in Flax NNX (the README's) and one in Flax Linen.
"""

import inspect
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import their_linen
import their_nnx
import their_plain
from flax import nnx
from test_laws_everywhere import (
    CFG,
    ROWS,
    SIZE,
    at_leisure,
    bound,
    memory_in_the_loop,
    program_of,
    weights,
)

import jaxmem as jm
from jaxmem.bound import question_rows
from jaxmem.decoder.decoder import layer_at, qkv
from jaxmem.decoder.program import init_carry
from jaxmem.memory import MEMORIES

CHUNKS = 3
FEATURES = tuple(n for n, kind in MEMORIES.items() if issubclass(kind, jm.FeatureMemory))
NAMES = [name for name in MEMORIES if name not in FEATURES]
ALONE = [
    name
    for name in NAMES
    if memory_in_the_loop(name).per == "layer" and not memory_in_the_loop(name).requires.probes
]
"""What one block can stream by itself."""
FLAX = ("omnimem", "h2o", "snapkv", "rekv", "hermes")


@cache
def asked(program):
    return question_rows(weights(), [3, 1, 4], program=program)


@cache
def ours(name):
    """Return what the package's decoder answers after some chunks: rows of the question [Q, E]."""
    program = program_of(name)
    rows = jax.tree.map(lambda x: x[:CHUNKS], ROWS)
    carry = jm.stream(bound(name, program), init_carry(program), rows, program=program)
    return small.prefilled(weights(), program, carry, asked(program), room=1)[1]


def check(name, watch, ask, state, *more, start=0):
    """Assert that a question after some chunks is answered as in the package's decoder.

    Args:
      name: of the memory.
      watch: (memory, spec, state, clock, rows, *more) -> (output, state, clock, *banks).
      ask: (memory, spec, state, rows, *banks) -> output.
      state: before the first chunk.
      more: the banks, and the probes; what is None is left out.
      start: the clock before the first chunk.
    """
    memory, program = memory_in_the_loop(name), program_of(name)
    args, clock, (bank, *probes) = (memory, program.spec), jnp.int32(start), more
    for i in range(CHUNKS):
        rows = small.chunk(ROWS, i)
        _, state, clock, *bank = watch(*args, state, clock, rows, bank, *probes)
        bank = bank[0] if bank else None
    got, want = ask(*args, state, asked(program), bank), ours(name)
    real = np.asarray(asked(program).modality) != 0
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(want)[real], atol=1e-4)
    return clock


def check_alone(name, watch, ask, **more):
    """Check a decoder in which every block has the memory of its own layer."""
    memory, spec = memory_in_the_loop(name), program_of(name).spec
    states = tuple(memory.init(spec, layer) for layer in range(spec.layers))
    banks = tuple(jm.init_bank(memory, replace(spec, layers=1)) for _ in states)
    return check(name, watch, ask, states, banks, **more)


def check_stack(name, watch, ask, **more):
    """Check a decoder of which all blocks are given at once."""
    memory, spec = memory_in_the_loop(name), program_of(name).spec
    given = bound(name, program_of(name))
    probes = given.probes if isinstance(given, jm.Bound) else None
    bank = jm.init_bank(memory, spec)
    return check(name, watch, ask, jm.init_stack(memory, spec), bank, probes, **more)


def plain(*methods):
    return [partial(getattr(their_plain, name), weights(), CFG) for name in methods]


@pytest.mark.parametrize("name", at_leisure(NAMES, set(NAMES) - {*FLAX, "full"}))
def test_all_blocks_together_answer_as_the_decoder_of_the_package(name):
    check_stack(name, *plain("watch_all", "ask_all"))


@pytest.mark.parametrize("name", at_leisure(ALONE, set(ALONE) - {*FLAX}))
def test_blocks_by_themselves_answer_as_the_decoder_of_the_package(name):
    check_alone(name, *plain("watch", "ask"))


def their_weights(layer):
    """Return the weights of a layer under the names of the Flax decoders."""
    mine = layer_at(weights(), layer)
    heads = {"q": CFG.heads, "k": CFG.kv_heads, "v": CFG.kv_heads}
    split = lambda x, n: x["kernel"].reshape(CFG.width, n, CFG.head_dim)
    return {
        **{name: mine[name] for name in ("q_norm", "k_norm", "mlp_norm", "gate", "up", "down")},
        **{name: {"kernel": split(mine[name], n)} for name, n in heads.items()},
        "norm": mine["attn_norm"],
        "out": {"kernel": their_plain.output_of(weights(), CFG, layer)},
    }


SIZES = (CFG.width, CFG.heads, CFG.kv_heads, CFG.head_dim, CFG.mlp_width)


@cache
def linen(*methods):
    """Return compiled methods of the Linen decoder."""
    decoder = their_linen.Decoder(CFG.layers, SIZES)
    blocks = {f"blocks_{layer}": their_weights(layer) for layer in range(CFG.layers)}
    run = lambda name: jax.jit(partial(decoder.apply, method=name), static_argnums=(1, 2))
    return [partial(run(name), {"params": blocks}) for name in methods]


@cache
def nnx_blocks():
    blocks = nnx.List([their_nnx.Block(*SIZES, rngs=nnx.Rngs(0)) for _ in range(CFG.layers)])
    for layer, block in enumerate(blocks):
        nnx.update(block, their_weights(layer))
    return blocks


@cache
def in_nnx(*functions):
    """Return compiled functions of the NNX decoder."""
    run = lambda name: nnx.jit(getattr(their_nnx, name), static_argnums=(1, 2))
    return [partial(run(name), nnx_blocks()) for name in functions]


# What a Linen block adds is shown by two; a block of each kind with every memory is NNX's.
BOTH = [pytest.param(f, n, id=f"{kind}-{n}", marks=pytest.mark.slow if late else ())
        for kind, f in (("nnx", in_nnx), ("linen", linen)) for n in FLAX
        for late in [kind == "linen" and n not in ("omnimem", "h2o")]]  # fmt: skip


@pytest.mark.parametrize(("flax", "name"), BOTH)
def test_flax_decoders_answer_as_the_decoder_of_the_package(flax, name):
    """Block by block where the memory allows it; NNX glue for single blocks leaves out the bank."""
    if name == "hermes" or (name == "rekv" and flax is in_nnx):
        check_stack(name, *flax("watch_all", "ask_all"))
    elif flax is linen:
        check_alone(name, *flax("watch", "ask"))
    else:
        watch, ask = flax("watch", "ask")
        check_alone(name, lambda *args: watch(*args[:-1]), lambda *args: ask(*args[:-1]))


GLUE = [
    getattr(where, name)
    for where in (their_plain, their_nnx, their_linen.Decoder)
    for name in ("watch", "ask", "watch_all", "ask_all")
]


@pytest.mark.parametrize("glue", GLUE, ids=lambda glue: f"{glue.__module__}.{glue.__name__}")
def test_a_memory_takes_at_most_15_lines_of_glue(glue):
    source = inspect.getsource(inspect.unwrap(glue))
    assert source.count(glue.__doc__) == 1
    code = source.replace(f'"""{glue.__doc__}"""', "")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15, source


@pytest.mark.parametrize("page", ["README.md", "docs/embed.md"])
def test_pages_print_the_decoder_that_is_tested(page, root):
    text = (root / page).read_text()
    parts = [their_nnx.Block, their_nnx.watch, their_nnx.ask]
    parts += [their_nnx.watch_all, their_nnx.ask_all] if page == "docs/embed.md" else []
    for part in parts:
        assert inspect.getsource(inspect.unwrap(part)) in text, part


@pytest.mark.parametrize("name", FEATURES)
def test_memories_of_features_say_where_they_belong(name):
    memory, spec = memory_in_the_loop(name), program_of(name).spec
    with pytest.raises(ValueError, match="before the decoder"):
        jm.init_stack(memory, spec)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALONE])
def test_memories_of_all_blocks_say_so(name):
    memory, spec, x = memory_in_the_loop(name), program_of(name).spec, jnp.zeros((SIZE, CFG.width))
    q, k, v = qkv(layer_at(weights(), 0), CFG, x)
    with pytest.raises(ValueError, match="attend_stack"):
        jm.attend(memory, spec, None, q, k, v, jm.embeds(x, axes=3), 0)
