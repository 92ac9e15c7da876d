"""Every memory of the table and every wrapper, under the laws.

A memory that sees one layer obeys `laws.LAWS` on made-up streams; all of them obey the laws of the
loop in a small decoder. What is under no law fails `test_every_memory_is_under_the_laws`.
"""

import dataclasses
import importlib
import pkgutil
import typing
from functools import cache

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import LAWS

import jaxmem.memory
from jaxmem.asking import ask
from jaxmem.bound import Bound, probe_rows, question_rows
from jaxmem.decoder.program import init_carry, layers_of, make_program, spec_of
from jaxmem.loop import stream
from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import AnyMemory, FeatureMemory, Memory
from jaxmem.memory.baselines import Recent, StreamingLLM
from jaxmem.memory.by_name import build
from jaxmem.memory.features.ma_lmm import MALMM
from jaxmem.memory.features.with_audio import WithAudio
from jaxmem.memory.omnimem.avba import Recorder
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.transforms.quantized import Quantized
from jaxmem.memory.transforms.recorded import Recorded
from jaxmem.saving import restore, save
from jaxmem.training.orders import check_order, legal
from jaxmem.training.remat import SCHEMES

pytestmark = pytest.mark.usefixtures("no_programs")
SIZE, SLOTS, BANK = 8, 12, 24
LENGTHS = (8, 5, 8, 0, 7, 8)
CFG = small.config()
ROWS, OTHER = (
    jax.tree.map(np.asarray, small.stream_rows(CFG, len(LENGTHS), SIZE, lengths=n, seed=seed))
    for seed, n in enumerate((LENGTHS, LENGTHS[::-1]))
)
MODEL = {"frame": (2, 2), "audio_tokens": 0}
OPTIONS = small.options(SIZE)


def of_name(name, slots=SLOTS, spec=None):
    return build(name, slots, spec or spec_of(CFG, chunk=SIZE, **MODEL), OPTIONS.get(name))


WRAPPERS = {
    "bank": lambda: WithBank(of_name("hermes"), BANK, block=4, topk=2),
    "quantized": lambda: Quantized(of_name("hermes"), 4),
    "recorded": lambda: Recorded(Recent(SLOTS, sinks=2)),
    "with_audio": lambda: WithAudio(MALMM(frames=3), 2, tokens=1),
    "recorder": lambda: Recorder(OmniMem(SLOTS, text=4), skip=1),
}
LAYER = tuple(n for n in MEMORIES if getattr(of_name(n), "per", None) == "layer")
WIDE = tuple(n for n in MEMORIES if n not in LAYER)


def at_leisure(names, slow):
    """Return names as parameters, those of `slow` marked as slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


LOOP = at_leisure([*WIDE, *WRAPPERS, *LAYER], {"bank", "recorder", "keydiff"})


@cache
def memory_in_the_loop(name):
    return WRAPPERS[name]() if name in WRAPPERS else of_name(name)


def program_of(name, size=SIZE):
    return make_program(CFG, memory_in_the_loop(name), spec_of(CFG, chunk=size, **MODEL))


@cache
def weights():
    return small.scored(small.params(CFG), CFG)


def bound(name, program):
    """Return the weights with as many short probes as the memory reads."""
    probes = program.requires.probes
    if not probes:
        return weights()
    texts = [[1, 2, 3], [4, 5]][: probes.count]
    return Bound(weights(), probes=probe_rows(weights(), texts, program=program))


def run(name, carry, rows, first=0):
    """Return the carries after every chunk from `first` on, one call of `stream` for each."""
    program, carries = program_of(name), []
    for i in range(first, len(LENGTHS)):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], rows)
        carry = stream(bound(name, program), carry, part, program=program)
        carries.append(carry)
    return carries


@cache
def watched(name):
    """Return the carries of the usual stream, and how many programs `stream` compiled for them."""
    before = stream._cache_size()
    carries = run(name, init_carry(program_of(name)), ROWS)
    return carries, stream._cache_size() - before


def plain(tree):
    """Return a copy on the host, random keys as numbers."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def differ(a, b):
    leaves = (jax.tree.leaves(plain(tree)) for tree in (a, b))
    return any((x != y).any() for x, y in zip(*leaves, strict=True))


@pytest.mark.parametrize("name", LOOP)
def test_shapes_stay_and_one_program_serves_the_stream(name):
    carries, compiled = watched(name)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    start = init_carry(program_of(name))
    for carry in carries:
        assert shapes(carry) == shapes(start)
    assert compiled == 1
    assert differ(start, carries[-1])


