"""Qwen3.5 of two periods through `jm.load` and `Session`: every memory, saves, bad configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_qwen3_5
from passes import pieces_of

import jaxmem as jm
from jaxmem.decoder.scorer import init_scorer
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import FeatureMemory
from jaxmem.models.hf.config import read_json

pytest.importorskip("jinja2")

SIZE, QUESTION, FEW = (16, 24), "what is shown", ("recent",)
OPTIONS = {
    "rekv": {"block": 4, "topk": 2, "sinks": 2},
    "flexmem": {"shallow": 1},
    "streaming_llm": {"sinks": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_qwen3_5(tmp_path_factory.mktemp("qwen3_5") / "tiny-qwen3-5")


@pytest.fixture(scope="module")
def model(folder):
    found = jm.for_frames(jm.load(folder, dtype="float32", fps=2, max_new=3), SIZE)
    return jm.with_scorer(found, init_scorer(found.decoder, jax.random.key(0)))


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]
)
def test_every_memory_streams_asks_and_goes_on_after_a_save(model, tmp_path, name):
    spec = jm.model_spec(model, 2)
    memory = jm.memory_for(model, name, 48, spec=spec, tokens=160, **OPTIONS.get(name, {}))
    pieces = pieces_of(model, SIZE, 5)
    session = jm.Session(model, memory, chunk_pieces=2).watch(pieces[:3])
    assert session.program.spec.layers == model.decoder.attends == 2
    states = jax.tree.map(np.asarray, session.carry.states)
    watched = not isinstance(memory, FeatureMemory)  # no layer runs while features are taken
    for now, front in zip(jax.tree.leaves(states), front_of(session), strict=True):
        assert now.dtype == np.float32 and np.array_equal(now, front) != watched
    before = session.ask(QUESTION)
    assert np.all(np.isfinite(before.logits))
    jax.tree.map(np.testing.assert_array_equal, session.carry.states, states)
    session.save(tmp_path / "save")
    again = jm.Session.restore(tmp_path / "save", model, memory)
    jax.tree.map(np.testing.assert_array_equal, again.carry.states, states)
    np.testing.assert_array_equal(again.ask(QUESTION).logits, before.logits)
    ends = [each.watch(pieces[3:]).ask(QUESTION) for each in (session, again)]
    np.testing.assert_array_equal(ends[0].logits, ends[1].logits)
    jax.tree.map(np.testing.assert_array_equal, again.carry.states, session.carry.states)
    assert ends[0].text == ends[1].text and ends[0].logits.shape[-1] == model.decoder.vocab


def front_of(session):
    """The states after the text in front of the stream."""
    return [np.asarray(x) for x in jax.tree.leaves(session.bound.states)]


def test_norms_are_one_and_what_is_stored_beside_any_dtype(folder, model):
    """1 + w is kept in float32: in bfloat16 it would lose the digits of w."""
    half = jm.load(folder, dtype="bfloat16")
    decoder, whole = half.params["decoder"], model.params["decoder"]
    assert decoder["layers"]["attn_gate"]["kernel"].dtype == jnp.bfloat16
    stacks = (decoder["norm"], decoder["layers"]["q_norm"], decoder["mixers"][0]["mlp_norm"])
    assert {x["scale"].dtype for x in stacks} == {jnp.dtype("float32")}
    assert decoder["mixers"][0]["mixer"]["norm"]["scale"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(whole["norm"]["scale"], 1)  # the file holds zeros
    np.testing.assert_array_equal(whole["mixers"][0]["mixer"]["norm"]["scale"], 0)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), jm.load(folder, abstract=True).params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), half.params)


SPLIT = """
import sys, jax, numpy as np
from jax.sharding import Mesh
sys.path[:0] = {paths!r}
from passes import pieces_of
import jaxmem as jm
from jaxmem.decoder.placing import weight_places
found = []
for mesh in (None, jm.parse_mesh("model=2")):
    place = None if mesh is None else weight_places(mesh)
    model = jm.load(sys.argv[1], dtype="float32", fps=2, max_new=2, sharding=place)
    model = jm.for_frames(model, (16, 24))
    session = jm.Session(model, jm.Full(99), chunk_pieces=2, mesh=mesh)
    session.watch(pieces_of(model, (16, 24), 3))
    found.append(session.ask("what is shown").logits)
