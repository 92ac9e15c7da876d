"""Build the dataset: `python -m jaxmem.data.jaxmem_streams --config 64s --data-dir DIR`."""

from pathlib import Path
from typing import Literal

import tyro

from jaxmem.data.jaxmem_streams import Builder


def main(
    config: tuple[Literal["64s", "128s", "256s", "tiny"], ...] = ("64s",),
    data_dir: Path = Path("out/data"),
) -> None:
    """Build the fixed splits of the synthetic world, or find that they are there already.

    Args:
        config: which to build, by the length of the streams; tiny is for a try.
        data_dir: folder of all datasets.
    """
    for name in config:
        builder = Builder(config=name, data_dir=data_dir)
        builder.download_and_prepare()
        sizes = ", ".join(f"{s} {i.num_examples}" for s, i in builder.info.splits.items())
        print(f"{builder.data_path}: {sizes}")


if __name__ == "__main__":
    tyro.cli(main)