def padded(rows):
    """Return the rows with three of padding behind every chunk, which hold garbage."""
    behind = lambda x, fill: np.pad(
        x, [(0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 2), constant_values=fill
    )
    return rows._replace(
        x=behind(rows.x, 7), pos=behind(rows.pos, 7), modality=behind(rows.modality, 0)
    )


@pytest.mark.parametrize(
    "name", at_leisure([*WIDE, "with_audio", "quantized"], {"flexmem", "dscache"})
)
def test_scan_vmap_and_padding(name):
    """Both streams side by side in one scan of longer chunks equal each alone, chunk by chunk."""
    program = program_of(name, SIZE + 3)
    start = laws.side_by_side(*[plain(init_carry(program))] * 2)
    rows = laws.side_by_side(padded(ROWS), padded(OTHER))
    arrays = bound(name, program)
    one = lambda c, r: stream(arrays, c, r, program=program)
    many = plain(jax.vmap(one)(start, rows))
    alone = watched(name)[0], run(name, init_carry(program_of(name)), OTHER)
    for i, carries in enumerate(alone):
        found = laws.pick(many, i)._replace(made_by=carries[-1].made_by)
        laws.assert_same(found, plain(carries[-1]), f"stream {i}")
    # A chunk of padding changes nothing.
    empty = LENGTHS.index(0)
    assert_equal(alone[0][empty], alone[0][empty - 1])


@pytest.mark.parametrize("name", LOOP)
def test_questions_branches_and_files_leave_a_stream_as_it_was(name, tmp_path):
    program, carries = program_of(name), watched(name)[0]
    half, rest = carries[2], carries[3:]
    before = plain(half)
    question = question_rows(weights(), [3, 1, 4], program=program)
    answer = ask(weights(), half, question, program=program, max_new=1)
    assert np.isfinite(answer.first).all()
    assert_equal(half, before)

    save(tmp_path / "live", half)
    other = run(name, half, OTHER, first=3)
    assert_equal(half, before)
    assert differ(other[-1], rest[-1])
    loaded = restore(tmp_path / "live", program)
    assert_equal(loaded, before)
    for again, first in zip(run(name, loaded, ROWS, first=3), rest, strict=True):
        assert_equal(again, first)
    assert_equal(ask(weights(), half, question, program=program, max_new=1), answer)


def above(arrays):
    """Return the same arrays with other weights in the last layer."""
    params = arrays.params if isinstance(arrays, Bound) else arrays
    layers = jax.tree.map(lambda x: x.at[-1].multiply(1.5), params["layers"])
    params = {**params, "layers": layers}
    return arrays._replace(params=params) if isinstance(arrays, Bound) else params


def first_layer(program, carry):
    """Return what a memory holds of the first layer, with its bank."""
    bank = jax.tree.map(lambda x: x[0], carry.bank)
    return plain((layers_of(program, carry)[0], bank))


def below_is_the_same(name):
    """Return whether the first layer's memory is the same bits whatever the last layer computes."""
    program, expected = program_of(name), watched(name)[0][-1]
    carry, arrays = init_carry(program), above(bound(name, program))
    for i in range(len(LENGTHS)):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], ROWS)
        carry = stream(arrays, carry, part, program=program)
    assert differ(layers_of(program, carry)[-1], layers_of(program, expected)[-1])
    return not differ(first_layer(program, carry), first_layer(program, expected))


@pytest.mark.parametrize("name", at_leisure([*LAYER, "recorded", "recorder"], {"recorder"}))
def test_layers_above_change_nothing_below(name):
    """So gradients may take layers outside, or time."""
    assert below_is_the_same(name) and legal(memory_in_the_loop(name)) == SCHEMES


@pytest.mark.parametrize("name", [*WIDE, "bank", "quantized", "with_audio"])
def test_what_sees_more_than_a_layer_is_refused_layers_outside(name):
    with pytest.raises(ValueError, match=f"but {memory_in_the_loop(name).name} writes"):
        check_order(memory_in_the_loop(name), "A")
    check_order(memory_in_the_loop(name), "D")


def test_hermes_sees_the_layer_above():
    """What the refusal is about."""
    assert not below_is_the_same("hermes")


@cache
def bare(name):
    """Return a memory that sees one layer, with options that fit the made-up stream."""
    if name in ("recorded", "recorder"):
        inner = Recent(laws.BUDGET, sinks=2) if name == "recorded" else laws.memory_of("omnimem")
        return Recorded(inner) if name == "recorded" else Recorder(inner, skip=1)
    if name in laws.ALL_MEMORIES:
        return laws.memory_of(name)
    if name == "streaming_llm":  # the law of positions is for those that are kept
        return StreamingLLM(laws.BUDGET, sinks=2, reindex=False)
    return of_name(name, laws.BUDGET, laws.SPEC)


OWN_FORM = ("adakv", "pyramid", "streammem", "streaming_vlm")
"""Heads of several lengths, frames that stay whole, means, two streams: laws are in their files."""
BARE = ("recorded", "recorder", *(n for n in LAYER if n not in OWN_FORM))
COSTLY = {("recorder", "scan_vmap_and_loop"), ("recorder", "padding_and_room")}


@pytest.mark.parametrize(
    ("name", "law"),
    [
        pytest.param(n, law, marks=pytest.mark.slow if (n, law) in COSTLY else ())
        for n in BARE
        for law in LAWS
    ],
)
def test_bare_law(name, law):
    """`bank` and `quantized` have theirs in the files of their names."""
    if name == "recorded" and law == "padding_and_room":
        pytest.skip("what slots received is of [Gm, S], so a window is as long as its layer")
    LAWS[law](bare(name))


def test_every_memory_is_under_the_laws():
    """Those that see one layer bare and in the loop, the others in the loop."""
    assert set(MEMORIES) == {*LAYER, *WIDE}
    assert {p.values[0] if hasattr(p, "values") else p for p in LOOP} >= set(MEMORIES)


def test_every_wrapper_is_under_the_laws():
    """A memory that takes another memory is a wrapper."""
    found = set()
    for info in pkgutil.walk_packages(jaxmem.memory.__path__, "jaxmem.memory."):
        module = importlib.import_module(info.name)
        for one in vars(module).values():
            if isinstance(one, type) and dataclasses.is_dataclass(one) and wraps(one):
                found.add(one.__name__)
    assert found - {"Around"} == {type(make()).__name__ for make in WRAPPERS.values()}


def wraps(kind):
    """Return whether a field of the class is a memory."""
    hints = typing.get_type_hints(kind) if issubclass(kind, (Memory, FeatureMemory)) else {}
    return any(
        hints.get(f.name) in (Memory, FeatureMemory, AnyMemory) for f in dataclasses.fields(kind)
    )
