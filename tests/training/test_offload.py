"""States before chunks in the host's memory: one gradient, the program, and what is refused.

A CPU keeps both memories on the same chips and its programs do not tell them apart, so what is read
here is the program that JAX hands to the compiler, for a CPU and for a GPU.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from cells import FILL, case, shapes
from jax.extend.core import jaxprs_in_params
from test_remat import CHUNK, ROWS, SIZES, gradients, same, worth

from jaxmem.training.plan import Cost, on_host, plan, temp
from jaxmem.training.remat import SCHEMES, grid, remat, stacked, timed

LAYERS = SIZES["layers"]


def residuals(run, *given):
    """Shapes, by memory, of what the loops of a gradient hand out stacked over time."""
    program = jax.make_jaxpr(jax.value_and_grad(worth(run), (0, 1, 2), allow_int=True))(*given)
    found = {"device": [], "host": []}

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                body = eqn.params["jaxpr"]
                for var, one in zip(eqn.outvars, getattr(body, "jaxpr", body).outvars, strict=True):
                    if var.aval.shape == one.aval.shape:  # a carry
                        continue
                    host = var.aval.memory_space == jax.memory.Space.Host
                    found["host" if host else "device"].append(var.aval.shape)
            for inner in jaxprs_in_params(eqn.params):
                walk(inner)

    walk(program.jaxpr)
    return found


@pytest.mark.parametrize("scheme, segments", [("D", None), ("E", 2)])
def test_the_gradient_is_the_same_and_states_lie_on_the_host(scheme, segments):
    with jax.enable_x64():
        cell, *given = case("generic", ROWS, **SIZES)
        make = partial(grid, cell, chunk=CHUNK, scheme=scheme, segments=segments)
        same(gradients(make(offload=True), *given), gradients(make(), *given), 1e-14)
        off, on = residuals(make(), *given), residuals(make(offload=True), *given)
    state, count = given[2].shape, ROWS // CHUNK
    kept = [(count, *state)] if segments is None else [(2, *state), (count // 2, *state)]
    for shape in kept:
        assert shape in off["device"] and shape not in on["device"]
    assert off["host"] == [] and sorted(on["host"]) == sorted(kept)


def test_states_of_many_parts_and_padding():
    """A layer of Mamba-2, of a length that is no multiple: inputs of its convolution as well."""
    with jax.enable_x64():
        cell, *given = case("mamba2", ROWS - 1, **SIZES)
        run = grid(cell, chunk=CHUNK, fill=FILL["mamba2"], offload=True)
        found = residuals(run, *given)["host"]
    count = -(-(ROWS - 1) // CHUNK)
    assert sorted(found) == sorted((count, *a.shape) for a in jax.tree.leaves(given[2]))


def step_of(cell, keep=()):
    layers = stacked(remat(cell, keep=keep))

    def step(params, x, state):
        y, after = layers(params, x, state["layers"])
        return jnp.sum(jnp.sin(y) * x), {"layers": after, "clock": state["clock"] + 1}

    return step


@pytest.mark.parametrize("nested", [False, True])
def test_a_step_over_time(nested):
    """With whole numbers in its state, under `vmap`, and with names that are kept besides."""
    cell, params, x, state = case("generic", ROWS, layers=2, width=6)
    states = {"layers": state, "clock": jnp.int32(0)}

    def loss(run, params, x):
        return jnp.sum(jax.vmap(lambda x: jnp.sum(run(params, x, states)[0]))(x))

    x = jnp.stack([x, 2 * x])
    found = []
    for offload in (False, True):
        run = timed(step_of(cell), chunk=CHUNK, nested=nested, offload=offload, keep=("kept",))
        found.append(jax.jit(jax.value_and_grad(partial(loss, run)))(params, x))
    same(*found, 1e-6)


def test_a_gpu_is_told_to_put_them_there():
    """Copies to pinned host memory before a chunk, and back before its gradient."""
    cell, *given = shapes("generic", 8 * CHUNK, layers=2, width=6)

    def lowered(**more):
        run = worth(grid(cell, chunk=CHUNK, **more))
        traced = jax.jit(jax.value_and_grad(run)).trace(*given)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    for more in ({}, {"scheme": "E", "segments": 2}):
        text = lowered(offload=True, **more)
        there = [line for line in text.splitlines() if "annotate_device_placement" in line]
        assert any('"pinned_host"' in line for line in there)
        assert any('_xla_buffer_placement = "device"' in line for line in there)
        assert all("tensor<2x6x6xf32>" in line for line in there)
        assert "annotate_device_placement" not in lowered(**more)


def test_what_cannot_be_offloaded(monkeypatch):
    cell = case("generic", 1, layers=1)[0]
    for scheme in set(SCHEMES) - {"D", "E"}:
        with pytest.raises(ValueError, match=f"'D' and 'E' keep states .*, got '{scheme}'"):
            grid(cell, chunk=2, scheme=scheme, offload=True)
        with pytest.raises(ValueError, match=f"can be offloaded, got '{scheme}'"):
            plan(Cost(1, 1, 1), layers=1, tokens=4, scheme=scheme, offload=True)
    device = SimpleNamespace(addressable_memories=lambda: [SimpleNamespace(kind="device")])
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    message = r"states before chunks were asked into host memory, but this device has \['device'\]"
    for make in (partial(grid, cell), partial(timed, cell)):
        with pytest.raises(ValueError, match=f"{message} and no 'pinned_host': leave offload out"):
            make(chunk=2, offload=True)
        make(chunk=2)


def test_a_plan_says_what_lies_where():
    """The sizes are those without; all states of the device are then on the host, but one."""
    cost, sizes = Cost(256, 16_384, 1024, 4096), {"layers": 8, "tokens": 4096, "multiple": 32}
    for scheme in ("D", "E"):
        here = plan(cost, scheme=scheme, **sizes)
        there = plan(cost, scheme=scheme, offload=True, **sizes)
        assert there.options == here.options | {"offload": True} and on_host(here, cost) == 0
        assert (there.chunk, there.segments) == (here.chunk, here.segments)
        assert 0 < there.temp < here.temp == temp(here, cost)
    there = plan(cost, offload=True, **sizes)
    count = -(-4096 // there.chunk)
    assert on_host(there, cost) == count * 8 * cost.state
    assert there.temp == here_without(cost, there) + 8 * cost.state
    assert grid(case("generic", 1, layers=1)[0], **there.options)


def here_without(cost, plan_):
    """The same on the device, of layers without a state."""
    return temp(plan_._replace(offload=False), cost._replace(state=0))
