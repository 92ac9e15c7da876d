import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmem.models.hf.tensors import write_tensors


def test_what_is_written_is_read(tmp_path):
    there = write_tensors(tmp_path / "new" / "a.safetensors", {"x": np.arange(3)}, {"k": "v"})
    np.testing.assert_array_equal(load_file(there)["x"], np.arange(3))


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_others_may_read_what_they_may_read_elsewhere(tmp_path):
    there = write_tensors(tmp_path / "a.safetensors", {"x": np.arange(3)})
    (tmp_path / "plain").touch()
    assert there.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    there = write_tensors(tmp_path / "a.safetensors", {"x": np.arange(3)})
    with pytest.raises(Exception, match="object"):
        write_tensors(there, {"x": np.array([object()])})
    np.testing.assert_array_equal(load_file(there)["x"], np.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
