"""`Recorded`: streams as its memory does, and holds the attention that the last chunk gave."""

import jax
import laws
import numpy as np
import pytest
import small
from laws import SPEC, pick, run, see, standard

from jaxmem.decoder.step import chunk_step, init_carry, make_program
from jaxmem.memory import layout as layouts
from jaxmem.memory.baselines import Full, Recent
from jaxmem.memory.compression.h2o import H2O
from jaxmem.memory.exchange import Attention
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.sizes import slots
from jaxmem.memory.transforms.recorded import Recorded
from jaxmem.memory.video.rekv import ReKV

TABLE = ((2, 4), (6, 14))
INNER = {
    "none": Recent(12, sinks=2),
    "its own": OmniMem(12, importance="exact", lam=0.3, text=2),
    "of heads": H2O(12),
    "unequal layers": OmniMem(TABLE, lam=0.0, text=2),
}


@pytest.mark.parametrize("name", INNER)
def test_it_streams_as_its_memory_and_holds_what_the_last_chunk_gave(name):
    plain, recorded = INNER[name], Recorded(INNER[name])
    chunks = standard()
    want, _ = run(plain, plain.init(SPEC), chunks)
    got, _ = run(recorded, recorded.init(SPEC), chunks)
    jax.tree.map(np.testing.assert_array_equal, got.slots, want.slots)
    jax.tree.map(np.testing.assert_array_equal, got.aux.inner, want.aux)

    last = len(laws.CUTS) - 1
    before, _ = run(recorded, recorded.init(SPEC), pick(chunks, slice(last)))
    seen = see(recorded, before, pick(chunks, last))
    held = seen.received.memory
    np.testing.assert_array_equal(got.aux.received[:, : held.shape[1]], held)
    assert not got.aux.received[:, held.shape[1] :].any() and held.any()


def test_a_chunk_of_padding_leaves_the_record():
    recorded, chunks = Recorded(Recent(12)), standard()
    empty = laws.CUTS.index(0)
    states = [
        run(recorded, recorded.init(SPEC), pick(chunks, slice(n)))[0] for n in (empty, empty + 1)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert states[0].aux.received.any()


@pytest.mark.parametrize("name", ["none", "of heads", "unequal layers"])
@pytest.mark.parametrize("law", ["static_and_ordered", "padding_and_room", "view"])
def test_laws(name, law):
    """Windows of a flat pool are longer than a layer; the record is as long as the longest."""
    laws.LAWS[law](Recorded(INNER[name]))


def test_layers_of_several_sizes_are_recorded_in_the_decoder():
    """Every layer's record lies at its own slots: what is empty received nothing."""
    cfg = small.config()
    recorded = Recorded(OmniMem(TABLE, lam=0.0))
    spec = small.small_spec(cfg, 8)
    assert slots(recorded, spec) == (6, 20)
    program, weights = make_program(cfg, recorded, spec), small.params(cfg)
    step = jax.jit(lambda carry, rows: chunk_step(weights, program, carry, rows)[0])
    rows, carry = small.stream_rows(cfg, 4, 8, lengths=[8, 8, 5, 8]), init_carry(program)
    for i in range(4):
        before, carry = carry, step(carry, small.chunk(rows, i))
    assert carry.state.aux.received.shape == (2, 1, 20)
    after = layouts.layers(program.layout, carry.state)
    for old, new in zip(layouts.layers(program.layout, before.state), after, strict=True):
        held = np.asarray(old.slots.kv.modality)[:, 0] != 0
        received = np.asarray(new.aux.received)[0]
        assert np.all(received[: len(held)][held] > 0) and received.sum() < 8
        assert not received[: len(held)][~held].any() and not received[len(held) :].any()


def test_it_is_to_the_loop_what_its_memory_is():
    recorded = Recorded(Full(8))
    assert recorded.name == "recorded(Full)" and recorded.per == "layer"
    assert recorded.requires == Full(8).requires._replace(attention=Attention("softmax"))
    rekv = ReKV(32, capacity=64, block=8)
    assert Recorded(rekv).bank(SPEC).capacity == rekv.bank(SPEC).capacity
    assert Recorded(rekv).requires.question == rekv.requires.question == "layer"
    assert Recorded(Full(8)) == recorded and hash(Recorded(Full(8))) == hash(recorded)


@pytest.mark.parametrize("memory", [Hermes(8), OmniMem(8)])
def test_it_refuses_what_it_cannot_record(memory):
    with pytest.raises(ValueError, match="record Full"):
        Recorded(memory)
