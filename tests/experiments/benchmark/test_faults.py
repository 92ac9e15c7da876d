"""Damaged files: what is counted, and that none of forty does more than be answered or refused."""

import json

import pytest

from jaxmem.experiments.benchmark import faults, faults_child
from jaxmem.experiments.benchmark.__main__ import main
from jaxmem.experiments.benchmark.faults_clips import CONTAINERS, DAMAGES, clean_clips, damaged


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return clean_clips(None, tmp_path_factory.mktemp("clips"), 0)


def test_forty_files_are_answered_or_refused(capsys, tmp_path):
    words = ["--files", "40", "--workers", "1", "--json", "--record", str(tmp_path)]
    assert main(["faults", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failures"] == []
    assert found["counts"]["answered"] >= 20 and found["counts"]["refused"] >= 4
    assert found["counts"]["answered"] + found["counts"]["refused"] == found["files"] == 40
    assert set(found["by_container"]) == set(CONTAINERS)
    recorded = json.loads((tmp_path / "results.json").read_text())
    assert recorded["counts"] == found["counts"]
    total = " | ".join(str(n) for n in found["counts"].values())
    assert f"| **all** | {total} |" in (tmp_path / "README.md").read_text()
    assert found["most_pieces"] <= 10 and found["resident_growth"] < 0.1


def test_damage_is_the_same_by_number_and_seed(clips, tmp_path):
    assert {path.suffix[1:] for path in clips} == set(CONTAINERS)
    seen, changed = set(), 0
    for number in range(64):
        path, what = damaged(clips, number, 3, tmp_path)
        data, whole = path.read_bytes(), clips[number % len(clips)].read_bytes()
        assert damaged(clips, number, 3, tmp_path) == (path, what) and path.read_bytes() == data
        seen |= set(what.split(" + "))
        changed += data != whole
    assert seen == set(DAMAGES) and changed >= 60
    draws = [damaged(clips, 0, seed, tmp_path)[0].read_bytes() for seed in range(4)]
    assert len(set(draws)) == 4


CHILD = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
hoard = []
for line in sys.stdin:
    what = line.strip()
    if what.endswith("die"): os.abort()
    if what.endswith("sleep"): time.sleep(60)
    if what.endswith("eat"):
        hoard.append(b"x" * (300 << 20)); time.sleep(60)
    print("a library prints")
    print(json.dumps({"outcome": "answered", "detail": "", "seconds": 0.0}), flush=True)
"""


def test_a_child_that_dies_hangs_or_grows_is_told_apart(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    real = faults.subprocess.Popen
    monkeypatch.setattr(
        faults.subprocess, "Popen", lambda words, **more: real([words[0], str(script)], **more)
    )
    told = [("die", "crashed", 30.0), ("sleep", "hung", 1.0), ("eat", "beyond memory", 30.0)]
    for name, outcome, limit in told:
        config = faults.FaultsConfig(limit_seconds=limit, limit_mib=150)
        child = faults.Child(config)
        assert child.stream(tmp_path / "fine")["outcome"] == "answered"
        assert child.stream(tmp_path / name)["outcome"] == outcome
        assert child.done == config.each
        child.close()


class Streams:
    """In place of a session."""

    pieces = 1

    def __init__(self, error):
        self.error = error

    def reset(self):
        pass

    def watch(self, path):
        raise self.error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("x.mp4: cannot be opened"), "refused"),
        (ValueError("two\nlines"), "raised"),
        (IndexError("list index"), "raised"),
    ],
)
def test_only_one_line_is_a_refusal(error, outcome):
    assert faults_child.streamed(Streams(error), "x.mp4")[0] == outcome


def test_senseless_numbers_are_refused(capsys, tmp_path):
    assert main(["faults", "--files", "0"]) == 2 and "--files" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("no clip")
    assert main(["faults", "--clips", str(tmp_path)]) == 2
    assert "holds nothing that can be read" in capsys.readouterr().err
