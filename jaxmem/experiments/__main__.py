"""`jaxmem COMMAND ...`: the commands of this package by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "stream": "jaxmem.experiments.stream.__main__",
    "serve": "jaxmem.experiments.serve",
    "proxy": "jaxmem.experiments.proxy",
    "evaluate": "jaxmem.experiments.evaluate.__main__",
    "benchmark": "jaxmem.experiments.benchmark.__main__",
    "calibrate": "jaxmem.experiments.calibrate",
    "train": "jaxmem.experiments.train",
    "scorer": "jaxmem.experiments.scorer",
    "finetune": "jaxmem.experiments.finetune.__main__",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 if there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name not in COMMANDS:
        helping = name in ("-h", "--help")
        print(
            f"usage: jaxmem COMMAND ...\n\ncommands: {', '.join(COMMANDS)}\n"
            "jaxmem COMMAND --help says what each takes.",
            file=sys.stdout if helping else sys.stderr,
        )
        return 0 if helping else 2
    return import_module(COMMANDS[name]).main(words[1:])


if __name__ == "__main__":
    raise SystemExit(main())
