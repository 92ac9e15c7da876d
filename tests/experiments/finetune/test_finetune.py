"""`finetune`: it resumes exactly, survives a kill, ends where it must; others load its files."""

import dataclasses
import json
import time
from pathlib import Path

import jax
import killing
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmem as jm
from jaxmem.experiments.__main__ import main
from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.experiments.finetune import __main__ as command
from jaxmem.experiments.finetune.config import FinetuneConfig
from jaxmem.experiments.finetune.loops import draw, loops_of
from jaxmem.experiments.stream.__main__ import main as stream
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded

SMALL = tiny.TinyConfig(
    width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
)
SIZES = ["--budget", "8KiB", "--streams", "2", "--seconds", "8", "--moments", "2"]
SIZES += ["--questions", "2", "--chunk-seconds", "2", "--save-every", "2"]
NO_TABLE = ["--test-seconds"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    tiny.save(path, tiny.init(SMALL, jax.random.key(0)), SMALL)
    return path


def words(base, out, *more):
    return [*SIZES, "--base", str(base), "--out", str(out), *more]


def lines(out: Path):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def arrays(out):
    return load_file(out / "adapter.safetensors")


def test_a_stopped_run_goes_on_to_the_same_adapters(base, tmp_path, capsys, monkeypatch):
    """The base stays as it is; lines of steps after the checkpoint are written again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    before, fast = base.read_bytes(), ["--steps", "4", "--mode", "read", *NO_TABLE]
    assert main(["finetune", *words(base, whole, *fast)]) == 0
    assert base.read_bytes() == before and "4 steps" in " ".join(capsys.readouterr().out.split())
    made = command.draw
    broken = lambda *given: made(*given) if given[-1] < 3 else 1 / 0
    monkeypatch.setattr(command, "draw", broken)
    with pytest.raises(ZeroDivisionError):
        main(["finetune", *words(base, parts, *fast)])
    monkeypatch.undo()
    assert [p.name for p in (parts / "checkpoints").iterdir()] == ["2"]
    with (parts / "metrics.jsonl").open("a") as file:  # as a kill leaves it
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    assert main(["finetune", *words(base, parts, *fast)]) == 2
    assert "use --resume" in capsys.readouterr().err
    assert main(["finetune", *words(base, parts, *fast, "--rate", "0.1", "--resume")]) == 2
    assert "rate was 0.004, now 0.1" in capsys.readouterr().err
    assert main(["finetune", *words(base, parts, *fast, "--resume")]) == 0
    jax.tree.map(np.testing.assert_array_equal, arrays(whole), arrays(parts))
    assert [line["step"] for line in lines(parts)] == [line["step"] for line in lines(whole)] == [4]
    adapted = jm.load(base, adapter=whole / "adapter.safetensors").params
    kernel = lambda params: params["decoder"]["layers"]["q"]["kernel"]
    assert np.any(kernel(adapted) != kernel(embedded(base).params))
    merged = embedded(whole / "tiny.safetensors").params
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, adapted, merged)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["adapter", "all"])
def test_what_was_trained_is_measured_and_loaded(base, tmp_path, capsys, weights):
    """The table's figures are those of `evaluate recall` with what the run wrote."""
    out = tmp_path / "run"
    table = ["--test-seconds", "8", "--test-streams", "2", "--test-questions", "8"]
    argv = words(base, out, "--steps", "4", "--full-every", "2", *table, "--weights", weights)
    assert main(["finetune", *argv]) == 0
    printed = capsys.readouterr().out
    assert "full attention" in printed and "omnimem 8KiB" in printed
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["memory"] for row in rows][-1] == "full attention" and len(rows) == 4
    for row in rows:
        gain = row["after"]["share"] - row["before"]["share"]
        assert row["gain"]["share"] == pytest.approx(gain, abs=1e-3)
    recall = f"recall --memories omnimem --budgets 8KiB --seconds 8 --out {tmp_path / 'recall'} "
    recall += "--timed= --streams 2 --questions 8 --chunk-seconds 2 "
    adapter = f"--weights {base} --adapter {out / 'adapter.safetensors'}"
    recall += adapter if weights == "adapter" else f"--weights {out / 'tiny.safetensors'}"
    assert evaluate.main(recall.split()) == 0
    cells = json.loads((tmp_path / "recall" / "results.json").read_text())["cells"]
    assert cells[0]["all"]["share"] == rows[0]["after"]["share"]


