"""Programs on a CPU: weights are converted layer by layer, and priced as they are run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.compiled import Compiled, make_room, mappings
from jaxmem.decoder.decoder import DecoderConfig, linear, logits
from jaxmem.pieces import blank

LAYERS, WIDTH = 16, 128


def through(weights, x):
    """A loop over layers in the dtype of the weights."""
    return jax.lax.fori_loop(0, LAYERS, lambda i, h: jnp.tanh(h @ weights[i]), x)


@pytest.fixture(scope="module")
def arrays():
    return jnp.ones((LAYERS, WIDTH, WIDTH), jnp.bfloat16) / WIDTH, jnp.ones((8, WIDTH), "bfloat16")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others multiply bfloat16 as it is")
def test_layers_are_not_all_converted_at_once(arrays):
    found = Compiled(through).lower(*arrays).compile().memory_analysis()
    assert found.temp_size_in_bytes < 3 * 4 * WIDTH * WIDTH  # of 16 layers


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others multiply bfloat16 as it is")
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_one_row_need_no_copy_of_the_output_matrix(tied):
    vocab = 4096
    config = DecoderConfig(1, WIDTH, 2, 2, 64, WIDTH, vocab, jm.rope_1d(64), tied=tied)
    matrix = jax.ShapeDtypeStruct((vocab, WIDTH) if tied else (WIDTH, vocab), jnp.bfloat16)
    params = {"norm": {"scale": jnp.ones(WIDTH, "bfloat16")}}
    params |= {"embedding": {"embedding": matrix}} if tied else {"head": {"kernel": matrix}}
    program = Compiled(logits, static_argnums=1).lower(params, config, jnp.ones(WIDTH, "bfloat16"))
    assert program.compile().memory_analysis().temp_size_in_bytes < vocab * WIDTH


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others multiply bfloat16 as it is")
def test_bfloat16_is_not_converted_to_be_multiplied():
    """What is needed besides is no float32 copy of the matrix, and the result rounds one sum."""
    draw = np.random.default_rng(0)
    x, kernel = (jnp.asarray(draw.standard_normal(s), "bfloat16") for s in ((8, 1024), (1024, 512)))
    program = Compiled(linear).lower(x, {"kernel": kernel}).compile()
    assert program.memory_analysis().temp_size_in_bytes < kernel.nbytes
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    close = np.abs(np.asarray(linear(x, {"kernel": kernel}), np.float64) - exact)
    assert np.all(close <= 2**-8 * np.abs(exact) + 1e-4 * np.abs(exact).max())


def test_it_is_called_inside_other_functions(arrays):
    program = Compiled(through)
    want = program(*arrays)
    assert jnp.array_equal(jax.jit(program)(*arrays), want)
    slope = jax.grad(lambda w, x: program(w, x).astype(jnp.float32).sum())(*arrays)
    assert slope.shape == arrays[0].shape


def test_what_has_no_gradient_runs_alone_only(arrays):
    """A function for bfloat16 on a CPU is not what is differentiated, by any argument."""
    program = Compiled(lambda w, x: (w @ x).sum(), lambda w, x: jnp.zeros((), w.dtype))
    w, x = (a.astype(jnp.bfloat16) for a in (jnp.ones((2, 2)), jnp.ones(2)))
    assert program(w, x) == 0 and program(w.astype(jnp.float32), x.astype(jnp.float32)) == 4
    assert all(jnp.all(jax.grad(program, n)(w, x) != 0) for n in (0, 1))
    assert jax.jit(program)(w, x) == 4


def test_it_is_called_inside_other_functions_with_constants_alone(arrays):
    """Nothing that it is given says that it is traced."""
    program = Compiled(through)
    assert jnp.array_equal(jax.jit(lambda: program(*arrays))(), program(*arrays))
    with pytest.raises(ValueError, match="mine"):
        Compiled(lambda x: (_ for _ in ()).throw(ValueError("mine")))(arrays[1])


def test_rehearsing_runs_nothing():
    """What was compiled ahead is what runs: the stream compiles nothing, its carry is untouched."""
    from jaxmem.report.compilations import count_compilations

    session = jm.Session(jm.load("tiny"), jm.Recent(24))
    before, model = session.carry, session.model
    inputs = jax.tree.map(lambda x: x[None], blank(model, model.media.size, 1))
    session.rehearse_chunks(inputs)
    session.rehearse("what was the last shape ?")
    assert session.carry is before and not before.clock.is_deleted() and not int(before.tokens)
    with count_compilations() as counted:
        session.write(inputs, session.preprocessor.heard)
        session.ask("what was the last shape ?")
    assert counted.count == 0


@pytest.mark.skipif(not mappings(), reason="the system does not say what is mapped")
def test_programs_are_let_go_of_before_the_system_has_no_room_for_more():
    step = jax.jit(lambda x: x + 3)
    step(1.0)
    make_room()
    assert step._cache_size() == 1
    make_room(most=mappings() - 1)
    assert step._cache_size() == 0 and float(step(1.0)) == 4
