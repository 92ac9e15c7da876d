"""The wheel, as users get it: built once, unpacked without the network, used in empty folders."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def install(folder: Path) -> Path:
    """Build the wheel of the working tree and install it alone; return where the package is."""
    target = folder / "installed"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    if find_spec("hatchling") is not None:  # of the extra `dev`: nothing is downloaded then
        build.insert(-1, "--no-build-isolation")
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("jaxmem-*.whl")
    put = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    put += ["--no-compile", "--target", str(target), str(wheel)]
    done = subprocess.run(put, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def environment(installed: Path) -> dict[str, str]:
    """The environment of a process that imports the installed package."""
    return os.environ | {"PYTHONPATH": str(installed), "MPLBACKEND": "agg"}
