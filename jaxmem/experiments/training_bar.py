"""The progress bar of a command that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def training_bar(
    what: str, total: int, console: Console, *, memory: float
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Show steps with their loss and accuracy; yield what is called after every step.

    Args:
      what: is done.
      total: steps.
      console: that shows the bar.
      memory: share of the figures before in those that are shown, from 0 to 1.
    """
    said = TextColumn("loss {task.fields[loss]:.3f} accuracy {task.fields[accuracy]:.3f}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), said, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, loss=float("nan"), accuracy=0.0)
        smooth: dict[str, float] = {}

        def report(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                smooth[name] = memory * smooth.get(name, value) + (1 - memory) * value
            progress.update(task, completed=step, loss=smooth["loss"], accuracy=smooth["accuracy"])

        yield report
