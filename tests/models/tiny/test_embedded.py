"""Models of the embedded kind by name and file, from Python and on the command line."""

import json
from pathlib import Path

import pytest
from embedded_states import SMALL, STATES, write

import jaxmem as jm
from jaxmem.experiments.stream.__main__ import main
from jaxmem.models.tiny import embedded, tiny


@pytest.fixture(
    scope="module", params=["none", pytest.param("one_in_four", marks=pytest.mark.slow)]
)
def weights(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("weights"), tiny.sized("mamba2", request.param, SMALL))


def test_the_main_job_on_a_file(weights, tmp_path, capsys):
    words = f"--model {weights} --seconds 6 --questions 3 --no-prompt --out {tmp_path}".split()
    assert main([*words, "--budget", "64KiB"]) == 0
    capsys.readouterr()
    report = json.loads((tmp_path / "report.json").read_text())
    (result,) = report["results"]
    assert report["model"] == weights.stem and len(result["answers"]) == 3
    alone = "hybrid" not in weights.stem
    assert (result["nbytes"] == STATES) == alone and result["nbytes"] <= 64 * 1024
    assert (tmp_path / "memory_map_omnimem.png").exists() != alone


def test_names_are_those_that_come_with_the_package(monkeypatch, tmp_path):
    """A model that nobody has trained is not listed; one that is there is found by its name."""
    here = {path.stem for path in Path(tiny.__file__).parents[2].glob("assets/*.safetensors")}
    assert set(embedded.shipped()) == here - {"tiny_scorer"} and "tiny" in here
    with pytest.raises(ValueError, match=r"of the package \(.*tiny.*\)"):
        jm.load("tiny-nobody")
    write(tmp_path, tiny.sized("mamba2", "none", SMALL))
    monkeypatch.setattr(embedded, "_ASSETS", tmp_path)
    model = jm.load("tiny-mamba2")
    assert (model.name, model.decoder.attends) == ("tiny-mamba2", 0)
    assert jm.load("tiny-mamba2", abstract=True).params["vision"]["norm"]["scale"].shape == (32,)
    with pytest.raises(ValueError, match="is no file of adapters for tiny-mamba2"):
        jm.load("tiny-mamba2", adapter=tmp_path)


def test_two_models_are_refused(capsys):
    assert main(["--model", "tiny", "--weights", "x.safetensors"]) == 2
    assert "two models" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", embedded.shipped())
def test_every_model_of_the_package_is_the_main_job(name, tmp_path):
    argv = ["--model", name, "--seconds", "8", "--questions", "2", "--no-prompt", "--json"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["end"]["kind"] == "end" and len(report["results"][0]["answers"]) == 2
