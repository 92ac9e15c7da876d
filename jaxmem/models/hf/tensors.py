"""Writing of safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxmem.data.world.atomic import complete


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a file, complete or not at all, and return its path.

    Others may read it as far as any new file (umask): safetensors 0.8 makes files that their owner
    alone reads, which a shared folder of checkpoints cannot use.
    """
    path = Path(path)
    with complete(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, dict(metadata) if metadata is not None else None)
        temporary.chmod(mode)
    return path
