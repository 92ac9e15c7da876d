"""Live parity: tiny models made with the installed transformers and torch, `pytest -m parity`."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `passes`


def pytest_collection_modifyitems(items):
    here = Path(__file__).resolve().parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.parity)
            # transformers and torch warn about themselves; this project's code is held elsewhere.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def hf():
    """The outside libraries: `hf.torch` and `hf.transformers`."""
    try:
        import torch
        import transformers
    except ImportError as error:
        pytest.skip(f"live parity needs torch and transformers ({error}): .[parity]")
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip(f"live parity knows transformers 5, this is {transformers.__version__}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    return SimpleNamespace(torch=torch, transformers=transformers)


@pytest.fixture(autouse=True)
def forget_each():
    """Every case compiles programs of its own; forget them before the next one's."""
    yield
    jax.clear_caches()
