"""The proxy from the command line, before real servers: one is killed, all sessions answer."""

import signal

import pytest

from jaxmem.experiments.proxy import main

pytest.importorskip("httpx")
pytest.importorskip("websockets.sync.client")
from cluster import NAMES, SERVER, SESSIONS, Cluster, Process, check_a_loss


@pytest.mark.slow
def test_a_server_is_killed_and_one_ends_in_order(model, tmp_path):
    folder = tmp_path / "saves"
    start = lambda port=0: Process(
        "serve", "--replica", *SERVER, "--saves", str(folder), "--port", str(port)
    )
    servers = {one.address: one for one in (start(), start())}
    proxy = Process("proxy", "--port", "0", *(x for at in servers for x in ("--to", at)))
    cluster = Cluster(proxy.address, model, folder)
    try:
        cluster.wait(lambda: cluster.client.get("/health").json()["status"] == "ok")
        moved = check_a_loss(cluster, lambda name: servers[name].end(signal.SIGKILL))
        print("moved:", moved)
        (dead,) = (at for at, one in servers.items() if one.process.poll() is not None)
        (other,) = set(servers) - {dead}
        servers[dead] = start(
            dead.rpartition(":")[2]
        )  # it comes back, and takes what the other had
        cluster.wait(lambda: cluster.states() == {"ok": 2})
        assert set(one["replica"] for one in cluster.listed().values()) == {other}
        before = {name: one["stats"] for name, one in cluster.listed().items()}
        assert servers[other].end() == 0
        for name in NAMES:
            assert cluster.ask(name)
        for name, one in cluster.listed().items():
            assert one["replica"] == dead
            assert one["stats"]["seconds"] >= before[name]["seconds"]  # all of it was saved
        cluster.client.delete(f"{SESSIONS}/{NAMES[0]}")
        assert not (folder / ".running" / NAMES[0]).exists()
        assert proxy.end() == 0
    finally:
        cluster.close()
        for one in (*servers.values(), proxy):
            if one.process.poll() is None:
                one.process.kill()
                one.process.communicate()


WRONG = {
    "nobody": ([], "--to"),
    "both": (["--to", "http://a:1", "--ray", "2"], "either"),
    "no address": (["--to", "a:1"], "http://HOST:PORT"),
    "a path": (["--to", "http://a:1/x"], "http://HOST:PORT"),
    "twice": (["--to", "http://a:1", "--to", "http://a:1"], "twice"),
    "no patience": (["--to", "http://a:1", "--patience", "0"], "--patience"),
    "no port": (["--to", "http://a:1", "--port", "70000"], "65535"),
    "everybody": (["--to", "http://a:1", "--host", "0.0.0.0"], "--token"),
    "options of nobody": (["--to", "http://a:1", "--", "--demo"], "started already"),
    "no saves": (["--ray", "2", "--", "--memory", "recent"], "--saves"),
    "no such option": (["--ray", "2", "--", "--saves", "x", "--lanes", "0"], "--lanes"),
    "no address to have": (
        ["--to", "http://a:1", "--host", "203.0.113.7", "--token", "t"],
        "listen",
    ),
}


@pytest.mark.parametrize("argv,words", WRONG.values(), ids=WRONG)
def test_bad_arguments_are_one_sentence_and_status_2(argv, words, capsys, monkeypatch):
    monkeypatch.delenv("JAXMEM_TOKEN", raising=False)
    assert main(["--port", "0", *argv]) == 2
    errors = capsys.readouterr().err
    assert words in errors and errors.startswith("error: ") and errors.count("\n") == 1
