"""The main job: stream a video with sound through a memory of fixed size, and ask about it.

    python -m jaxmem.experiments.stream
    python -m jaxmem.experiments.stream --video clip.mp4 --ask "0:10: Which shape is there now?"
    python -m jaxmem.experiments.stream --compare omnimem,recent,uniform,full
    python -m jaxmem.experiments.stream --model DIR --video clip.mp4 --ask "end: What happens?"

See docs/stream.md.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from jax.errors import JaxRuntimeError
from rich.console import Console

from jaxmem.experiments.devices import join_processes
from jaxmem.experiments.memories import help_of, read_options, split_options
from jaxmem.experiments.parsing import parse, shortened
from jaxmem.experiments.stream.config import StreamConfig
from jaxmem.experiments.stream.interrupt import (
    ABORTED,
    NOTHING,
    interruptible,
    leave_threads_behind,
)
from jaxmem.experiments.stream.job import Plan, perform, plan, prepare
from jaxmem.experiments.stream.out_of_memory import asked_and_price, is_out_of_memory
from jaxmem.experiments.stream.output import collect, prompt, show, show_files, write
from jaxmem.experiments.stream.questions import AT_THE_END
from jaxmem.experiments.stream.source import UnreadableError, find_model, find_source, open_source
from jaxmem.experiments.stream.terminal import typed_lines
from jaxmem.models.tiny.embedded import is_embedded
from jaxmem.report.results import as_dict

STREAMED, BAD_ARGUMENTS, UNREADABLE, UNWRITTEN, UNREAD = 0, 2, 3, 4, 141
"""Exit statuses."""
plain = partial(Console, highlight=False, markup=False, emoji=False)
"""Names of files, questions and answers are shown as they are, `[/b]` and `:a:` too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: something was streamed; 2: bad arguments, or no room for what they ask; 3: nothing could be
    read; 4: something could not be written; 130: interrupted before anything was streamed; 141:
    nobody reads the output.
    """
    errors = plain(stderr=True)
    try:
        status = _main(sys.argv[1:] if argv is None else argv, errors)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = UNREAD
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS):
            raise
        _say(errors, f"it could not be written: {error}")
        status = UNWRITTEN
    except UnreadableError as error:
        _say(errors, error)
        status = UNREADABLE
    except KeyboardInterrupt:
        errors.print(NOTHING, style="red")
        status = ABORTED
    leave_threads_behind(status)
    return status


def _say(errors: Console, reason: object) -> None:
    errors.print(f"error: {shortened(str(reason))}", style="red", soft_wrap=True)


def _main(argv: Sequence[str], errors: Console) -> int:
    def refuse(reason: object) -> int:
        _say(errors, reason)
        return BAD_ARGUMENTS

    config, ready = None, None
    with ExitStack() as terminal:
        try:
            config = configured(argv)
            if config.mesh is not None and (number := join_processes()):
                config = replace(config, out=config.out / f"process{number}", prompt=False)
            console = plain(stderr=config.json)
            with interruptible() as stop:
                with ExitStack() as media:
                    with stop.raising():
                        ready = _ready(config, console, media)
                    wanted = config.prompt and not config.json and config.video != "-"
                    lines = typed_lines(wanted=wanted, hidden=console.is_terminal)
                    typed = terminal.enter_context(lines)
                    stop.tidy = terminal.close
                    done = perform(ready, console, stop, typed)
                done, held = collect(done)
                try:
                    show(done, console)
                finally:  # also when nobody reads the tables any more
                    done = write(done, held)
        except SystemExit as stop:  # the parser has said what was wrong, or printed the help
            return stop.code if isinstance(stop.code, int) else BAD_ARGUMENTS
        except ValueError as error:  # also a memory and a model that do not go together
            return refuse(error)
        except JaxRuntimeError as error:
            if config is None or config.model is None or not is_out_of_memory(error):
                raise
            return refuse(asked_and_price(config, ready))
        show_files(done, console)
        if config.prompt and sys.stdin.isatty() and not config.json and not done.broken:
            done = prompt(done, console, typed)
    if config.json:
        print(json.dumps(as_dict(done.report), indent=1, allow_nan=False, default=str))
    if done.broken:
        return refuse(done.broken)
    if done.unwritten:
        _say(errors, done.unwritten)
        return UNWRITTEN
    return STREAMED


def configured(argv: Sequence[str]) -> StreamConfig:
    """Return the config of a command line, with the options of memories.

    Raises:
      ValueError: if a value makes no sense.
      SystemExit: if the arguments do not parse, or help was asked for.
    """
    if "--help-memory" in argv:
        help_of(next(iter(argv[argv.index("--help-memory") + 1 :]), "").replace("-", "_"))
    rest, words = split_options(argv)
    config = parse(StreamConfig, rest, prog="python -m jaxmem.experiments.stream")
    if config.model is not None and config.weights is None and is_embedded(config.model):
        config = replace(config, model=None, weights=Path(config.model))
    return replace(config, memories=read_options(words, config.memories))


def _ready(config: StreamConfig, console: Console, media: ExitStack) -> Plan:
    """Return the plan of a run; its source is open as long as `media`."""
    job = prepare(config, find_model(config, console))
    usual = AT_THE_END if config.model is None else job.model.probes
    source = find_source(config, job.questions, console, usual)
    reader = media.enter_context(open_source(source, job.model))
    return plan(job, source, reader)


if __name__ == "__main__":
    raise SystemExit(main())
