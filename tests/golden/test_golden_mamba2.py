"""Mamba-2 against transformers: scans, whole models, gradients, pieces, single tokens."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from golden_files import cases, found

from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.kernels.ssd import ssd
from jaxmem.kv import TEXT
from jaxmem.memory.baselines import Recent
from jaxmem.memory.exchange import Embeds
from jaxmem.models.hf.weights import nest, turned
from jaxmem.models.mamba import mamba2 as family

VALUES, STATES, GRADIENTS = 5e-5, 2e-5, 5e-5


def pytest_generate_tests(metafunc):
    for name, pattern in (("model", "mamba2/mamba2_*.npz"), ("scan", "mamba2/mamba2_scan_*.npz")):
        if name in metafunc.fixturenames:
            files = found(metafunc.config, pattern)
            files = [f for f in files if ("_scan_" in f.name) == (name == "scan")]
            metafunc.parametrize(name, cases(metafunc.config, files))


def scanned(z, implementation, x, dt, a, b, c, d, dt_bias, h0):
    """What the files of the scan hold, of one stream."""
    dt = jnp.clip(jax.nn.softplus(dt + dt_bias[None]), *map(float, z["limit"]))
    y, h = ssd(x, dt, a, b, c, h0, block=8, implementation=implementation)
    return y + d[None, :, None] * x, h


@pytest.mark.parametrize(
    "implementation", ["xla", pytest.param("xla_blocks", marks=pytest.mark.slow)]
)
def test_the_scan_its_state_and_its_gradients(scan, implementation):
    z = weights.read(scan)
    names = ("x", "dt", "A", "B", "C", "D", "dt_bias", "h0")
    of_streams = jax.vmap(partial(scanned, z, implementation), (0, 0, None, 0, 0, None, None, 0))

    @jax.jit
    def run(given, up):
        out, pull = jax.vjp(of_streams, *given)
        return out, pull(up)

    (y, h), grads = run(tuple(jnp.asarray(z[n]) for n in names), (z["gy"], z["gh"]))
    np.testing.assert_allclose(y, z["y"], atol=2e-5)
    np.testing.assert_allclose(h, z["h"], atol=STATES)
    for name, grad in zip(names, grads, strict=True):
        want = z[f"g.{name}"]
        np.testing.assert_allclose(grad, want, atol=GRADIENTS * np.abs(want).max(), err_msg=name)


def model_of(path):
    """The file, the decoder that it describes, and its weights."""
    z = weights.read(path)
    config = family.read_config({"model_type": "mamba2", **json.loads(str(z["config"]))})
    return z, config, tree(z, config, "p.")


def tree(z, config, prefix):
    """The arrays of a file with a prefix, as a tree of weights."""
    flat = {}
    for path, weight in family.weight_table(config).items():
        parts = [turned(z[prefix + name], weight.turn) for name in weight.names]
        flat[path] = jnp.asarray(parts[0] if weight.layers is None else np.stack(parts))
    return family.finalise(nest(flat))


def rows(x, at=0):
    """Embedded rows [T, E] as a chunk."""
    pos, one = jnp.arange(len(x), dtype=jnp.int32)[:, None], jnp.full((1,), len(x), jnp.int32)
    return Embeds(x, pos, jnp.full(len(x), TEXT, jnp.int8), one)


def stepper(config, size):
    """A program for chunks of so many rows, and its step over all streams side by side."""
    program = make_program(config, Recent(1, sinks=0), spec_of(config, chunk=size))

    def one(params, carry, x):
        carry, h = chunk_step(params, program, carry, rows(x))
        return carry, h, logits(params, config, h)

    return program, jax.vmap(one, (None, 0, 0))


def begun(program, streams):
    carry = init_carry(program)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (streams, *x.shape)), carry)


def test_one_pass_and_its_gradients(model):
    z, config, params = model_of(model)
    ids = jnp.asarray(z["input_ids"])
    program, step = stepper(config, ids.shape[1])

    def run(params, x):
        _, h, out = step(params, begun(program, len(x)), x)
        p = jax.nn.log_softmax(out[:, :-1])
        loss = -jnp.mean(jnp.take_along_axis(p, ids[:, 1:, None], axis=-1))
        return loss, (h, out)

    x = embed(params, ids)
    run = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
    (loss, (h, out)), (of_params, of_x) = run(params, x)
    np.testing.assert_allclose(out, z["logits"], atol=VALUES)
    np.testing.assert_allclose(h, z[f"hidden{config.layers - 1}"], atol=VALUES)
    np.testing.assert_allclose(loss, z["loss"], atol=VALUES)
    pairs = [("inputs", of_x, z["g.inputs"])]
    for path, weight in family.weight_table(config).items():
        if not config.tied and path == "embedding.embedding":
            continue
        parts = [turned(z[f"g.{name}"], weight.turn) for name in weight.names]
        mine = of_params
        for key in path.split("."):
            mine = mine[int(key)] if isinstance(mine, tuple) else mine[key]
        pairs.append((path, mine, parts[0] if weight.layers is None else np.stack(parts)))
    for name, mine, want in pairs:
        layers = range(len(want)) if name.startswith("mixers") else [slice(None)]
        for i in layers:
            limit = GRADIENTS * np.abs(want[i]).max()
            np.testing.assert_allclose(mine[i], want[i], atol=limit, err_msg=name)


def check_states(carry, z, prefix, config):
    tails, states = carry.states[0]  # [B, L, ...]
    for i in range(config.layers):
        conv = z[f"{prefix}_conv{i}"][..., 1:].swapaxes(1, 2)  # the file's holds one row more
        np.testing.assert_allclose(tails[:, i], conv, atol=STATES)
        np.testing.assert_allclose(states[:, i], z[f"{prefix}_ssm{i}"], atol=STATES)


def test_pieces_go_on_from_the_states_of_the_last(model):
    z, config, params = model_of(model)
    x = embed(params, jnp.asarray(z["input_ids"]))
    program, step = stepper(config, x.shape[1])
    step, carry, at = jax.jit(step), begun(program, len(x)), 0
    for i, size in enumerate(z["pieces"]):
        carry, _, out = step(params, carry, x[:, at : at + size])
        np.testing.assert_allclose(out, z[f"piece{i}_logits"], atol=VALUES)
        check_states(carry, z, f"piece{i}", config)
        at += size


def test_single_tokens_go_on_from_the_first_piece(model):
    z, config, params = model_of(model)
    if "time_step_limit" in json.loads(str(z["config"])):
        pytest.skip("single tokens of transformers ignore the limits: another model")
    x, first = embed(params, jnp.asarray(z["input_ids"])), int(z["pieces"][0])
    program, step = stepper(config, x.shape[1])
    step = jax.jit(step)
    carry, _, _ = step(params, begun(program, len(x)), x[:, :first])
    for t in range(first, x.shape[1]):
        carry, _, out = step(params, carry, x[:, t : t + 1])
        np.testing.assert_allclose(out[:, 0], z["step_logits"][:, t - first], atol=VALUES)
    check_states(carry, z, "end", config)
