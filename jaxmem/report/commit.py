"""What made a measurement: stored with it, so that figures can be told apart by their code."""

import subprocess
from functools import cache
from pathlib import Path

import jax

import jaxmem


@cache
def commit() -> str:
    """Return the commit that runs, with a plus sign if files were changed since.

    A package that is installed without its history is named by its version, also inside of
    somebody else's repository.
    """
    try:
        _git("ls-files", "--error-unmatch", __file__)
        return _git("describe", "--always", "--dirty=+")
    except (OSError, subprocess.CalledProcessError):
        return f"version {jaxmem.__version__}"


def made_by() -> dict[str, str]:
    """Return the commit and the version of JAX."""
    return {"commit": commit(), "jax": jax.__version__}


def _git(*words: str) -> str:
    line = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
