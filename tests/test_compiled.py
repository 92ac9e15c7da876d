"""Programs on a CPU: weights are converted layer by layer, and priced as they are run."""

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm
from jaxmem.compiled import Compiled
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


def test_it_is_called_inside_other_functions(arrays):
    program = Compiled(through)
    want = program(*arrays)
    assert jnp.array_equal(jax.jit(program)(*arrays), want)
    slope = jax.grad(lambda w, x: program(w, x).astype(jnp.float32).sum())(*arrays)
    assert slope.shape == arrays[0].shape


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
