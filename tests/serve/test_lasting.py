"""Open sessions in a folder: saved every so often, together, and for one server at a time."""

import time

import pytest
from serving import COUNT, LAST, RECENT, picture

from jaxmem import saves
from jaxmem.serve.hub import RUNNING, Hub
from jaxmem.serve.lasting import FIRST
from jaxmem.serve.limits import Limits, RefusedError
from jaxmem.serve.sources import Allowed

pytest.importorskip("starlette")


@pytest.fixture
def begin(hub, tidy, tmp_path, folder):
    """Makes servers that share a folder, and engines: only their sessions are apart."""
    made, engines = [], hub.engines

    def begin(**more):
        allowed = Allowed(folder / "root" / "a")
        hub = Hub(engines, Limits(), usual=RECENT, allowed=allowed, saves=tmp_path, **more)
        made.append(hub)
        return hub

    yield begin
    for hub in made:
        for one in hub.sessions:
            hub._end(one, "the test is over")
        hub.stopping = True  # the engines are others', too
        hub._folder.cleanup()


def pushed(hub, id, count):
    (served,) = hub.create([RECENT], id)
    for i in range(count):
        served.push(picture(i), at=float(i))
    assert served.ask(LAST).text  # a step was taken once it is answered
    while served.questions.waiting:
        time.sleep(0.01)
    return served


def later(hub, seconds):
    """Have so many seconds gone by since the last saves."""
    tried = hub.lasting._tried
    for stream, (when, stand) in tried.items():
        tried[stream] = (when - seconds, stand)


def pieces(folder, name):
    numbers = saves.read(folder / RUNNING / name).part().numbers
    return numbers["pieces"] + numbers["open"]


def test_a_session_is_saved_soon_then_when_it_has_changed(begin, tmp_path):
    hub = begin(every=60.0)
    one = pushed(hub, "one", 3)
    hub.keep_up()
    assert hub.lasting.names == []
    later(hub, FIRST)
    hub.keep_up()
    assert hub.lasting.names == ["one"] and pieces(tmp_path, "one") == 2
    assert hub.keeping.names == []  # clients see what they saved
    one.push(picture(4), at=4.0)
    hub.keep_up()
    assert pieces(tmp_path, "one") == 2
    later(hub, 60.0)
    hub.keep_up()
    assert pieces(tmp_path, "one") == 4
    number = saves.numbered(tmp_path / RUNNING / "one")[-1]
    later(hub, 60.0)
    hub.keep_up()
    assert saves.numbered(tmp_path / RUNNING / "one")[-1] == number  # nothing has changed
    hub.close(one, "it was closed")
    assert not list((tmp_path / RUNNING).iterdir())


def test_a_killed_server_is_gone_on_with_by_the_next(begin, tmp_path, folder):
    """The reader of a file goes on at the piece of its save, in both memories of the stream."""
    hub = begin(every=0.01)
    one = pushed(hub, "one", 3)
    two = hub.create([RECENT, RECENT], "two")
    hub.read(two, hub.allowed.find("talk.mp4"), pace=8.0)
    while two[0].pieces < 2 or not hub.lasting.names:
        time.sleep(0.02)
        hub.keep_up()
    while sorted(hub.lasting.names) != ["one", "two"]:
        hub.keep_up()
    for session in two:  # it is killed, and writes no more
        hub._end(session, "killed")
    assert not hub.lasting.due([one]) or pieces(tmp_path, "one") == 2
    hub._end(one, "killed")
    other = begin()
    assert other.resume() == [] and len(other.sessions) == 3
    assert other.get("one").pieces == 2 and other.get("one").plain()["stream"] == "one"
    a, b = (other.get(session.id) for session in two)
    assert a.plain()["peers"] == [a.id, b.id] and a.stream == b.stream == "two"
    while a.busy or b.busy:
        time.sleep(0.01)
    whole = other.engines.open(RECENT).watch(folder / "root" / "a" / "talk.mp4")
    expected = whole.ask(COUNT).reply(60).text
    whole.close()
    assert a.pieces == b.pieces == 6
    assert [x.live.ask(COUNT).reply(60).text for x in (a, b)] == [expected] * 2
    with pytest.raises(RefusedError, match="open here already"):
        other.go_on("two")
    with pytest.raises(RefusedError, match="was left"):
        other.go_on("nobody")
    with pytest.raises(RefusedError, match="a session two already"):
        other.create([RECENT], "two")
    other.close(a, "it was closed")
    assert "two" in other.lasting.names  # the other memory goes on
    other.close(b, "it was closed")
    assert other.lasting.names == ["one"]


def test_a_server_that_was_taken_for_dead_lets_go(begin, tmp_path):
    """Its copy ends without a trace once it would be saved; the other one is not harmed."""
    hub, other = begin(every=0.01), begin(every=0.01)
    one = pushed(hub, "one", 3)
    hub.keep_up()
    time.sleep(0.02)
    hub.keep_up()
    (taken,), failed = other.go_on("one")
    assert failed == [] and taken.pieces == 2
    taken.push(picture(7), at=2.0)
    taken.push(picture(8), at=3.0)
    assert taken.pieces == 3
    other.keep_up()
    time.sleep(0.02)
    other.keep_up()
    assert pieces(tmp_path, "one") == 3
    one.push(picture(5), at=5.0)
    time.sleep(0.02)
    hub.keep_up()
    assert hub.sessions == [] and "another server" in one.live.closed
    assert pieces(tmp_path, "one") == 3 and other.sessions == [taken]


def test_a_session_that_failed_stays_in_the_folder(begin):
    hub = begin(every=0.01)
    one = pushed(hub, "one", 2)
    hub.keep_up()
    time.sleep(0.02)
    hub.keep_up()
    one.live.close("the engine failed (RuntimeError: out of memory)")
    hub.tidy()
    assert hub.sessions == [] and hub.lasting.names == ["one"]


def test_a_folder_that_cannot_be_written_is_said_and_harms_nothing(begin, monkeypatch, caplog):
    hub = begin(every=0.01)
    one = pushed(hub, "one", 2)

    def full(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(saves, "write", full)
    hub.keep_up()
    time.sleep(0.02)
    hub.keep_up()
    assert "no space left" in caplog.text and one.ask(LAST)
