"""A run of many steps, of whatever is trained: checkpoints, continuation, metrics, and its end.

It knows neither model nor memory: a state with its number of steps, an update, and batches that are
a function of the step. The result of a run that was stopped and resumed is that of one that was
never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orbax.checkpoint as ocp

from jaxmem.data.world.atomic import complete

LINE = 10
"""Steps whose mean is a line of metrics."""

State = TypeVar("State", bound=Any)
"""A NamedTuple of arrays with a field `step`."""


class Folder(NamedTuple):
    """Where a run is kept: `checkpoints/` (the last two), metrics, and its recipe."""

    path: Path
    every: int = 200  # steps between two checkpoints
    resume: bool = False  # go on with the run that is there
    # Even if its recipe was another one; None: likewise not, and the command cannot ask for it.
    other_recipe: bool | None = None


def follow(
    state: State,
    update: Callable[[State, Any], tuple[State, Any]],
    batches: Callable[[range], Iterator[Any]],
    steps: int,
    folder: Folder,
    *,
    recipe: Mapping[str, Any],
    minutes: float | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    more: Callable[[int], dict[str, float]] = lambda step: {},
    saved: Callable[[State], None] = lambda state: None,
) -> State:
    """Return the state after the last step.

    Writes `metrics.jsonl`, a line for every `LINE` steps, and TensorBoard's event files where
    tensorboardX is installed.

    Args:
      state: before the first step.
      update: of a step, from state and batch to state and metrics, a NamedTuple of numbers.
      batches: those of a range of steps, in order.
      steps: of the whole run.
      folder: where it is kept.
      recipe: what decides the result, as plain data; kept as `recipe.json`.
      minutes: the run ends after so many, at a checkpoint that can be resumed; None: it does not.
      report: is called after every step with its number (from 1) and its metrics.
      more: further numbers of a line, by the step (from 1).
      saved: is called with the state after every checkpoint.

    Raises:
      ValueError: if the folder holds a run and is not resumed, there is nothing to resume, the run
        that is there has another recipe, or a metric is not finite.
    """
    path = Path(folder.path).resolve()
    path.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(path / "checkpoints", options=options) as manager:
        last = manager.latest_step()
        _check(path, last, folder, recipe)
        if last is not None:
            state = manager.restore(last, args=ocp.args.StandardRestore(state))
        done = int(state.step)
        _forget(path / "metrics.jsonl", done)
        begun, recent = time.monotonic(), []
        with _events(path, done) as write:
            for step, batch in zip(range(done, steps), batches(range(done, steps)), strict=True):
                state, metrics = update(state, batch)
                values = {k: float(v) for k, v in metrics._asdict().items()}
                _check_finite(step + 1, values, manager.latest_step(), path)
                done, late = step + 1, (time.monotonic() - begun) / 60
                recent.append(values)
                report(done, values)
                over = done == steps or (minutes is not None and late >= minutes)
                if done % LINE == 0 or over:
                    mean = {k: float(np.mean([v[k] for v in recent])) for k in values}
                    line = {"step": done, **more(done), **mean, "minutes": late}
                    _add(path / "metrics.jsonl", line)
                    write(line)
                    recent = []
                if done % folder.every == 0 or over:
                    manager.save(done, args=ocp.args.StandardSave(state))
                    manager.wait_until_finished()
                    saved(state)
                if over:
                    break
    return state


def _check(path: Path, last: int | None, folder: Folder, recipe: Mapping[str, Any]) -> None:
    """Refuse a folder that does not fit, and write the recipe."""
    if folder.resume and last is None:
        raise ValueError(f"{path} has no checkpoint to resume: start without --resume")
    if not folder.resume and last is not None:
        raise ValueError(f"{path} holds a run of {last} steps: use --resume or another --out")
    file, mine = path / "recipe.json", json.loads(json.dumps(recipe, default=str))
    theirs = _recipe(file) if last is not None and file.is_file() else mine
    changed = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
    if changed and not folder.other_recipe:
        words = ", ".join(f"{k} was {theirs.get(k)!r}, now {mine.get(k)!r}" for k in changed)
        how = (
            "another --out"
            if folder.other_recipe is None
            else "--other-recipe to go on with this one"
        )
        raise ValueError(
            f"{path} is a run of another recipe ({words}): give what it was, or {how}."
        )
    with complete(file) as temporary:
        temporary.write_text(json.dumps(mine, indent=1) + "\n")


def _recipe(file: Path) -> dict[str, Any]:
    """Return what a run was made by."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} is damaged, so whether its run is this one is unknown: remove it to go on all "
            "the same."
        )
    return found


def _check_finite(step: int, values: dict[str, float], last: int | None, path: Path) -> None:
    """Refuse metrics that are not finite: nothing is saved after them."""
    broken = [f"{k} {v}" for k, v in values.items() if not math.isfinite(v)]
    if broken:
        kept = f"the checkpoint of step {last} in {path} is good" if last else "nothing was saved"
        raise ValueError(
            f"step {step}: {', '.join(broken)} is not finite, so the run has ended; {kept}. Take a "
            "lower rate."
        )


def _add(file: Path, line: dict[str, float]) -> None:
    with file.open("a") as out:
        out.write(json.dumps({k: round(v, 5) for k, v in line.items()}) + "\n")


def _forget(file: Path, done: int) -> None:
    """Drop the lines of steps after a checkpoint, which are done again."""
    if not file.is_file():
        return
    lines = [line for line in file.read_text().splitlines(True) if 0 <= _step_of(line) <= done]
    with complete(file) as temporary:
        temporary.write_text("".join(lines))


def _step_of(line: str) -> int:
    """Return the step of a line of metrics; -1 where it is damaged."""
    try:
        found = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        found = None
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int) else -1


@contextmanager
def _events(path: Path, done: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that writes numbers for TensorBoard, if its library is there."""
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found]
    except ImportError:
        yield lambda line: None
        return
    with SummaryWriter(str(path / "tensorboard"), purge_step=done + 1) as writer:

        def write(line: dict[str, float]) -> None:
            for name in line.keys() - {"step"}:
                writer.add_scalar(name, line[name], int(line["step"]))
            writer.flush()

        yield write
