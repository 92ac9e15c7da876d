"""Compare memories on held-out streams at equal bytes.

python -m jaxmem.experiments.evaluate recall --out experiments/memory_comparison
python -m jaxmem.experiments.evaluate diagnose --budget 128KiB
python -m jaxmem.experiments.evaluate benchmark --name ovo-bench --data OVO-Bench --model DIR
python -m jaxmem.experiments.evaluate text --memories full,recent,keydiff
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import tyro
from rich.console import Console

from jaxmem.experiments.evaluate.benchmark import benchmark
from jaxmem.experiments.evaluate.benchmark_config import BenchmarkConfig
from jaxmem.experiments.evaluate.diagnose import DiagnoseConfig, run_diagnose
from jaxmem.experiments.evaluate.recall_config import RecallConfig
from jaxmem.experiments.evaluate.recall_job import recall
from jaxmem.experiments.evaluate.text import run_named
from jaxmem.experiments.evaluate.text_streams import TextConfig
from jaxmem.experiments.memories import read_options, split_options
from jaxmem.experiments.parsing import refusing, shown
from jaxmem.memory.by_name import parse_names


def main(argv: Sequence[str] | None = None) -> int:
    """Run one evaluation; return the exit status (0, or 2 for bad arguments)."""
    return refusing(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    rest, words = split_options(argv)
    commands = {
        "recall": RecallConfig,
        "diagnose": DiagnoseConfig,
        "benchmark": BenchmarkConfig,
        "text": TextConfig,
    }
    told = shown("evaluate", __doc__)
    config = tyro.extras.subcommand_cli_from_dict(commands, args=rest, **told)
    options = read_options(words, {})
    beside = [text.partition("+")[2] for text in getattr(config, "states", "").split(",")]
    which = "memory" if isinstance(config, BenchmarkConfig) else "memories"
    named = parse_names(getattr(config, which)) if getattr(config, which) else ()
    if idle := set(options) - {*named, *(name.strip() for name in beside), "bank"}:
        raise ValueError(f"--{min(idle)}.* has no effect: it is not among --{which}.")
    config = replace(config, options=options)
    if isinstance(config, BenchmarkConfig):
        benchmark(config, Console())
    elif isinstance(config, DiagnoseConfig):
        run_diagnose(config, Console())
    elif isinstance(config, TextConfig):
        run_named(config, Console())
    else:
        recall(config, Console())


if __name__ == "__main__":
    raise SystemExit(main())
