"""Children that are killed: forked from a process that has imported the package and begun nothing.

A process in which JAX runs must not fork; this one only imports, which is much of a child's time.
"""

import multiprocessing
import os
import signal
from pathlib import Path

import jax

FORKED = multiprocessing.get_context("forkserver")
IMPORTED = ["jaxmem.experiments.stream.__main__", "jaxmem.saving", "matplotlib.pyplot", "pytest"]


def begin(target, log: Path, *args):
    """Return a running child that calls a function; what it prints goes to a file."""
    FORKED.set_forkserver_preload(IMPORTED)
    child = FORKED.Process(target=_child, args=(target, log, *args), daemon=True)
    child.start()
    return child


def _child(target, log, *args):
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    jax.config.update("jax_compilation_cache_dir", str(log.parent / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    target(*args)


def kill(child) -> bool:
    """Kill a child and wait for it; return whether it had not ended by itself."""
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL
