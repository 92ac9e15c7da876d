"""Several questions at one moment: each is answered as alone, and what they share is made once."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from laws import ALL_MEMORIES, memory_of

from jaxmem.asking import ask, ask_all
from jaxmem.bound import question_rows
from jaxmem.data.world.files import held_out
from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.decoder.program import init_carry, make_program
from jaxmem.decoder.sampling import Sampling
from jaxmem.experiments.benchmark.step_model import Stream, least_flops, program_of
from jaxmem.experiments.benchmark.step_questions import asking_of
from jaxmem.loop import stream
from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Recent
from jaxmem.models.tiny.embedded import embedded
from jaxmem.report.compiled import large, pool_size
from jaxmem.rope import rope_1d
from jaxmem.session import Session

SIZE, CHUNKS = 10, 4
CFG = small.config()
WEIGHTS = small.params(CFG)
ROWS = small.stream_rows(CFG, CHUNKS, SIZE)
SPEC = small.small_spec(CFG, SIZE)
IDS = ([3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9])
FEW = ("omnimem", "rekv")
SLOW = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in ALL_MEMORIES]


def questions(program, ids=IDS):
    each = [question_rows(WEIGHTS, np.array(x), program=program, size=8) for x in ids]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def check_same(program):
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    asked, more = questions(program), {"program": program, "max_new": 3, "end": 7}
    many = ask_all(WEIGHTS, carry, asked, **more)
    for i in range(len(IDS)):
        one = ask(WEIGHTS, carry, small.chunk(asked, i), **more)
        n = int(one.length)
        assert n == many.length[i] and (one.ids[:n] == many.ids[i, :n]).all()
        np.testing.assert_allclose(many.first[i], one.first, atol=2e-5)


@pytest.mark.parametrize("name", SLOW)
def test_together_is_one_by_one(name):
    check_same(make_program(CFG, memory_of(name), SPEC))


@pytest.mark.slow
def test_a_bank_in_host_memory_is_asked_too():
    bank = WithBank(Recent(8), 32, block=4, topk=2)
    check_same(make_program(CFG, bank, SPEC))


BIG = DecoderConfig(1, 32, 4, 2, 8, 48, 40, rope_1d(8), tied=True)
BIG_WEIGHTS = small.scored(init_decoder(BIG, jax.random.key(0)), BIG)
MANY = 7  # divides no other number of the program
PICKS = ("rekv", "flexmem", "livevlm")  # for every question by itself
MORE = (*PICKS, "retention", "adakv")  # whose logits have further terms


@pytest.mark.parametrize(
    "name", [n if n == "recent" else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]
)
def test_one_more_question_costs_its_own_rows(name):
    given = Stream(program_of(BIG, name, 512, 32), BIG_WEIGHTS)
    keys = pool_size(given.program)
    few, many = (asking_of(given, n, 1).cost_analysis()["flops"] for n in (1, MANY))
    own = least_flops(BIG, 1, keys // (BIG.kv_heads * BIG.head_dim)) + 2 * BIG.width * BIG.vocab
    # Turning the keys for each would add more than the rows themselves do.
    assert (many - few) / (MANY - 1) < (3 if name in MORE else 1.7) * own
    # While answers are written nothing is copied for each that all of them read.
    written = asking_of(given, MANY, 1, max_new=3)
    each = [x for x in large(written, MANY * keys) if any(int(n) % MANY == 0 for n in sides(x))]
    assert not each or name in PICKS


def sides(array):
    return re.findall(r"\d+", array.partition("[")[2])


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    clip, _ = held_out(3, 6, tmp_path_factory.mktemp("clip"), count=0)
    return Session(embedded(), Recent(60), chunk_pieces=4).watch(clip)


def test_a_session_answers_several_questions_of_a_moment(session):
    asked = ["what was the last shape", "what was the last sound", "which shape is there now"]
    apart = [session.ask(one) for one in asked]
    together = session.ask_all(asked)
    assert [r.text for r in together] == [r.text for r in apart]
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
    assert session.dialogue == (asked[-1], apart[-1].text)


def test_what_is_drawn_together_is_what_is_drawn_in_turn():
    asked = ["what was the last shape"] * 6
    draw = {"sampling": Sampling(temperature=5.0), "key": jax.random.key(3)}
    apart, together = (Session(embedded(), Recent(20), **draw).watch(_pieces()) for _ in range(2))
    texts = [apart.ask(one).text for one in asked]
    assert [r.text for r in together.ask_all(asked)] == texts and len(set(texts)) > 1


def _pieces():
    frames = np.random.default_rng(0).integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
    return [SimpleNamespace(frames=frames, samples=np.zeros(16_000, np.float32))]


def test_no_question_is_refused(session):
    for wrong in ([], "what was the last shape"):
        with pytest.raises(ValueError, match="list of questions"):
            session.ask_all(wrong)
