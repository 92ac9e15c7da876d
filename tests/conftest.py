"""Strictness for every test, and the options that name folders of outside material."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of small programs and run each once: compile fast rather than well.
# `XLA_FLAGS= pytest` runs them as users do. XLA ends the process at a flag that it does not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--golden", default=None, help="folder of golden vectors (default: the project's copy)"
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """The folder of golden vectors."""
    given = request.config.getoption("--golden")
    return Path(given) if given else ROOT / "tests" / "golden" / "data"


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drop a file's compiled programs behind it.

    Every program is a few memory mappings, of which Linux allows a process 65,530. Beyond them,
    compiling crashes and starting other programs fails.
    """
    yield
    jax.clear_caches()
    gc.collect()
