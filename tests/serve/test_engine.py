"""Streams of an `Engine` are those of a `Session` each, whatever the others do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from serving import same

from jaxmem.decoder.sampling import Sampling
from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Recent
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import memory_for
from jaxmem.serve import Engine
from jaxmem.session import Session

LAST, COUNT = "what was the last shape", "how many shapes were there"


def piece(seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
    return SimpleNamespace(frames=frames, samples=0.1 * rng.normal(size=16000).astype(np.float32))


@pytest.fixture(scope="module")
def model():
    return embedded()


@pytest.fixture(scope="module")
def engine(model):
    with Engine(model, Recent(24, sinks=2), lanes=2, chunk_pieces=2, waiting=3) as engine:
        yield engine


@pytest.fixture(scope="module")
def session(model):
    return Session(model, Recent(24, sinks=2), chunk_pieces=2)


def test_a_stream_is_a_sessions_whatever_the_others_do(engine, session):
    """Two streams of other lengths, fed on two threads, asked within a chunk, one joining late."""
    session.reset()
    for i in range(5):
        session.feed(piece(i))
    expected = {q: session.ask(q) for q in (LAST, COUNT)}
    with engine.open() as mine, ThreadPoolExecutor(2) as threads:

        def disturb():
            for start in (50, 60):  # joins and leaves twice
                with engine.open() as other:
                    for i in range(start, start + 4):
                        other.feed(piece(i), wait=True)
                    other.ask(LAST)

        noise = threads.submit(disturb)
        for i in range(5):
            mine.feed(piece(i), wait=True)
        answers = {q: mine.ask(q) for q in (LAST, COUNT)}
        replies = {q: answer.reply(60) for q, answer in answers.items()}
        noise.result(60)
        for q, reply in replies.items():
            assert reply.text == expected[q].text and "".join(answers[q]) == reply.text
            np.testing.assert_allclose(reply.logits, expected[q].logits, atol=2e-4)
            assert 0 < reply.first_seconds <= reply.seconds
        same(engine.read(mine), session.carry)
        assert mine.stats == (4.0, 0.0, 2, 0, 2, session.nbytes)


def test_a_question_is_about_what_was_fed_before_it(engine, session):
    """However much is fed while it waits."""
    session.reset()
    for i in range(4):
        session.feed(piece(i))
    before = session.ask(LAST)
    with engine.open() as live:
        for i in range(4):
            live.feed(piece(i), wait=True)
        answer = live.ask(LAST)
        for i in range(4, 10):
            live.feed(piece(i), wait=True)
        np.testing.assert_allclose(answer.reply(60).logits, before.logits, atol=2e-4)


def test_what_comes_too_fast_is_dropped_oldest_first_and_counted(engine):
    held = threading.Event()
    with engine.open() as live:
        job = threading.Thread(target=lambda: engine.run(held.wait))
        job.start()
        dropped = [live.feed(piece(i)) for i in range(12)]
        answer = live.ask(LAST)
        assert sum(dropped) == live.stats.dropped == 3 - (live.stats.chunks - 0)
        assert live.stats.lag == 6.0
        held.set()
        job.join(60)
        answer.reply(60)
        assert live.stats.chunks == 3 and live.stats.lag == 0.0
        assert live.stats.seconds == 12.0


def test_a_branch_and_a_save_go_on(engine, session, model, tmp_path):
    with engine.open() as live:
        for i in range(3):
            live.feed(piece(i), wait=True)
        branch = live.session()
        branch.save(tmp_path)
        for i in range(3, 6):
            live.feed(piece(i), wait=True)
        after = live.ask(COUNT).reply(60)
        back = Session.restore(tmp_path, model, Recent(24, sinks=2))
        with engine.open(back) as again:
            assert again.stats.seconds == 2.0
            for i in range(3, 6):
                again.feed(piece(i), wait=True)
            reply = again.ask(COUNT).reply(60)
            np.testing.assert_allclose(reply.logits, after.logits, atol=2e-4)
        other = Session(model, Recent(16), chunk_pieces=2)
        with pytest.raises(ValueError, match="another model, memory or chunk length"):
            engine.open(other)


def test_bad_input_harms_nobody_else(engine):
    with engine.open() as live:
        live.feed(piece(0))
        with pytest.raises(ValueError, match="frames have shape"):
            live.feed(SimpleNamespace(frames=np.zeros((1, 9, 9, 3), np.uint8), samples=[]))
        with pytest.raises(ValueError, match="does not know weather"):
            live.ask("what was the weather")
        with engine.open(), pytest.raises(ValueError, match="all 2 lanes"):
            engine.open()
        live.feed(piece(1))
        assert live.ask(LAST).reply(60).text
    with pytest.raises(ValueError, match="ended: it was closed"):
        live.feed(piece(2))
    with pytest.raises(ValueError, match="ended: it was closed"):
        live.ask(LAST)


@pytest.mark.parametrize(
    "memory,words",
    [
        (WithBank(Recent(24), 40), "host memory"),
        (Hermes(24, dialogue=True), "dialogue=True"),
    ],
)
def test_what_does_not_run_side_by_side_is_refused(model, memory, words):
    with pytest.raises(ValueError, match=words):
        Engine(model, memory)


@pytest.mark.parametrize("more", [{"lanes": 0}, {"waiting": 0}, {"sampling": Sampling(1.0)}])
def test_arguments_are_checked(model, more):
    with pytest.raises(ValueError, match=r"at least 1|needs a key"):
        Engine(model, Recent(24), **more)


def test_a_failed_thread_says_so_to_everyone(model, monkeypatch):
    engine = Engine(model, Recent(24), lanes=1)
    live = engine.open()

    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.stepper, "step", fail)
    answer_before = live.ask  # bound while it lives
    live.feed(piece(0))
    with pytest.raises(ValueError, match=r"failed \(RuntimeError: out of memory\)|ended"):
        while True:
            answer_before(LAST).reply(60)
    with pytest.raises(ValueError, match="closed"):
        engine.open()
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_every_memory_runs_side_by_side_or_is_refused(model, name):
    memory = memory_for(model, name, 96, tokens=400)
    session = Session(model, memory)
    try:
        engine = Engine(model, memory, lanes=2)
    except ValueError as error:
        assert "host memory" in str(error)
        return
    with engine, engine.open() as mine, engine.open() as other:
        for i in range(8):
            session.feed(piece(i))
            mine.feed(piece(i), wait=True)
            if i % 3:
                other.feed(piece(90 + i), wait=True)
        reply, expected = mine.ask(COUNT).reply(300), session.ask(COUNT)
        same(engine.read(mine), session.carry)
        assert reply.text == expected.text


@pytest.mark.slow
def test_draws_are_those_of_the_key(model):
    options = {"sampling": Sampling(2.0), "key": jax.random.key(3)}
    texts = []
    for _ in range(2):
        with Engine(model, Recent(24), lanes=2, **options) as engine, engine.open() as live:
            live.feed(piece(0))
            texts.append([live.ask(LAST).reply(60).text for _ in range(6)])
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
