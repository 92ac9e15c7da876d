"""The table of what is cut over devices covers weights, states and memories; meshes are checked."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import small
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

import jaxmem as jm
from jaxmem.decoder.placing import check_mesh, named, parse_mesh, spec_of, uneven
from jaxmem.decoder.program import init_carry, make_program
from jaxmem.decoder.program import spec_of as sizes_of
from jaxmem.memory import MEMORIES
from jaxmem.memory.by_name import Budget, contestants
from jaxmem.mixers.feed_forward import FeedForward
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.linear import LinearAttention
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.mixers.mom import MoM
from jaxmem.mixers.titans import Titans

TWO = AbstractMesh((1, 2), ("data", "model"))
MIXERS = (
    GatedDelta(4, key_dim=4),
    LinearAttention(4, 4),
    Mamba2(4, 4, size=4),
    MoM(4, 4),
    Titans(4, 4),
    FeedForward(8),
)
WHOLE = {"conv", "router", "dt_bias", "a_log", "d", "scale"}
"""Weights of a decoder's layers that every device has: a few numbers for each channel or head."""
FAMILIES = (
    *("qwen2-vl:7b", "qwen2.5-vl:7b", "qwen2.5-omni:7b", "qwen3-vl:8b", "qwen3.5:9b", "tiny"),
    *("llava-onevision:7b", "smolvlm2:2.2b", "salmonn:7b", "ma2mba:2.7b", "tiny-mamba2"),
)


def cut_axes(tree, stacks=()):
    """Return path, shape and the axis that two devices share, from the last, of every leaf."""
    out = []
    for path, x in named(tree, stacks)[0]:
        spec = tuple(spec_of(TWO, path, x.shape))
        axis = spec.index("model") - len(x.shape) if "model" in spec else None
        out.append((path, x.shape, axis))
    return out


def carry_of(name, kv_heads):
    config = dataclasses.replace(small.config(), heads=8, kv_heads=kv_heads)
    spec = sizes_of(config, chunk=8, frame=(2, 2), audio_tokens=2, step=(1, 0, 0))
    options = {name: small.options(8).get(name, {})}
    memory = contestants((name,), options, Budget(12, None), spec, 200)[0].memory
    return jax.eval_shape(lambda: init_carry(make_program(config, memory, spec)))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_stream_is_cut_along_its_heads(name):
    """The axes that grow with the KV heads are those that the table cuts, in every memory."""
    few, many = (cut_axes(carry_of(name, heads)) for heads in (2, 4))
    for (path, shape, axis), (_, other, _) in zip(few, many, strict=True):
        heads = [i - len(shape) for i, n in enumerate(shape) if n != other[i]]
        if name == "adakv":  # heads share one pool of slots, whose parts move from chunk to chunk
            assert axis is None
        elif path.endswith(".unit"):  # layer inputs have no heads: their numbers are shared
            assert axis == -1 and not heads
        else:
            assert [axis] == (heads or [None]), (path, shape, other)


@pytest.mark.parametrize("mixer", MIXERS[:-1], ids=lambda mixer: mixer.name)
def test_states_are_cut_along_their_heads(mixer):
    few, many = (
        cut_axes({"states": (stacked(lambda m=m: m.init(24)),)}, (m,))
        for m in (mixer, dataclasses.replace(mixer, heads=8))
    )
    for (path, shape, axis), (_, other, _) in zip(few, many, strict=True):
        heads = [i - len(shape) for i, n in enumerate(shape) if n != other[i]]
        rows = path.endswith((".tail", ".waiting"))  # of all heads side by side
        assert [axis] == ([None] if rows else heads), path


@pytest.mark.parametrize("where", FAMILIES)
def test_weights_of_every_family_are_cut(where):
    """All matrices of the decoder; encoders are whole on every device."""
    model = jm.load(where, abstract=True)
    for path, _, axis in cut_axes(model.params, model.decoder.stacks):
        whole = not path.startswith("decoder.") or WHOLE.intersection(path.split("."))
        assert (axis is None) == bool(whole or path.endswith("retention.a")), path


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: mixer.name)
def test_weights_of_mixers_are_cut(mixer):
    weights = stacked(lambda: mixer.weights(24, jax.random.key(0)))
    for path, _, axis in cut_axes({"mixers": ({"mixer": weights},)}):
        assert (axis is None) == bool(WHOLE.intersection(path.split("."))), path


def stacked(init):
    """The shapes of three layers."""
    return jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.stack([x] * 3), init()))


def test_what_devices_do_not_divide_is_whole_and_said():
    weights = {"head": {"kernel": jax.ShapeDtypeStruct((24, 29), "float32")}}
    assert spec_of(TWO, "decoder.head.kernel", (24, 29)) == PartitionSpec()
    assert uneven(TWO, weights) == ["decoder.head.kernel (24, 29)"]


@pytest.mark.parametrize("text", ["", "data=1", "model=1,data=1", " data=1, model=1 "])
def test_a_mesh_of_one_device(text):
    assert dict(parse_mesh(text).shape) == {"data": 1, "model": 1}


@pytest.mark.parametrize(
    "text,words",
    [
        ("model=4096", "needs 4096 devices, and there are"),
        ("model", "for example model=2; got 'model'"),
        ("model=0", "sizes of at least 1"),
        ("heads=2", "got 'heads=2'"),
    ],
)
def test_a_mesh_that_is_none_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_mesh(text)


def test_a_mesh_that_cuts_heads_is_refused():
    with pytest.raises(ValueError, match="model=4 devices do not share 6 .*1 or 2 or 3 or 6"):
        check_mesh(AbstractMesh((1, 4), ("data", "model")), 6)
    other = Mesh(jax.devices()[:1], ("x",))
    with pytest.raises(ValueError, match=r"axes data and model .*got \('x',\)"):
        jm.compile(jm.load("tiny"), jm.Recent(24), mesh=other)