@pytest.mark.slow
def test_the_stream_command_answers_with_an_adapter(base, tmp_path, capsys):
    """And refuses one of other weights."""
    out = tmp_path / "run"
    assert command.main(words(base, out, "--steps", "2", "--rate", "0.5", *NO_TABLE)) == 0
    adapter, answers = str(out / "adapter.safetensors"), []
    argv = ["--weights", str(base), "--seconds", "8", "--questions", "8", "--no-prompt", "--budget"]
    argv += ["8KiB", "--out", str(tmp_path / "stream")]
    for more in ([], ["--adapter", adapter]):
        assert stream([*argv, *more]) == 0, capsys.readouterr().err
        report = json.loads((tmp_path / "stream" / "report.json").read_text())
        answers.append([one["answer"] for one in report["results"][0]["answers"]])
    assert answers[0] != answers[1]
    capsys.readouterr()
    assert stream(["--adapter", adapter, "--seconds", "8", "--out", str(tmp_path / "no")]) == 2
    assert "was trained on small" in capsys.readouterr().err


def test_a_step_is_a_function_of_config_and_number(base):
    config = FinetuneConfig(
        budget="8KiB", streams=6, seconds=8, moments=2, questions=2, chunk_seconds=2
    )
    model = embedded(base)
    loops = loops_of(config, model)
    one, again, other = (draw(config, model, loops, step) for step in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.example.ids, other.example.ids)
    slots = np.unique(one.example.aux.capacity)
    assert len(loops.programs) == 1 and len(slots) == 3 and slots[0] < slots[-1] / 3
    full = dataclasses.replace(config, full_every=2)
    loops = loops_of(full, model)
    assert [draw(full, model, loops, step).which for step in range(4)] == [0, 1, 0, 1]
    each = dataclasses.replace(config, memory="h2o")
    loops = loops_of(each, model)
    assert len(loops.programs) == 3 and not loops.numbers
    assert len({draw(each, model, loops, step).which for step in range(12)}) == 3


REFUSED = [
    (["--memory", "moviechat"], 'take mode "read"'),
    (["--memory", "rekv", "--budget", "64KiB"], "--bank.space device"),
    (["--budget", "1KiB"], "of --budget 1KiB"),
    (["--shares", "2"], "above 0 and at most 1"),
    (["--weights", "all", "--rank", "4"], "--rank has no effect"),
    (["--hermes.mix", "qwen"], "--hermes.* has no effect"),
    (["--other-recipe"], "without --resume"),
    (["--resume"], "no checkpoint to resume"),
    (["--steps", "0"], "--steps must be at least 1"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(base, tmp_path, capsys, more, message):
    assert command.main(words(base, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints" / "0").exists()


def test_a_model_without_slots_is_refused(tmp_path, capsys):
    sizes, path = (
        dataclasses.replace(SMALL, mixer="mamba2", attend="none"),
        tmp_path / "m.safetensors",
    )
    tiny.save(path, tiny.init(sizes, jax.random.key(0)), sizes)
    assert command.main(words(path, tmp_path)) == 2
    assert "no slots to train" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(base, tmp_path, capsys):
    """With its step; `tests/training/test_runs.py` has a run with a checkpoint before it."""
    out = tmp_path / "run"
    assert command.main(words(base, out, "--steps", "6", "--rate", "1e30", *NO_TABLE)) == 2
    error = capsys.readouterr().err
    assert "step 2: loss nan" in error and "nothing was saved" in error
    assert not (out / "adapter.safetensors").exists()


def _run(argv):
    raise SystemExit(command.main(argv))


@pytest.mark.slow
def test_a_kill_loses_the_steps_since_the_last_checkpoint(base, tmp_path):
    """kill -9 at any moment: the run goes on from a whole checkpoint, to the same adapters."""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    argv = words(base, out, "--steps", "12", "--save-every", "3", *NO_TABLE)
    child = killing.begin(_run, tmp_path / "log", argv)
    checkpoints, limit = out / "checkpoints", time.monotonic() + 300
    while not (checkpoints / "3").is_dir():
        assert child.is_alive() and time.monotonic() < limit, (tmp_path / "log").read_text()
        time.sleep(0.05)
    assert killing.kill(child)
    found = [int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()]
    assert found and max(found) % 3 == 0
    assert command.main([*argv, "--resume"]) == 0
    assert command.main(words(base, whole, "--steps", "12", "--save-every", "3", *NO_TABLE)) == 0
    jax.tree.map(np.testing.assert_array_equal, arrays(out), arrays(whole))
    assert lines(out)[-1]["step"] == 12
