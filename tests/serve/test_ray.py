"""Streams under Ray: when a replica dies its streams go on elsewhere from their last saves."""

import pytest
from mesh_child import QUESTION, piece

import jaxmem as jm
from jaxmem.serve import Engine
from jaxmem.serve.ray_replicas import Replicas

pytestmark = pytest.mark.ray
STREAMS = [f"camera{i}" for i in range(16)]


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False)
    yield ray
    ray.shutdown()


def test_streams_of_a_dead_replica_go_on_elsewhere(ray, tmp_path):
    """Sixteen streams on two replicas, one of them killed: all answer, nothing saved is lost."""

    def make():
        return Engine(jm.load("tiny"), jm.Recent(8), lanes=16)

    replicas = Replicas(make, tmp_path, count=2, every=2, num_cpus=1)
    homes = {name: replicas.home(name) for name in STREAMS}
    assert set(homes.values()) == {0, 1}
    for number, name in enumerate(STREAMS):
        assert replicas.open(name) == 0.0
        for i in range(3):  # of which two are saved
            replicas.feed(name, piece(100 * number + i))
    before = {name: replicas.ask(name, QUESTION) for name in STREAMS}
    ray.kill(replicas.alive[1])
    after = {name: replicas.ask(name, QUESTION) for name in STREAMS}
    moved = {name: seconds for name, seconds in replicas.moved}
    assert moved == {name: 2.0 for name, home in homes.items() if home == 1}
    session = jm.Session(jm.load("tiny"), jm.Recent(8))
    for number, name in enumerate(STREAMS):
        session.reset()
        for i in range(2 if name in moved else 3):
            session.feed(piece(100 * number + i))
        expected = session.ask(QUESTION)
        assert after[name].text == expected.text
        assert abs(after[name].logits - expected.logits).max() < 2e-4
        if name not in moved:
            assert abs(after[name].logits - before[name].logits).max() < 1e-6
    for name in moved:  # what was lost is fed again
        replicas.feed(name, piece(100 * STREAMS.index(name) + 2))
        assert replicas.ask(name, QUESTION).text == before[name].text
    with pytest.raises(ValueError, match="camera0.* is open"):
        replicas.open("camera0")
    for name in ("", "..", "a/b", ".x"):
        with pytest.raises(ValueError, match="folder of saves"):
            replicas.open(name)
    with pytest.raises(ValueError, match="does not know weather"):
        replicas.ask("camera0", "what was the weather")


@pytest.mark.parametrize("more", [{"count": 0}, {"count": 1, "every": 0}])
def test_numbers_are_checked(tmp_path, more):
    with pytest.raises(ValueError, match="at least 1"):
        Replicas(lambda: None, tmp_path, **more)
