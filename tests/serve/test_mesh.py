"""Weights and streams over four devices: in processes of their own, as their number is fixed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmem as jm
from jaxmem.memory import MEMORIES
from jaxmem.models.tiny.embedded import embedded
from jaxmem.serve import Engine
from jaxmem.serve.lanes import dealt

SUPPORT = Path(__file__).parents[1] / "support"
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"


def child(*words, **more):
    """Run Python with four devices; return what it printed."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **more}
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
    env["PYTHONPATH"] = f"{SUPPORT.parents[1]}{os.pathsep}{env.get('PYTHONPATH', '')}"
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("names,lanes", [("omnimem", "2"), ("recent", "0")])
def test_streams_over_devices_are_those_of_one(names, lanes):
    assert child(SUPPORT / "mesh_child.py", names, lanes).split() == names.split(",")


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_every_memory_over_devices(name):
    memory = jm.memory_for(embedded(), name, 24, **({"capacity": 200} if name == "full" else {}))
    bank = getattr(memory, "bank", lambda spec: None)(jm.model_spec(embedded()))
    lanes = "0" if bank is not None and bank.space == "host" else "4"  # an engine refuses these
    assert child(SUPPORT / "mesh_child.py", name, lanes).split() == [name]


def test_batches_are_dealt_to_the_parts_that_hold_their_lanes():
    assert dealt([2, 0], 4)[0].tolist() == [2, 0] and dealt([2, 0], 4).at == [0, 1]
    which, at = dealt([6, 0, 7, 3, 6], 8, 2)
    assert which.tolist() == [0, 3, 4, 4, 2, 3, 2, 4]  # 4: padding
    assert at == [4, 0, 5, 1, 6]
    assert dealt([5], 8, 4).which.tolist() == [2, 2, 1, 2]
    assert dealt([5], 8, 4).at == [2]


def test_lanes_that_devices_do_not_share_are_refused():
    code = (
        "import jaxmem as jm; from jaxmem.serve import Engine; "
        "Engine(jm.load('tiny'), jm.Recent(8), lanes=3, mesh=jm.parse_mesh('data=2'))"
    )
    with pytest.raises(AssertionError, match="data=2 does not share 3 lanes evenly"):
        child("-c", code)


def test_an_engine_over_one_device_of_a_mesh():
    """A mesh of one device changes nothing."""
    with Engine(jm.load("tiny"), jm.Recent(8), lanes=2, mesh=jm.parse_mesh("")) as engine:
        assert engine.stepper.parts == 1 and not engine.streams
