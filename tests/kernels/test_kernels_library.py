"""Attention by jax.nn: what it takes, one segment, and cuDNN's calls without a GPU."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import CASES, build, on_device, rope_of
from test_kernels_lowering import inputs, some_gpu

from jaxmem.kernels.attend import attend
from jaxmem.rope import rope_1d


@pytest.mark.parametrize("name", ["grouped", "nothing", "own_sets"])
def test_one_segment_needs_no_merge(name):
    case = next(c for c in CASES if c.name == name)
    q, segments, _ = on_device(build(case))

    def run(implementation):
        more = {"rope": rope_of(case), "implementation": implementation}
        return jax.jit(lambda q, s: attend(q, [s], **more))

    library = run("jax_nn")
    for ours, theirs in zip(library(q, segments[0]), run(None)(q, segments[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # The pass for the log-sum-exp is gone if nobody asks for it.
    logs = lambda f: jax.jit(f).lower(q, segments[0]).compile().as_text().count(" log(")
    assert logs(library) > 0 and logs(lambda *given: library(*given)[0]) == 0


def cudnn(q, segments, dim=128):
    return attend(q, segments, rope=rope_1d(dim), implementation="cudnn")


def test_without_cudnn_the_next_back_end_is_tried():
    if jax.default_backend() == "gpu":
        pytest.skip("there may be a cuDNN.")
    q, segments, _, _ = inputs((), (64, 4, 2, 128), 32)
    with pytest.raises(NotImplementedError, match="cuDNN"):
        jax.eval_shape(cudnn, q, segments)


def test_what_cannot_be_expressed_is_said():
    q, segments, _, _ = inputs((), (64, 4, 2, 128), 256, jnp.float32)
    with pytest.raises(NotImplementedError, match="16-bit floats"):
        jax.eval_shape(cudnn, q, segments)
    q, segments, _, _ = inputs((), (16384, 28, 4, 128), 4096)
    with pytest.raises(NotImplementedError, match="mask of 16384 rows by 16384 keys"):
        jax.eval_shape(cudnn, q, segments)
    with pytest.raises(NotImplementedError, match="too large"):
        jax.eval_shape(
            lambda *x: attend(*x, rope=rope_1d(128), implementation="jax_nn"), q, segments
        )
    with pytest.raises(NotImplementedError, match="no number per key"):
        biased = [s._replace(bias=s.valid.update(dtype=jnp.float32)) for s in segments]
        jax.eval_shape(cudnn, q, biased)
    other = q.update(dtype=jnp.float16)
    with pytest.raises(NotImplementedError, match="of one type"):
        jax.eval_shape(cudnn, other, segments)


def test_without_tokamax_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokamax", None)
    q, segments, _, _ = inputs((), (64, 4, 2, 128), 32)
    with pytest.raises(NotImplementedError, match="tokamax is not installed"):
        jax.eval_shape(
            lambda *x: attend(*x, rope=rope_1d(128), implementation="tokamax"), q, segments
        )


def test_cudnn_takes_the_calls(monkeypatch):
    """Lowered with a cuDNN that is only said to be there: types, shapes and masks fit its rules."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")

    class Versions:
        cudnn_get_version = staticmethod(lambda: 91000)

    monkeypatch.setattr(fused, "cuda_versions", Versions)
    q, segments, _, _ = inputs((16,), (1024, 28, 4, 128), 8192)
    with some_gpu():
        lowered = jax.jit(cudnn).trace(q, segments).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("stablehlo.custom_call @__cudnn$fmha") == len(segments)
