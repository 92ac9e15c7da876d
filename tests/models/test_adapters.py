"""Adapters of an embedded model by file, and by the name of those that come with the package."""

import jax
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.experiments.evaluate.recall_streams import StreamsConfig
from jaxmem.experiments.stream.__main__ import main as stream
from jaxmem.models import adapters
from jaxmem.training import lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of adapters that stands for the package's own."""
    model, path = jm.load("tiny"), tmp_path_factory.mktemp("adapters")
    made = lora.init(model.params, jax.random.key(0), rank=2, at=lora.QUERIES)
    made = jax.tree.map(lambda x: x + 0.1, made)
    file = path / "tiny-mine.safetensors"
    lora.save(file, made, base=lora.digest(model.params), alpha=4, name=model.name)
    return path


def test_python_and_the_command_line_find_the_same_adapters(folder, monkeypatch):
    """By file and by name; abstract models have them, too, and the base stays as it was."""
    monkeypatch.setattr(adapters, "ADAPTERS", folder)
    assert adapters.shipped() == ("tiny-mine",)
    file = folder / "tiny-mine.safetensors"
    by_file = jm.load("tiny", adapter=file).params
    for params in (
        jm.load("tiny", adapter="tiny-mine").params,
        StreamsConfig(adapter=file).model.params,
        StreamsConfig(adapter="tiny-mine").model.params,
    ):
        jax.tree.map(np.testing.assert_array_equal, by_file, params)
    kernel = lambda params: params["decoder"]["layers"]["q"]["kernel"]
    assert np.any(kernel(by_file) != kernel(jm.load("tiny").params))
    abstract = jm.load("tiny", adapter=file, abstract=True).params
    assert kernel(abstract).shape == kernel(by_file).shape
    with pytest.raises(ValueError, match="was trained on tiny .*not on these weights"):
        jm.load("tiny-mamba2", adapter=file)


def test_what_is_no_file_and_no_name_is_one_plain_sentence(tmp_path, capsys):
    """The same one from Python and from the command line."""
    argv = ["--adapter", "tiny-nobody", "--seconds", "8", "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="^tiny-nobody is no file of adapters") as error:
        jm.load("tiny", adapter="tiny-nobody")
    assert str(error.value).endswith("or the name tiny-omnimem.")
    assert stream(argv) == 2 and str(error.value) in " ".join(capsys.readouterr().err.split())


def test_the_adapters_of_the_package_change_every_layer():
    assert adapters.shipped() == ("tiny-omnimem",)
    kernels = [
        jm.load("tiny", adapter=name).params["decoder"]["layers"]["q"]["kernel"]
        for name in (None, "tiny-omnimem")
    ]
    assert np.all(np.any(kernels[0] != kernels[1], axis=(1, 2)))


@pytest.mark.slow
def test_the_main_job_says_which_adapters_it_uses(tmp_path, capsys):
    argv = ["--adapter", "tiny-omnimem", "--seconds", "8", "--no-prompt", "--out", str(tmp_path)]
    assert stream(argv) == 0
    assert "tiny-omnimem" in capsys.readouterr().out
