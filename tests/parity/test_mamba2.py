"""Mamba-2 language models against transformers: a tiny checkpoint, in pieces, and both layouts."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from passes import HIDDEN, LOGITS, close
from safetensors.numpy import load_file, save_file

from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.kv import TEXT
from jaxmem.memory.baselines import Recent
from jaxmem.memory.exchange import Embeds
from jaxmem.models.hf.config import read_json
from jaxmem.models.mamba import mamba2 as family


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "hf" / "mamba2"


@pytest.fixture(scope="module")
def model(folder):
    return family.load(folder)


@pytest.fixture(scope="module")
def z(folder):
    with np.load(folder / "reference.npz") as file:
        return dict(file)


def stepper(decoder, size):
    """A program, and its step over streams side by side: -> carries, last layer, logits."""
    program = make_program(decoder, Recent(1, sinks=0), spec_of(decoder, chunk=size))

    def one(params, carry, x):
        rows = len(x)
        pos, end = jnp.arange(rows, dtype=jnp.int32)[:, None], jnp.full((1,), rows, jnp.int32)
        embeds = Embeds(x, pos, jnp.full(rows, TEXT, jnp.int8), end)
        carry, h = chunk_step(params, program, carry, embeds)
        return carry, h, logits(params, decoder, h)

    return program, jax.jit(jax.vmap(one, (None, 0, 0)))


def begun(program, streams):
    carry = init_carry(program)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (streams, *x.shape)), carry)


def check_states(z, carry, name):
    tails, states = carry.states[0]
    for i in range(tails.shape[1]):
        close(tails[:, i], z[f"conv_state{name}{i}"][..., 1:].swapaxes(1, 2), HIDDEN)
        close(states[:, i], z[f"ssm_state{name}{i}"], HIDDEN)


def test_one_pass(model, z):
    x = embed(model.params, z["input_ids"])
    close(x, z["lm0_in"], HIDDEN)
    program, step = stepper(model.decoder, x.shape[1])
    _, h, out = step(model.params, begun(program, len(x)), x)
    close(h, z[f"lm{model.decoder.layers - 1}_out"], HIDDEN)
    close(out, z["logits"], LOGITS)


def test_prompt_then_the_rest_at_once_or_token_by_token(model, z):
    x, first = embed(model.params, z["input_ids"]), int(z["prefill_len"])
    program, step = stepper(model.decoder, x.shape[1])
    start, _, out = step(model.params, begun(program, len(x)), x[:, :first])
    close(out, z["prefill_logits"], LOGITS)
    check_states(z, start, "")
    close(step(model.params, start, x[:, first:])[2], z["chunk_continuation_logits"], LOGITS)
    carry = start
    for t in range(first, x.shape[1]):
        carry, _, out = step(model.params, carry, x[:, t : t + 1])
        close(out[:, 0], z["step_logits"][:, t - first], LOGITS)
    check_states(z, carry, "_end")


def test_shapes_need_no_weights(folder, model, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    found = family.load(tmp_path, abstract=True)
    assert found.decoder == model.decoder
    shapes = jax.tree.map(lambda x: x.shape, found.params)
    assert shapes == jax.tree.map(lambda x: x.shape, model.params)


def test_the_layout_of_state_spaces_is_the_same_model(folder, model, tmp_path):
    raw, decoder = read_json(folder), model.decoder
    ssm = {
        "layer": "Mamba2", "d_state": raw["state_size"], "d_conv": raw["conv_kernel"],
        "headdim": raw["head_dim"], "ngroups": raw["n_groups"], "expand": raw["expand"],
    }  # fmt: skip
    config = {
        "d_model": decoder.width, "d_intermediate": 0, "n_layer": decoder.layers,
        "vocab_size": decoder.vocab - 3, "ssm_cfg": ssm, "attn_layer_idx": [], "attn_cfg": {},
        "rms_norm": True, "pad_vocab_size_multiple": 4, "tie_embeddings": decoder.tied,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    new = {k.replace("backbone.embeddings.", "backbone.embedding."): v for k, v in tensors.items()}
    save_file(new, tmp_path / "model.safetensors")
    found = family.load(tmp_path)
    assert found.decoder == decoder
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
