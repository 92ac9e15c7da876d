"""`Session` is the pure functions and nothing more."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem import saves, saving
from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.data.world.files import held_out
from jaxmem.decoder.program import init_carry
from jaxmem.decoder.sampling import Sampling
from jaxmem.loop import stream
from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Full, Recent, Uniform
from jaxmem.memory.flash_vstream.flash_vstream_qwen import FlashVStreamQwen
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.video.infinipot_v import InfiniPotV
from jaxmem.memory.video.rekv import ReKV
from jaxmem.models.tiny.embedded import embedded
from jaxmem.pieces import Preprocessor
from jaxmem.report.compilations import count_compilations
from jaxmem.session import Session

pytestmark = pytest.mark.usefixtures("no_programs")


def pieces(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        SimpleNamespace(
            frames=rng.integers(0, 255, (1, 48, 48, 3), dtype=np.uint8),
            samples=0.1 * rng.normal(size=16000).astype(np.float32),
        )
        for _ in range(count)
    ]


def written(session, question, **more):
    """Return the parts of an answer as they come, and the reply."""
    parts, answer = [], session.answer(question, **more)
    while True:
        try:
            parts.append(next(answer))
        except StopIteration as end:
            return parts, end.value


@pytest.fixture(scope="module")
def model():
    return embedded()


def test_pieces_per_chunk_change_nothing(model):
    """One second at a time or four: the whole stream is the same, sound windows included."""
    sessions = [Session(model, Full(200), chunk_pieces=n).watch(pieces(6)) for n in (1, 4)]
    kept = [s.layers() for s in sessions]
    for a, b in zip(*kept, strict=True):
        n = 6 * model.tokens_per_piece
        np.testing.assert_array_equal(a.slots.kv.modality[:n], b.slots.kv.modality[:n])
        np.testing.assert_array_equal(a.slots.kv.pos[:n], b.slots.kv.pos[:n])
        np.testing.assert_allclose(a.slots.kv.k[:n], b.slots.kv.k[:n], atol=2e-4)


def test_session_equals_stream(model):
    session = Session(model, Recent(40)).watch(pieces(3))
    pack = Preprocessor(model, 1)
    chunks = jax.tree.map(lambda *x: np.stack(x), *[pack([p]) for p in pieces(3)])
    program = session.program
    carry = stream(session.bound, init_carry(program), chunks, program=program)
    for x, y in zip(jax.tree.leaves(carry), jax.tree.leaves(session.carry), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_question_flushes_and_changes_nothing(model):
    session = Session(model, Recent(40), chunk_pieces=4)
    for piece in pieces(2):
        assert session.feed(piece) is False
    reply = session.ask("what is the last shape?")
    assert reply.text in model.detokenize(range(model.decoder.vocab)).split()
    before = jax.tree.map(np.array, session.carry)
    assert session.ask("what is the last shape?").text == reply.text
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, session.carry))


def test_any_of_several_tokens_ends_an_answer(model):
    session = Session(model._replace(max_new=4), Recent(40)).watch(pieces(2))
    ids = model.tokenize("what is the last shape?")
    rows = question_rows(model.params, ids, program=session.program)
    more = {"program": session.program, "max_new": 4}
    free = ask(model.params, session.carry, rows, **more)
    said = free.ids.tolist()
    assert int(free.length) == 4
    unused = next(i for i in range(model.decoder.vocab) if i not in said)
    for end in ((said[2], unused), (unused, said[2])):
        answer = ask(model.params, session.carry, rows, end=end, **more)
        stop = said.index(said[2])
        assert int(answer.length) == stop and answer.ids[:stop].tolist() == said[:stop]


def test_an_answer_can_be_seen_while_it_is_written(model):
    """In steps that compile once, with the words of the one call; also where tokens are drawn."""
    model = model._replace(max_new=6)
    session = Session(model, Recent(40)).watch(pieces(2))
    question, key = "what is the last shape?", jax.random.key(5)
    for more in ({}, {"sampling": Sampling(1.5, 0.95, 20, 9.0), "key": key}):
        whole = session.ask(question, **more)
        with count_compilations() as counted:
            parts, reply = written(session, question, **more)
            first = counted.count
            again = written(session, question, **more)[1]
        assert counted.count == first >= 2
        assert reply.text == again.text == whole.text == "".join(parts)
        assert [len(part.split()) for part in parts] == [1, 4, 1]
        np.testing.assert_allclose(reply.logits, whole.logits, atol=1e-5)
    assert whole.text != session.ask(question).text
    assert session.ask(question, **more | {"key": jax.random.key(6)}).text != whole.text


def test_an_end_token_ends_what_is_written_in_steps(model):
    session = Session(model._replace(max_new=3), Recent(20)).watch(pieces(1))
    drawn = {"sampling": Sampling(3.0), "key": jax.random.key(0)}
    said = session.ask("what is the last shape?", **drawn).text.split()
    assert said[1] != said[0]
    session.model = session.model._replace(end=int(model.tokenize(said[1])[0]))
    parts, reply = written(session, "what is the last shape?", **drawn)
    assert reply.text == said[0] == "".join(parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recent(40),
        pytest.param(lambda: Hermes(40), marks=pytest.mark.slow),
        lambda: ReKV(40, block=20, capacity=80),
        pytest.param(lambda: FlashVStreamQwen(), marks=pytest.mark.slow),
    ],
    ids=["layer", "stack", "bank", "features"],
)
def test_a_second_session_with_an_equal_memory_compiles_nothing(model, make):
    """Equal options are an equal program, whatever was made of them before."""
    question = "what is the last shape?"
    first = Session(model, make()).watch(pieces(2))
    text = first.ask(question).text
    with count_compilations() as counted:
        second = Session(model, make()).watch(pieces(2))
        again = second.ask(question).text
    assert counted.count == 0 and again == text
    jax.tree.map(np.testing.assert_array_equal, second.carry, first.carry)


MEMORIES_AT_ONCE = (
    lambda: Recent(40),
    lambda: Hermes(40),
    lambda: ReKV(40, block=20, capacity=80),
    lambda: FlashVStreamQwen(),
    lambda: OmniMem(24),
    lambda: Uniform(32),
    lambda: InfiniPotV(32),
    lambda: WithBank(Recent(24), 64, block=8, topk=2),
)


def held(model, make, number, seconds, wait):
    """Return what a session holds and answers after its own stream, asked on the way."""
    session, said = Session(model, make(), chunk_pieces=1 + number // 8 % 2), []
    wait()
    for i, piece in enumerate(pieces(seconds, number)):
        session.feed(piece)
        if i % 3 == number % 3:
            said.append(session.ask("what is the last shape?").logits)
    said.append(session.ask("where was the last shape?").logits)
    return jax.tree.map(np.array, (session.carry, said))


def side_by_side(model, memories, count, seconds):
    """Compare sessions that run in threads at once with each of them alone, bit by bit."""
    make = [memories[i % len(memories)] for i in range(count)]
    alone = [held(model, make[i], i, seconds, lambda: None) for i in range(count)]
    begin = Barrier(count)
    with ThreadPoolExecutor(count) as threads:
        run = [threads.submit(held, model, make[i], i, seconds, begin.wait) for i in range(count)]
        together = [one.result() for one in run]
    for one, other in zip(alone, together, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    answers = [said[-1].tobytes() for _, said in alone]
    assert len(set(answers)) == count  # every stream is its own


def test_sessions_in_threads_stay_apart(model):
    side_by_side(model, MEMORIES_AT_ONCE[:4], 4, 4)


@pytest.mark.slow
def test_many_sessions_in_threads_stay_apart(model):
    side_by_side(model, MEMORIES_AT_ONCE, 32, 12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return held_out(3, 20, tmp_path_factory.mktemp("clip"), count=0)[0]


@pytest.mark.parametrize(
    "name",
    ["recent", *(pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES if n != "recent")],
)
def test_a_watched_file_goes_on_after_a_save(model, clip, name, tmp_path):
    """Restored in the middle of a file, a session ends as one that was never interrupted."""
    memory = lambda: jm.memory_for(model, name, 64, tokens=400)
    whole = Session(model, memory(), chunk_pieces=3).watch(clip)
    kept = {"checkpoint": tmp_path / "live", "every": 4.0}
    Session(model, memory(), chunk_pieces=3).watch(clip, stop=11.0, **kept)
    again = Session.restore(tmp_path / "live", model, memory())
    assert again.seconds == 8
    again.watch(clip, resume=True)
    key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    plain = lambda carry: jax.tree.map(lambda x: jax.random.key_data(x) if key(x) else x, carry)
    jax.tree.map(np.testing.assert_array_equal, plain(again.carry), plain(whole.carry))
    question = "what is the last shape?"
    np.testing.assert_array_equal(again.ask(question).logits, whole.ask(question).logits)


def test_weights_are_read_once_however_often_a_stream_saves_itself(model, tmp_path, monkeypatch):
    read, fingerprint = [], saving.fingerprint
    monkeypatch.setattr(saving, "fingerprint", lambda x: read.append(1) or fingerprint(x))
    session = Session(model, Recent(40))
    session.watch(pieces(4), checkpoint=tmp_path / "live", every=1.0)
    assert len(saves.numbered(tmp_path / "live")) == saves.KEPT and len(read) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_samples_that_are_no_sound_are_silence(model, bad):
    """The stream is the one that silence makes, and the event says when."""
    loud, quiet = pieces(3), pieces(3)
    loud[1].samples[100:200], quiet[1].samples[100:200] = bad, 0
    session = Session(model, Recent(40)).watch(loud)
    jax.tree.map(
        np.testing.assert_array_equal, session.carry, Session(model, Recent(40)).watch(quiet).carry
    )
    (event,) = session.events
    assert event.kind == "damaged" and event.time == 1.0 and "8 times full scale" in event.message


def test_refusals(model):
    with pytest.raises(ValueError, match="chunk_pieces"):
        Session(model, Recent(8), chunk_pieces=0)
    with pytest.raises(ValueError, match="does not know"):
        Session(model, Recent(8)).ask("why is the sky?")
    with pytest.raises(ValueError, match="sampling needs a key"):
        Session(model, Recent(8)).ask("what is the last shape?", sampling=Sampling())
    with pytest.raises(ValueError, match="1 to 2 pieces"):
        Preprocessor(model, 2)(pieces(3))
