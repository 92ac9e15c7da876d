"""Weights and streams over four devices: in processes of their own, as their number is fixed."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jaxmem as jm
from jaxmem.memory import MEMORIES
from jaxmem.models.tiny.embedded import embedded
from jaxmem.serve.lanes import dealt

SUPPORT = Path(__file__).parents[1] / "support"
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count"
STREAM = ("-m", "jaxmem.experiments.stream")
SHORT = ("--seconds", "8", "--questions", "2", "--no-prompt", "--json")


def child(*words, run=(str(SUPPORT / "mesh_child.py"),), devices=4, **more):
    """Run Python with so many devices; return what it printed."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **more}
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}={devices}"
    env["PYTHONPATH"] = f"{SUPPORT.parents[1]}{os.pathsep}{env.get('PYTHONPATH', '')}"
    line = [sys.executable, *run, *words]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def report(out, *words):
    return json.loads(child(*SHORT, "--out", str(out), *words, run=STREAM))


def answers(document):
    return [[one["answer"] for one in result["answers"]] for result in document["results"]]


def test_streams_over_devices_are_those_of_one():
    assert child("recent:2", "omnimem:0").split() == ["recent", "omnimem"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_every_memory_over_devices(name):
    memory = jm.memory_for(embedded(), name, 24, **({"capacity": 200} if name == "full" else {}))
    bank = getattr(memory, "bank", lambda spec: None)(jm.model_spec(embedded()))
    lanes = 0 if bank is not None and bank.space == "host" else 4  # an engine refuses these
    assert child(f"{name}:{lanes}").split() == [name]


@pytest.mark.slow
def test_layers_with_a_state_over_devices():
    child("mixers:0")


def test_batches_are_dealt_to_the_parts_that_hold_their_lanes():
    assert dealt([2, 0], 4).which.tolist() == [2, 0] and dealt([2, 0], 4).at == [0, 1]
    which, at = dealt([6, 0, 7, 3, 6], 8, 2)
    assert which.tolist() == [0, 3, 4, 4, 2, 3, 2, 4]  # 4: padding
    assert at == [4, 0, 5, 1, 6]
    which, at = dealt([5], 8, 4)
    assert which.tolist() == [2, 2, 1, 2] and at == [2]


@pytest.mark.slow
def test_the_command_line_over_devices(tmp_path):
    """From `--mesh` to the report: the answers of one device; nothing compiles on the way."""
    plain = report(tmp_path / "one")
    cut = report(tmp_path / "two", "--mesh", "model=2")
    assert answers(cut) == answers(plain) and cut["config"]["mesh"] == "model=2"
    assert cut["compilations"]["streaming"] == 0
    side = report(tmp_path / "four", "--mesh", "data=2,model=2", "--compare", "recent,knorm")
    assert answers(side) == answers(report(tmp_path / "side", "--compare", "recent,knorm"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh,said",
    [
        ("model=4", "model=4 devices do not share 2 KV heads evenly"),
        ("data=2", "data=2 is for streams side by side, and there is one"),
        ("model=8", "needs 8 devices, and there are 4"),
        ("heads", "for example model=2"),
    ],
)
def test_meshes_that_the_command_line_refuses(tmp_path, mesh, said):
    with pytest.raises(AssertionError, match=said):
        child(*SHORT, "--out", str(tmp_path), "--mesh", mesh, run=STREAM)


@pytest.mark.slow
def test_two_processes_stream_as_one(tmp_path):
    """Each has one device of the mesh, reads the video and says the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    words = (*SHORT, "--out", str(tmp_path / "two"), "--mesh", "model=2")
    words = (*words, "--compare", "knorm,recent")
    with ThreadPoolExecutor(2) as threads:
        run = lambda i: child(*words, run=STREAM, devices=1, JAX_PROCESS_ID=str(i), **more)
        texts = list(threads.map(run, range(2)))
    found = [json.loads(text[text.index("{\n") :]) for text in texts]  # Gloo prints before it
    plain = report(tmp_path / "one", "--compare", "knorm,recent")
    assert answers(found[0]) == answers(found[1]) == answers(plain)
    assert [x["kept"] for x in found[0]["results"]] == [x["kept"] for x in plain["results"]]
    assert (tmp_path / "two" / "process1" / "report.json").is_file()
