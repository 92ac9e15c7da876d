"""Several devices on a command line: `--mesh`, and the processes of one mesh over several hosts."""

from __future__ import annotations

import os

import jax
from jax.sharding import Mesh

from jaxmem.decoder.placing import DATA, MODEL, parse_mesh, uneven, weight_places
from jaxmem.models.base import Model
from jaxmem.models.hf.weights import Place

COORDINATOR, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment of a process that is one of several: where the first one listens, how many there are,
and which this one is. Slurm and MPI know the last two."""


def join_processes() -> int:
    """Join the processes that the environment names, once; return this one's number.

    Call it before anything asks JAX for a device.

    Raises:
      ValueError: if a number is none, or the others do not come.
    """
    if COORDINATOR not in os.environ:
        return 0
    if not jax.distributed.is_initialized():
        try:
            count, number = (
                None if name not in os.environ else int(os.environ[name])
                for name in (COUNT, NUMBER)
            )
            jax.distributed.initialize(os.environ[COORDINATOR], count, number)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"the processes of {COORDINATOR}={os.environ[COORDINATOR]} could not be joined "
                f"({error}): set {COUNT} and {NUMBER} (0, 1, ...) in each of them, and start all."
            ) from error
    return jax.process_index()


def mesh_of(text: str | None) -> Mesh | None:
    """Return the mesh of `--mesh`; None: there is none.

    Raises:
      ValueError: as `parse_mesh`.
    """
    return None if text is None else parse_mesh(text)


def spread(mesh: Mesh | None, count: int) -> list[Mesh | None]:
    """Return the devices of each of several streams: one row of `data` after the other, in turn.

    Raises:
      ValueError: if there are more rows than streams.
    """
    if mesh is None:
        return [None] * count
    rows = mesh.shape[DATA]
    if rows > count:
        raise ValueError(
            f"--mesh {DATA}={rows} is for streams side by side, and there is "
            f"{'one' if count == 1 else count}: name as many memories with --compare, or take "
            f"{MODEL}=N."
        )
    return [_row(mesh, i % rows) for i in range(count)]


def _row(mesh: Mesh, number: int) -> Mesh:
    return Mesh(mesh.devices[number : number + 1], (DATA, MODEL))


def places_of(text: str | None) -> Place | None:
    """Return where weights go while they are read, for a `--mesh`; None: to the default device."""
    mesh = mesh_of(text)
    return None if mesh is None else weight_places(_row(mesh, 0))


def told(mesh: Mesh, model: Model) -> list[str]:
    """Return in words what lies where."""
    rows, count = mesh.shape[DATA], mesh.shape[MODEL]
    what = f"{mesh.size} devices ({mesh.devices.flat[0].device_kind})"
    lines = [f"over {what}: {DATA}={rows}, {MODEL}={count}"]
    if model.decoder.attends:
        lines[0] += f", {model.decoder.kv_heads // count} KV heads of a layer on each"
    if left := uneven(mesh, model.params, model.decoder.stacks):
        lines.append(f"{MODEL}={count} does not divide, so every device has: {', '.join(left)}")
    return lines