decoder = model.params["decoder"]
for leaf in (decoder["mixers"][0]["gate"], decoder["layers"]["q"], decoder["layers"]["attn_gate"]):
    kernel = leaf["kernel"]
    assert 2 * kernel.addressable_shards[0].data.size == kernel.size, kernel.sharding
np.testing.assert_allclose(found[1], found[0], atol=1e-5)
"""


@pytest.mark.slow
def test_weights_over_two_devices(folder):
    """In a process of its own: heads, gates and the MLPs of all layers are split."""
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    here = Path(__file__).parent
    code = SPLIT.format(paths=[str(here), str(here.parent / "support")])
    words = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def refused(folder, tmp_path, part, **values):
    """What `load` says of a config.json with other values in a part."""
    config = read_json(folder)
    config[part] |= values
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        jm.load(tmp_path, abstract=True)
    return str(caught.value)


def test_kinds_of_layers_that_are_not_known_are_refused(folder, tmp_path):
    kinds = ["linear_attention"] * 5 + ["sliding_attention", "mamba", "full_attention"]
    said = refused(folder, tmp_path, "text_config", layer_types=kinds)
    assert said.startswith(
        "layer 6 of 8 is 'sliding_attention' in config.json (layer_types); the kinds"
    )
    assert "linear_attention and full_attention" in said and "mamba" not in said
    assert said.count(".") == 2  # of config.json and at the end: one sentence
    said = refused(folder, tmp_path, "text_config", layer_types=kinds[:5])
    assert "names 5 layers in config.json, but num_hidden_layers is 8" in said


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("text_config", {"full_attention_interval": 0}, "full_attention_interval is 0"),
        ("text_config", {"attention_bias": True}, "attention_bias is True"),
        ("text_config", {"attn_output_gate": False}, "attn_output_gate is False"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("text_config", {"rope_parameters": {"mrope_section": [2, 1, 1]}}, "sections"),
        ("text_config", {"linear_num_value_heads": 3}, "key_heads that divide heads"),
        ("text_config", {"linear_num_value_heads": "2"}, "linear_num_value_heads is '2' in config"),
        ("text_config", {"linear_key_head_dim": 0}, "linear_key_head_dim is 0 in config.json"),
        ("text_config", {"full_attention_interval": "4"}, "full_attention_interval is '4'"),
        ("text_config", {"layer_types": 5}, "layer_types is 5 in config.json, expected a list"),
        ("text_config", {"num_key_value_heads": 0}, "num_key_value_heads is 0 in config.json"),
        ("text_config", {"rms_norm_eps": "a"}, "rms_norm_eps is 'a' in config.json"),
        ("vision_config", {"deepstack_visual_indexes": [1]}, "deepstack_visual_indexes is [1]"),
    ],
)
def test_other_settings_are_refused(folder, tmp_path, part, values, words):
    assert words in refused(folder, tmp_path, part, **values)


def test_sizes_that_are_not_written_are_those_of_transformers(folder, tmp_path):
    config, sizes = read_json(folder), ("hidden_size", "num_hidden_layers", "vocab_size")
    text = {k: config["text_config"][k] for k in (*sizes, "intermediate_size")}
    config |= {"text_config": text | {"num_attention_heads": 16, "num_key_value_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder = jm.load(tmp_path, abstract=True).decoder
    (mixer,), rope = decoder.stacks, decoder.rope
    assert (mixer.heads, mixer.groups, mixer.key_dim, mixer.width) == (32, 16, 128, 128)
    assert (mixer.kernel, mixer.eps, decoder.head_dim, decoder.attends) == (4, 1e-6, 256, 2)
    turned = [axis for axis, freq in zip(rope.axis, rope.inv_freq, strict=True) if freq]
    assert len(turned) == 32 and [turned.count(a) for a in range(3)] == [11, 11, 10]
    assert turned[:4] == [0, 1, 2, 0]
