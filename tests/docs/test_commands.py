"""Every command on a page is one that the command line takes; those of the README are run."""

import importlib
import json
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import tyro
from pages import PAGES, ROOT, blocks, inline_code, name_of

from jaxmem.data.world.files import held_out
from jaxmem.experiments.__main__ import COMMANDS
from jaxmem.experiments.stream.__main__ import configured
from jaxmem.experiments.stream.__main__ import main as stream
from jaxmem.experiments.stream.config import check
from jaxmem.experiments.stream.job import prepare
from jaxmem.experiments.stream.questions import parse_ask
from jaxmem.memory.by_name import contestants, parse_budget, parse_names
from jaxmem.models.qwen.tiny_checkpoint import write_tiny
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNS = {  # module -> its functions that do the work, once the arguments are read
    "jaxmem.experiments.evaluate.__main__": (
        *("recall", "run_diagnose", "benchmark", "run_named"),
    ),
    "jaxmem.experiments.benchmark.__main__": (
        *("constancy", "footprints", "price", "price_train", "faults"),
        *("measure_kernels", "measure_remat", "measure_sessions", "measure_streams", "step"),
    ),
    "jaxmem.experiments.calibrate": ("calibrate",),
    "jaxmem.experiments.serve": ("serve",),
    "jaxmem.experiments.proxy": ("proxy",),
    "jaxmem.experiments.scorer": ("learn",),
    "jaxmem.experiments.finetune.__main__": ("finetune",),
    "jaxmem.experiments.train": ("_train", "_evaluate"),
    "jaxmem.data.jaxmem_streams.__main__": ("Builder",),
}
OTHERS = {"lmms_eval", "curl", "pip", "git", "cd", "source", "mkdocs", "pre-commit", "venv"}
COSTLY = {"--compare", "--model"}
"""These compile many programs; `tests/experiments/stream` runs such commands at small size."""
CAMERAS = ("/dev/", "rtsp:")
"""There are none where tests run; that the commands are taken is tested for them, too."""
SHORT = ("--seconds", "10", "--no-prompt")


def lines(page: Path) -> list[str]:
    """The commands of a page: lines of its `sh` blocks, and inline ones."""
    text = [line for b in blocks(page) if b.language == "sh" for line in b.text.splitlines()]
    starts = ("python -m jaxmem", "jaxmem ")
    inline = [c for c in inline_code(page) if c.startswith(starts) and "..." not in c]
    return [line for line in text if line.strip()] + inline


def commands(line: str) -> list[list[str]]:
    """The commands of a line, in words, without the folder of a program."""
    found: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        found.append([]) if word == "&&" else found[-1].append(word)
    return [[w[0].rpartition("/")[2], *w[1:]] for w in found if w]


ALL = [
    pytest.param(words, id=f"{name_of(page)}: {shlex.join(words)[:70]}")
    for page in PAGES
    for line in lines(page)
    for words in commands(line)
]


class ReadError(Exception):
    """The arguments were read, and the work would begin."""


def check_stream(argv: list[str]) -> None:
    """Read arguments of the main job as it does, up to the first frame."""
    config = configured(argv)
    check(config)
    if config.model is None:
        prepare(config, embedded())
        return
    assert [parse_ask(text) for text in config.ask] or config.video
    names = parse_names(config.compare or config.memory)
    spec = model_spec(embedded())
    contestants(names, config.memories, parse_budget(config.budget), spec, 1000)


def check_other(module: str, argv: list[str], monkeypatch) -> None:
    """Read arguments of another command, and stop where its work begins."""

    def begin(*args, **kwargs):
        raise ReadError

    command = importlib.import_module(module)
    for name in RUNS[module]:
        assert hasattr(command, name)
        monkeypatch.setattr(command, name, begin)
    with pytest.raises(ReadError):
        if module.startswith("jaxmem.data"):
            tyro.cli(command.main, args=argv)
        else:
            command.main(argv)


def check_pytest(argv: list[str]) -> None:
    """Check that the markers of a command exist, and its paths."""
    markers = [m.partition(":")[0] for m in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
    values = dict(pairwise(argv))
    assert values.get("-m", "slow") in markers
    for word in argv:
        assert not word.startswith("tests") or (ROOT / word).exists(), word


def check_extras(argv: list[str]) -> None:
    """Check that the extras of an install exist."""
    for word in argv:
        for extra in word.partition("[")[2].partition("]")[0].split(","):
            assert not extra or extra in PROJECT["project"]["optional-dependencies"], word


@pytest.mark.parametrize("words", ALL)
def test_is_taken(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, *argv = words
    if program in ("python", "python3"):
        assert argv[0] == "-m", words
        program, *argv = argv[1:]
    if program == "jaxmem":
        program, *argv = COMMANDS[argv[0]], *argv[1:]
    if program.startswith("jaxmem."):
        module = program.removesuffix(".__main__")
        module = module if module in RUNS else f"{module}.__main__"
        if module == "jaxmem.experiments.stream.__main__":
            if any(word.startswith("--help") for word in argv):
                assert stream(argv) == 0
                return
            check_stream(argv)
        else:
            check_other(module, argv, monkeypatch)
    elif program == "pytest":
        check_pytest(argv)
    else:
        assert program in OTHERS, words
        if program == "pip":
            check_extras(argv)


def test_pages_are_searched():
    assert sum("jaxmem" in " ".join(p.values[0]) for p in ALL) > 30


README = [
    pytest.param(argv, id=shlex.join(argv), marks=[pytest.mark.slow] if COSTLY & set(argv) else [])
    for argv in (
        words[3:] if words[0] != "jaxmem" else words[2:]
        for line in lines(ROOT / "README.md")
        for words in commands(line)
        if words[1:3] == ["-m", "jaxmem.experiments.stream"] or words[:2] == ["jaxmem", "stream"]
        if not any(word.startswith(CAMERAS) for word in words)
    )
]


@pytest.mark.parametrize("argv", README)
def test_stream_commands_of_the_readme_run(argv, tmp_path, monkeypatch, capsys):
    """On 10 s of stream. In full they are in `experiments`; the tests' command is this one."""
    held_out(7, 10, tmp_path / "world")[0].rename(tmp_path / "talk.mp4")
    write_tiny(tmp_path / "Qwen" / "Qwen2.5-VL-3B-Instruct")  # in place of the download
    monkeypatch.chdir(tmp_path)
    assert stream([*argv, *SHORT]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out/stream/report.json").read_text())
    wanted = configured(argv)
    assert [r["memory"] for r in report["results"]] == list(
        parse_names(wanted.compare or wanted.memory)
    )
    assert all(len(r["answers"]) >= max(1, len(wanted.ask)) for r in report["results"])
