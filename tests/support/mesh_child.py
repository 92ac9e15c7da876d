"""Memories over four devices against one device: run by tests in a process of its own.

`python mesh_child.py recent:0 omnimem:4` streams through a `Session` over model=2, and through an
`Engine` of so many lanes over data=2,model=2, too.
"""

import dataclasses
import re
import sys
from types import SimpleNamespace

import jax
import numpy as np
import small

import jaxmem as jm
from jaxmem.decoder.program import make_program, spec_of
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.linear import LinearAttention
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.mixers.mom import MoM
from jaxmem.mixers.titans import Titans
from jaxmem.models.tiny.embedded import embedded
from jaxmem.pieces import Preprocessor
from jaxmem.serve import Engine
from jaxmem.serve.lanes import advance_lanes
from jaxmem.serve.stepper import stacked

QUESTION = "what was the last shape"
MORE = {
    **dict.fromkeys(("knorm", "keydiff", "last_copy", "retention"), 2),
    **dict.fromkeys(("infinipot_v", "snapkv", "h2o", "criticalkv"), 3),
    "omnimem": 1,
    "hermes": 1,
    "streammem": 1,
    "expected_attention": 4,
    "adakv": 16,
}
"""Collectives of a chunk beside the two of a layer that are the products' own. They are what the
memory's score adds up over heads, and modalities of the first head, by which all count."""
MIXERS = (
    *(GatedDelta(4, key_dim=4), LinearAttention(4, 4), Mamba2(4, 4, size=4), MoM(4, 4)),
    Titans(4, 4, rows=4),
)
FEATURES = (
    *("simple_stream", "flash_vstream", "flash_vstream_qwen", "moviechat", "ma_lmm"),
    "memory_vla",
)
"""No layer runs while a stream is watched."""
COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(.*?"
    r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\[\S+|mesh\[.*?\}),"
)


def devices_of(groups):
    """Who waits for whom, of XLA's three spellings: lists, a cut of numbers, axes of a mesh."""
    if groups.startswith("{{"):
        return [[int(n) for n in part.split(",")] for part in groups[2:-2].split("},{")]
    if groups.startswith("mesh"):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", groups)}
        along = re.findall(r"'(\w+)'", groups.split("]")[1])
        numbers = np.arange(np.prod(list(sizes.values()))).reshape(tuple(sizes.values()))
        ends = [i for i, name in enumerate(sizes) if name in along]
        numbers = np.moveaxis(numbers, ends, range(-len(ends), 0))
        return numbers.reshape(-1, np.prod([sizes[name] for name in along])).tolist()
    rows, shape, *turn = (
        [int(n) for n in part.split(",")] for part in re.findall(r"[\[(]([\d,]+)[\])]", groups)
    )
    numbers = np.arange(np.prod(shape)).reshape(shape)
    return numbers.transpose(*turn).reshape(rows).tolist()


