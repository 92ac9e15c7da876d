"""Strictness for every test, and the options that name folders of outside material."""

import gc
import os
import threading
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of small programs and run each once: compile fast rather than well.
# `XLA_FLAGS= pytest` runs them as users do. XLA ends the process at a flag that it does not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import jax
import pytest
from doubles import DOUBLES

ROOT = Path(__file__).resolve().parent.parent
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # of every operation; nobody reads them
ROOM = 3 * 2**30
"""Bytes that a process may grow by before programs, and what else is garbage, are dropped."""
MODULES = 300
"""Programs that are lowered in one MLIR context."""

MAPPINGS = 20_000
"""Memory mappings beyond which compiled programs are dropped; Linux allows 65,530 a process."""


def share_contexts():
    """Lower many small programs in one MLIR context: making one for each takes a fifth of the time.

    A context keeps the constants of its programs, so it is left now and then.
    """
    from jax._src.interpreters import mlir

    make, made, count = getattr(mlir, "make_ir_context", None), [], 0

    def shared():
        nonlocal count
        if threading.current_thread() is not threading.main_thread():
            return make()
        if count % MODULES == 0:
            made[:] = [make()]
        count += 1
        return made[0]

    if make is not None:
        mlir.make_ir_context = shared


share_contexts()


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


LONGEST = (
    "test_laws_everywhere",
    "test_benchmark",
    "test_cli_stream",
    "test_notebooks",
    "test_loop",
    "test_recall",
    "test_bank_gradient",
)
"""Files that take half a minute or more; begun last, one core would wait for the other."""


def _doubles(item):
    """The doubles of a test's file."""
    return DOUBLES.get(os.path.relpath(item.path, ROOT / "tests"), ())


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their marks
def pytest_collection_modifyitems(config, items):
    """Mark the doubles as slow, and begin with the longest files (the sort is stable)."""
    idle = {(item.path, name) for item in items for name in _doubles(item)}
    for item in items:
        names = {item.name, getattr(item, "originalname", None)} & set(_doubles(item))
        if names:
            item.add_marker(pytest.mark.slow)
            idle -= {(item.path, name) for name in names}
    if idle and not any("::" in word for word in config.args):
        raise pytest.UsageError(f"tests/support/doubles.py names what is no test: {sorted(idle)}")
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    """Leave what is there before the first test out of every garbage collection, and have few.

    What compiled programs keep is millions of objects, which a full collection walks for seconds
    and finds alive: there is one when programs are dropped, and no other.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 1_000_000)


floor = [0]  # bytes of this process when programs were dropped last


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drop the compiled programs after a file, once they are many.

    Every program is a few memory mappings. Where the system allows no more, compiling crashes and
    starting other programs fails. Files share small programs, so few are dropped for nothing.
    """
    from jaxmem.compiled import mappings

    yield
    if (mappings() or MAPPINGS + 1) > MAPPINGS or resident() > floor[0] + ROOM:
        jax.clear_caches()
        gc.collect()
        floor[0] = resident()


@pytest.fixture(scope="module")
def no_programs():
    """Nothing is compiled yet when a file begins that counts what it compiles."""
    jax.clear_caches()


def resident() -> int:
    """Return the bytes of this process in memory; elsewhere than on Linux, none."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
