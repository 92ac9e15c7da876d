"""The record of a run over damaged files: results.json and a README.md with the same figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av

from jaxmem.experiments.benchmark.faults_child import ANSWERED, RAISED, REFUSED
from jaxmem.report.commit import commit
from jaxmem.report.files import write_json

BAD = ("crashed", "hung", "beyond memory")
OUTCOMES = (ANSWERED, REFUSED, RAISED, *BAD)

COMMAND = "python -m jaxmem.experiments.benchmark faults"
TEXT = """# What becomes of {files:,} damaged files

Claim: nothing in a file ends the process or hangs it, and memory stays flat.

```sh
{command} --files {files} --seed {seed} --record experiments/faults
```

Four seconds of {clips} in eight containers, each file damaged in one or two ways, each
streamed through the embedded model and asked a question, in children that take {each} files one
after the other, {limit_seconds:g} s and {limit_mib:,} MiB a file at most. `refused` is one line
that names the file and the cause, `raised` any other exception.

Recorded on {cores} CPU cores shared with other jobs, JAX {jax}, Python {python}, PyAV {pyav},
commit {commit}, in {wall:.0f} s ([results.json](results.json)):

{containers}

By damage (a file with two kinds counts twice):

{damages}

| | | goal |
|---|---|---|
| crashed, hung, beyond memory | {bad} | 0, 0, 0 |
| resident memory of a child, early and at the end | {early:,} to {late:,} bytes ({growth:+.1%}) | flat |
| longest file, s | {longest:.1f} | <= {limit_seconds:g} |
| most pieces of a file of 4 s | {most:,} | about 4 |

A file is repeated with `--first NUMBER --files 1`; `--keep DIR` keeps those that are neither
answered nor refused; `--clips DIR` damages other clips. Forty files are a test,
`tests/experiments/benchmark/test_faults.py`.
"""  # noqa: E501 (rows of tables)


def write_record(
    folder: Path, config: Mapping[str, Any], result: Mapping[str, Any], wall: float
) -> None:
    """Write the record of a run.

    Args:
      folder: where to.
      config: of the run, and the versions it ran with.
      result: what came of it (`Faults`).
      wall: seconds it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", dict(result))
    early, late = result["resident"]
    text = TEXT.format(
        **{name: config[name] for name in ("each", "limit_seconds", "limit_mib", "jax", "python")},
        files=result["files"],
        seed=result["seed"],
        clips="the synthetic world" if config["clips"] is None else "given clips",
        command=COMMAND,
        cores=os.cpu_count(),
        pyav=av.__version__,
        commit=commit(),
        wall=wall,
        containers=_table({**result["by_container"], "**all**": result["counts"]}),
        damages=_table(result["by_damage"]),
        bad=", ".join(str(result["counts"][name]) for name in BAD),
        early=early,
        late=late,
        growth=result["resident_growth"],
        longest=result["longest_seconds"],
        most=result["most_pieces"],
    )
    (folder / "README.md").write_text(text)


def _table(rows: Mapping[str, Mapping[str, int]]) -> str:
    head = f"| | {' | '.join(OUTCOMES)} |\n|{'---|' * (len(OUTCOMES) + 1)}"
    body = [
        f"| {name} | {' | '.join(str(row[o]) for o in OUTCOMES)} |" for name, row in rows.items()
    ]
    return "\n".join([head, *body])
