"""A stream that saves itself goes on, in another run, to the answers of an uninterrupted one."""

import json
import shutil
import sys
import time

import jax
import killing
import numpy as np
import pytest
import small

from jaxmem import saves
from jaxmem.data.world.files import held_out
from jaxmem.experiments.stream.__main__ import main
from jaxmem.memory import MEMORIES
from jaxmem.models.tiny import tiny
from jaxmem.session import Session


def answers(out):
    report = json.loads((out / "report.json").read_text())
    return [[(a["time"], a["answer"]) for a in one["answers"]] for one in report["results"]]


@pytest.mark.slow  # by default a killed stream goes on, and one of each kind of memory
@pytest.mark.parametrize("more", [[], ["--bank.capacity", "200"]])
def test_resumed_is_uninterrupted(more, tmp_path, capsys):
    names = ["--compare", "recent,uniform", *more]
    words = ["--seconds", "30", "--chunk-seconds", "3", "--no-prompt", "--budget", "32", *names]
    for at in ("0:05", "0:21", "0:22", "end"):  # 0:21 is asked just after a save
        words += ["--ask", f"{at}: Which shape is there now?"]
    saved = ["--checkpoint", str(tmp_path / "live"), "--every", "5"]
    assert main([*words, "--out", str(tmp_path / "a"), *saved]) == 0
    first, last = sorted((tmp_path / "live").iterdir())
    for number, save in enumerate((first, last)):
        out = tmp_path / f"b{number}"
        assert main([*words, "--out", str(out), "--resume", str(save)]) == 0
        assert answers(out) == answers(tmp_path / "a")
    assert main([*words, "--out", str(tmp_path / "c"), *saved]) == 2  # would replace another one
    assert "replace" in capsys.readouterr().err


FEW = ("rekv",)
"""A stack, a bank and features: in every run of the tests."""


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    """Small weights and a clip."""
    folder = tmp_path_factory.mktemp("little")
    config = tiny.TinyConfig(
        width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
    )
    params = tiny.init(config, jax.random.key(0))
    params["decoder"] = small.scored(params["decoder"], tiny.decoder_config(config))
    tiny.save(folder / "weights", params, config)
    return folder / "weights", held_out(2, 20, folder, count=1)[0]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in MEMORIES]
)
def test_every_memory_goes_on(name, little, tmp_path, monkeypatch):
    """The logits of the first answer token are those of an uninterrupted run, bit by bit."""
    weights, clip = little
    words = ["--weights", str(weights), "--video", str(clip), "--no-prompt", "--memory", name]
    words += ["--budget", "48KiB", "--ask", "0:17: where was the star?"]
    words += ["--ask", "end: which was the last shape?", "--out", str(tmp_path / "out")]
    if name == "flexmem":
        words += ["--flexmem.capacity", "256", "--flexmem.reader-layers", "1"]
    said, ask = [], Session.ask

    def heard(self, question, **more):
        reply = ask(self, question, **more)
        said.append((self.pieces, question, reply.logits.tobytes()))
        return reply

    monkeypatch.setattr(Session, "ask", heard)
    live = tmp_path / "live"
    assert main([*words, "--checkpoint", str(live), "--every", "8"]) == 0
    wanted, first = said[-2:], saves.numbered(live)[0]
    assert saves.read(first).more["time"] == 8
    said.clear()
    assert main([*words, "--resume", str(first)]) == 0
    assert said[-2:] == wanted and len({logits for _, _, logits in wanted}) == 2


def command(words):
    """Run the main job, in a child."""
    sys.exit(main(words))


class Killed:
    """The same command, typed again after every kill until it is through, and then from anew."""

    def __init__(self, folder, seconds):
        (self.clip, _), self.seconds = held_out(3, seconds, folder, count=1), seconds
        self.live, self.out, self.log = folder / "live", folder / "out", folder / "log"
        self.draw = np.random.default_rng(0)
        self.begin().join()  # compiles, too
        self.wanted = self.result()

    def begin(self):
        words = ["--video", str(self.clip), "--out", str(self.out), "--budget", "32"]
        for at in (8, 0.5 * self.seconds, 0.9 * self.seconds, "end"):
            words += ["--ask", f"{at}: which shape is there now?"]
        words += ["--checkpoint", str(self.live), "--every", "1", "--resume", str(self.live)]
        return killing.begin(command, self.log, [*words, "--no-prompt"])

    def state(self):
        """The last save, every array of which has its checksum."""
        saved = saves.read(self.live)
        arrays = saved.part().arrays
        return saved.more["time"], {name: array.tobytes() for name, array in arrays.items()}

    def result(self):
        """The answers, and the state at the end; the next run is from anew."""
        found = answers(self.out), self.state()
        shutil.rmtree(self.live)
        shutil.rmtree(self.out)
        return found

    def last(self):
        found = saves.numbered(self.live)
        return int(found[-1].name) if found else 0

    def once(self):
        """Kill one run at a random moment; return whether it was killed before it was through."""
        before, child = self.last(), self.begin()
        for _ in range(self.draw.integers(0, 6)):  # saves that it is given time for
            known = self.last()
            while child.is_alive() and self.last() == known:
                time.sleep(1e-3)
        time.sleep(self.draw.uniform(0, 0.03))
        killed = killing.kill(child)
        assert killed or child.exitcode == 0, self.log.read_text()
        assert self.last() >= before
        if self.last():
            self.state()
        return killed


def kills(folder, count, seconds):
    """Kill a command so often, and check what it leaves and what comes of it."""
    job, done = Killed(folder, seconds), 0
    while done < count:
        killed = job.once()
        done += killed
        if not killed:
            assert job.result() == job.wanted
    last, child = job.last(), job.begin()
    child.join()
    assert child.exitcode == 0, job.log.read_text()
    assert ("going on at" in job.log.read_text()) == (last > 0)
    assert job.result() == job.wanted


def test_a_killed_stream_goes_on(tmp_path):
    kills(tmp_path, 1, 24)


@pytest.mark.slow
def test_a_stream_killed_a_hundred_times_goes_on(tmp_path):
    kills(tmp_path, 100, 96)