def piece(seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
    return SimpleNamespace(frames=frames, samples=0.1 * rng.normal(size=16000).astype(np.float32))


def same(a, b):
    """Order, modality and every other integer bit by bit, floats to 1e-5 of the largest.

    Scores of millions and more are exponentials (retention's): their exponents agree so far.
    """
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if x.dtype.kind in "iub":
            np.testing.assert_array_equal(x, y)
        else:
            most = max(float(np.abs(x).max(initial=1)), 1)
            exponent = float(np.log(most)) if most > 1e6 else 1
            np.testing.assert_allclose(x, y, atol=1e-5 * most * exponent)


def memory_of(model, name):
    more = {"capacity": 200} if name == "full" else {"tokens": 400}
    return jm.memory_for(model, name, 24, **more)


def held_by_a_device(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def rows(path):
    """Whether a leaf holds rows of the first layer's input, which have no heads to share out."""
    return any(getattr(key, "name", None) == "rows" for key in path)


def check_collectives(name, text, rows):
    """Two sums over the devices of `model` in a layer's loop, of the rows; and no others."""
    found = [(kind, shapes, groups) for shapes, kind, groups in COLLECTIVE.findall(text)]
    assert len(found) == len(re.findall(r"(?:replica_groups|source_target_pairs)=", text))
    for kind, _, groups in found:
        for group in devices_of(groups):  # neighbours share heads; rows of the mesh never meet
            assert {n // 2 for n in group} in ({0}, {1}), (name, kind, groups)
    sums = [s for kind, s, _ in found if kind == "all-reduce" and rows in s]
    if name in FEATURES:
        assert not found, (name, found)
        return
    assert len(sums) == 2, (name, sums)
    assert len(found) == 2 + MORE.get(name, 0), (name, len(found), found)


def check_session(model, name):
    """A stream and its answer over two devices are those of one; each holds its heads."""
    memory = memory_of(model, name)
    plain = jm.Session(model, memory)
    cut = jm.Session(model, memory, mesh=jm.parse_mesh("model=2"))
    places = [x.sharding for x in jax.tree.leaves(cut.carry)]
    for i in range(6):
        plain.feed(piece(i))
        cut.feed(piece(i))
    same(plain.carry, cut.carry)
    assert places == [x.sharding for x in jax.tree.leaves(cut.carry)]
    a, b = plain.ask(QUESTION), cut.ask(QUESTION)
    assert a.text == b.text
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
    if name not in FEATURES and name != "adakv":
        leaves = jax.tree_util.tree_leaves_with_path(cut.carry.state)
        kv = [x for path, x in leaves if x.dtype == np.float32 and x.ndim > 2 and not rows(path)]
        assert kv and all(2 * held_by_a_device(x) == x.nbytes for x in kv)
        assert held_by_a_device(cut.carry) < 0.65 * held_by_a_device(plain.carry)
    chunk = stacked([Preprocessor(model, 1)([piece(0)])], 1)
    compiled = jm.stream.lower(cut.bound, cut.carry, chunk, program=cut.program).compile()
    check_collectives(name, compiled.as_text(), "f32[20,128]")
    return plain


def check_engine(model, name, plain, lanes):
    """Streams over two rows of two devices are those of sessions, whatever the others do."""
    mesh, each = jm.parse_mesh("data=2,model=2"), lanes // 2
    try:
        Engine(model, memory_of(model, name), lanes=3, mesh=mesh)
    except ValueError as error:
        assert "data=2 does not share 3 lanes evenly" in str(error)
    else:
        raise AssertionError("three lanes were cut in two")
    with Engine(model, memory_of(model, name), lanes=lanes, mesh=mesh) as engine:
        lives = [engine.open() for _ in range(max(2, lanes - 1))]
        assert [x.lane for x in lives] == [0, each, 1][: len(lives)]  # rows fill evenly
        for i in range(6):
            lives[0].feed(piece(i), wait=True)
            lives[1].feed(piece(i), wait=True)
            if i % 2:
                for live in lives[2:]:
                    live.feed(piece(50 + i), wait=True)
        if lanes > 2:  # its programs take as long to compile as all others here
            replies = [x.ask(QUESTION).reply(300) for x in lives]
            assert {reply.text for reply in replies[:2]} == {plain.ask(QUESTION).text}
        for live in lives[:2]:
            same(engine.read(live), plain.carry)
        lives[0].close()
        again = engine.open(plain)  # of one device; it goes on over four
        for live in (again, lives[1]):
            live.feed(piece(9), wait=True)
        branch = lives[1].session()  # over the devices of the engine
        same(engine.read(again), branch.carry)
        stepper = engine.stepper
        assert held_by_a_device(stepper._carries) == each * held_by_a_device(branch.carry)
        chunks = stacked([Preprocessor(model, 1)([piece(0)])], lanes)
        which = np.array([*range(each)] * 2, np.int32)
        given, more = (stepper.bound, stepper._carries, which, chunks), {"program": engine.program}
        compiled = advance_lanes.lower(*given, **more).compile()
        check_collectives(name, compiled.as_text(), f"f32[{each},20,128]")


def check_mixers():
    """Layers with a state: streams over two devices are those of one."""
    rows = None
    for mixer in MIXERS:
        config = dataclasses.replace(small.config(4), mixers=(mixer, None, mixer, None))
        rows = small.stream_rows(config, 3, 8, lengths=[8, 5, 7]) if rows is None else rows
        weights, found = small.params(config), []
        for mesh in (None, jm.parse_mesh("model=2")):
            spec = spec_of(config, chunk=8)
            program = make_program(config, jm.Recent(12), spec, mesh=mesh)
            bound = jm.bind(program, weights)
            found.append(jm.stream(bound, jm.start(program, bound), rows, program=program))
        same(*found)
        whole = [x for x in jax.tree.leaves(found[1].states) if x.is_fully_replicated]
        assert len(whole) < len(jax.tree.leaves(found[1].states)), mixer.name
        assert max(float(np.abs(x).max()) for x in jax.tree.leaves(found[0].states)) > 0.01


def main(words):
    assert len(jax.devices()) == 4
    jax.config.update("jax_numpy_rank_promotion", "raise")
    model = embedded()
    for name, lanes in (word.split(":") for word in words):
        if name == "mixers":
            check_mixers()
            continue
        plain = check_session(model, name)
        if int(lanes):
            check_engine(model, name, plain, int(lanes))
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
