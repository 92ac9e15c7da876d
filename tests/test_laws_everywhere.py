"""Every memory of the command line and every combinator, under the laws.

A memory of scope "layer" obeys `laws.LAWS` on made-up streams, in the file of its method; which
file that is stands in `BARE`. The laws that concern the loop are checked here in a small decoder,
for all scopes, and in `test_stream` for the memories of `ALL_MEMORIES`. What is under no law fails
`test_every_memory_is_under_the_laws` or `test_every_combinator_is_under_the_laws`.
"""

import importlib
import inspect
import pkgutil
from functools import cache

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import ALL_MEMORIES, LAWS, memory_of

import jaxmem.memory
from jaxmem.experiments import _memory_options as opt
from jaxmem.experiments import _peer_options as peer
from jaxmem.experiments.memories import NAMES, PROBES, Memories, Setting, build
from jaxmem.loop import (
    ask,
    branch,
    init_carry,
    make_program,
    probe_rows,
    question_rows,
    spec_of,
    stream,
)
from jaxmem.memory.bank.with_bank import bank
from jaxmem.memory.base import Memory
from jaxmem.memory.features.ma_lmm import ma_lmm
from jaxmem.memory.features.with_audio import with_sound
from jaxmem.memory.omnimem.avba import recorder
from jaxmem.memory.omnimem.omnimem import omnimem
from jaxmem.memory.parts.positions import ruled
from jaxmem.memory.recent import recent
from jaxmem.memory.transforms.quantized import quantized
from jaxmem.memory.transforms.recorded import watch
from jaxmem.saving import restore, save

BARE = {
    "test_memories": (*ALL_MEMORIES,),
    "test_peers": ("snapkv", "h2o", "tova", "knorm", "keydiff", "streaming_llm", "rekv",
                   "infinipot_v"),
    "test_expected_attention": ("expected_attention",),
    "test_criticalkv": ("criticalkv",),
    "test_adakv": ("adakv",),
    "test_streammem": ("streammem",),
    "test_livevlm": ("livevlm",),
    "test_streaming_vlm": ("streaming_vlm",),
}  # fmt: skip
"""File -> memories of scope "layer" that it puts under `LAWS`, or under its own form of them."""

SIZE, SLOTS, BANK = 8, 12, 24
LENGTHS = (8, 5, 8, 0, 7, 8)
CFG = small.config()
ROWS, OTHER = (
    jax.tree.map(np.asarray, small.stream_rows(CFG, len(LENGTHS), SIZE, lengths=n, seed=seed))
    for seed, n in enumerate((LENGTHS, LENGTHS[::-1]))
)
SETTING = Setting(CFG.rope, SIZE)
OPTIONS = Memories(
    rekv=opt.ReKV(block=4, topk=2, sinks=2),
    flexmem=opt.FlexMem(clip=SIZE + 3, layers=(1,)),
    flash_vstream=opt.FlashVStream(grid=2),
    flash_vstream_qwen=opt.FlashVStreamQwen(grid=2),
    moviechat=peer.MovieChat(grid=2),
    ma_lmm=peer.MaLmm(grid=2),
    infinipot_v=peer.InfiniPotV(grid=(2, 2)),
    streammem=peer.StreamMem(frame=4),
    livevlm=peer.LiveVLM(page=2),
    snapkv=peer.SnapKV(window=3),
    criticalkv=peer.CriticalKV(window=3),
    adakv=peer.AdaKV(window=3),
)
"""Sizes that fit twelve slots and frames of four tokens."""


def of_name(name):
    return build(name, SLOTS, SETTING, OPTIONS)


COMBINATORS = {
    "bank": lambda: bank(of_name("hermes"), BANK, block=4, topk=2),
    "quantized": lambda: quantized(of_name("hermes"), 4),
    "watch": lambda: watch(recent(SLOTS, 2)),
    "with_sound": lambda: with_sound(ma_lmm(3, 4), 2, 1),
    "ruled": lambda: ruled(recent(SLOTS, 2), "contiguous"),
    "recorder": lambda: recorder(omnimem(SLOTS, text=4), skip=1),
}
LAYER = tuple(n for n in NAMES if n not in ALL_MEMORIES and of_name(n).scope == "layer")
WIDE = tuple(n for n in NAMES if of_name(n).scope != "layer")


