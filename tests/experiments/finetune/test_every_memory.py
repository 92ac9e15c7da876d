"""`finetune` with every memory: it trains to a file that others take, or says why not.

Minutes for all names: each compiles a gradient through the memory and the questions about it.
"""

import json
import re

import jax
import pytest
from safetensors.numpy import load_file

import jaxmem as jm
from jaxmem.decoder.scorer import init_scorer
from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.experiments.finetune import __main__ as command
from jaxmem.memory import MEMORIES
from jaxmem.models.scorer import save_scorer
from jaxmem.models.tiny import tiny

pytestmark = pytest.mark.slow
SMALL = tiny.TinyConfig(
    width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
)
SHORT = "--streams 1 --seconds 4 --moments 1 --questions 2 --chunk-seconds 2 --shares 1 --steps 1"
BUDGET = "8KiB"
LARGER = {"rekv": "64KiB", "flexmem": "64KiB", "flash_vstream": "64KiB"}
"""Budgets of memories whose smallest is larger."""
READ = 'take mode "read"'
REFUSED = {
    "rekv": "--bank.space device", "flexmem": "--bank.space device", "retention": "as --scorer",
    **dict.fromkeys(("flash_vstream", "flash_vstream_qwen", "moviechat", "ma_lmm"), READ),
    "memory_vla": READ, "simple_stream": READ,
}  # fmt: skip
"""Name -> the repair that its refusal names, and that the test then takes."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    tiny.save(path, tiny.init(SMALL, jax.random.key(0)), SMALL)
    save_scorer(path.parent / "scorer", init_scorer(jm.load(path).decoder, jax.random.key(1)))
    return path


@pytest.mark.parametrize("name", MEMORIES)
def test_it_trains_to_a_file_that_others_take_or_is_refused(base, tmp_path, capsys, name):
    budget = LARGER.get(name, BUDGET)
    argv = f"--memory {name} --budget {budget} {SHORT} --base {base} --test-seconds".split()
    refusal, scorer = REFUSED.get(name), []
    if refusal:
        assert command.main([*argv, "--out", str(tmp_path / "no")]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert refusal in error and len(re.findall(r"[.?!] [A-Z]", error)) == 0, error
        assert not (tmp_path / "no" / "adapter.safetensors").exists()
        if name == "retention":
            scorer = ["--scorer", str(base.parent / "scorer")]
        argv += scorer or (["--mode", "read"] if refusal == READ else refusal.split())
    out = tmp_path / "run"
    assert command.main([*argv, "--out", str(out)]) == 0, capsys.readouterr().err
    file = out / "adapter.safetensors"
    changed = [x for name, x in load_file(file).items() if name.endswith(".b") and x.any()]
    assert changed, "a step changes something"
    assert jm.load(base, adapter=file).decoder == jm.load(base).decoder
    recall = f"recall --memories {name} --budgets {budget} --seconds 8 --out {tmp_path / 'recall'} "
    recall += "--timed= --streams 1 --questions 4 --chunk-seconds 2 "
    more = ["--weights", str(base), "--adapter", str(file), *scorer]
    assert evaluate.main([*recall.split(), *more]) == 0, capsys.readouterr().err
    cells = json.loads((tmp_path / "recall" / "results.json").read_text())["cells"]
    assert [cell["memory"] for cell in cells] == [name]
