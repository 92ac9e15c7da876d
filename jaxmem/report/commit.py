"""What made a measurement: stored with it, so that figures can be told apart by their code."""

import subprocess
from functools import cache
from pathlib import Path

import jax

import jaxmem

_QUIET = {"capture_output": True, "text": True, "check": True}


@cache
def commit() -> str:
    """Return the commit that runs, with a plus sign if files were changed since.

    A package that is installed without its history is named by its version, also inside of
    somebody else's repository.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], **_QUIET)
        found = subprocess.run([*git, "describe", "--always", "--dirty=+"], **_QUIET)
    except (OSError, subprocess.CalledProcessError):
        return f"version {jaxmem.__version__}"
    return found.stdout.strip()


def made_by() -> dict[str, str]:
    """Return the commit and the version of JAX."""
    return {"commit": commit(), "jax": jax.__version__}