def at_leisure(names, slow):
    """Return names as parameters, those of `slow` marked as slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


# What is marked slow has most of these laws in the file of its own name, too.
LOOP = at_leisure([*WIDE, *COMBINATORS, *LAYER], {"bank", "recorder", *LAYER})


@cache
def memory_in_the_loop(name):
    return COMBINATORS[name]() if name in COMBINATORS else of_name(name)


def program_of(name, size=SIZE):
    return make_program(CFG, memory_in_the_loop(name), spec_of(CFG, chunk=size, bank=BANK))


@cache
def weights():
    return small.params(CFG)


def probes_of(name, program):
    """Return as many short probes as the memory reads, or None."""
    if program.memory.requires.probe is None:
        return None
    count = PROBES.get(name, 2)  # combinators are around HERMES
    return probe_rows(weights(), [[1, 2, 3], [4, 5]][:count], program=program)


def run(name, carry, rows, first=0):
    """Return the carries after every chunk from `first` on, one call of `stream` for each."""
    program, carries = program_of(name), []
    for i in range(first, len(LENGTHS)):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], rows)
        probes = probes_of(name, program)
        carry = stream(weights(), branch(carry), part, program=program, probes=probes)
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


@pytest.mark.parametrize("name", at_leisure([*WIDE, "with_sound", "quantized"], {"flexmem"}))
def test_scan_vmap_and_padding(name):
    """Both streams side by side in one scan of longer chunks equal each alone, chunk by chunk."""
    program = program_of(name, SIZE + 3)
    start = laws.side_by_side(*[plain(init_carry(program))] * 2)
    rows = laws.side_by_side(padded(ROWS), padded(OTHER))
    probes = probes_of(name, program)
    one = lambda c, r: stream(weights(), c, r, program=program, probes=probes)
    many = plain(jax.vmap(one)(start, rows))
    alone = watched(name)[0], run(name, init_carry(program_of(name)), OTHER)
    for i, carries in enumerate(alone):
        laws.assert_same(laws.pick(many, i), plain(carries[-1]), f"stream {i}")
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


@cache
def bare(name):
    if name == "watch":
        return watch(memory_of("recent"))
    return recorder(memory_of("omnimem"), skip=1)


BARE_LAWS = [(name, law) for name in ("watch", "recorder") for law in LAWS]
COSTLY = {("recorder", "scan_vmap_and_loop"), ("recorder", "padding_and_room")}


@pytest.mark.parametrize(
    ("name", "law"),
    [pytest.param(*b, marks=pytest.mark.slow) if b in COSTLY else b for b in BARE_LAWS],
)
def test_bare_law(name, law):
    """`bank` and `quantized` have theirs in the files of their names; `ruled` moves positions."""
    if name == "watch" and law == "padding_and_room":
        pytest.skip("what slots received is a note of [Gm, S], so a window is as long as its layer")
    LAWS[law](bare(name))


def parameters(module):
    """Yield the sets of parameters of every test in a file that runs laws."""
    for name, test in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("test_law"):
            marks = getattr(test, "pytestmark", ())
            yield {m.args[0]: list(m.args[1]) for m in marks if m.name == "parametrize"}


def made_by(value):
    """Yield the memories in a module's variable."""
    if isinstance(value, Memory):
        yield value
    elif isinstance(value, dict):
        yield from (one for one in value.values() if isinstance(one, Memory))


@pytest.mark.parametrize("file", BARE)
def test_files_run_the_laws_that_are_counted_on(file):
    module = importlib.import_module(file)
    assert list(parameters(module))
    made = {memory.name for value in vars(module).values() for memory in made_by(value)}
    made |= set(ALL_MEMORIES) if file == "test_memories" else set()
    assert set(BARE[file]) <= made


def test_every_memory_is_under_the_laws():
    """Those of scope "layer" bare and in the loop, the others in the loop."""
    under = {name for names in BARE.values() for name in names} | set(WIDE)
    assert set(NAMES) == under
    assert set(NAMES) == {*ALL_MEMORIES, *LAYER, *WIDE}


def test_every_combinator_is_under_the_laws():
    """A function of the library that takes a memory first and returns one is a combinator."""
    found = set()
    for info in pkgutil.iter_modules(jaxmem.memory):
        module = importlib.import_module(f"jaxmem.memory.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            types = {k: v for k, v in function.__annotations__.items() if k != "return"}
            makes = function.__annotations__.get("return")
            first = next(iter(types.values()), None)
            if function.__module__ == module.__name__ and first == makes == "Memory":
                found.add(name)
    assert found == set(COMBINATORS)
