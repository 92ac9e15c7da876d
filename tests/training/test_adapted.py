"""Adapters by file, and by the name of those that come with the package."""

import jax
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.training import adapted, lora


def test_a_name_is_a_file_of_the_package(tmp_path, monkeypatch):
    model = jm.load("tiny")
    made = lora.init(model.params, jax.random.key(0), rank=2, at=lora.QUERIES)
    made = jax.tree.map(lambda x: x + 0.1, made)
    path = tmp_path / "tiny-mine.safetensors"
    lora.save(path, made, base=lora.digest(model.params), alpha=4, name=model.name)
    monkeypatch.setattr(adapted, "ADAPTERS", tmp_path)
    assert adapted.shipped() == ("tiny-mine",)
    by_name, by_file = (adapted.with_adapter(model, x).params for x in ("tiny-mine", path))
    jax.tree.map(np.testing.assert_array_equal, by_name, by_file)
    kernel = lambda params: params["decoder"]["layers"]["q"]["kernel"]
    assert np.any(kernel(by_name) != kernel(model.params))
    with pytest.raises(ValueError, match="no file tiny-nobody.*called tiny-mine"):
        adapted.with_adapter(model, "tiny-nobody")
