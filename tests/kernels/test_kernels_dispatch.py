"""Which back end None takes: by what is preferred, on a GPU, and what can do it."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxmem.kernels import dispatch


def backend(name, able=True):
    def run():
        if not able:
            raise NotImplementedError("not this")
        return name

    return run


BACKENDS = {"xla": backend("xla"), "fast": backend("fast"), "narrow": backend("narrow", False)}


def test_none_takes_the_first_that_can(monkeypatch):
    take = lambda on_gpu: dispatch.call(BACKENDS, None, on_gpu=on_gpu)
    assert take(("fast",)) == take(()) == "xla"  # there is no GPU here
    monkeypatch.setattr(dispatch, "on_ampere", lambda: True)
    assert take(("fast",)) == take(("narrow", "fast")) == "fast"
    assert take(()) == take(("narrow",)) == take(("absent",)) == "xla"
    with dispatch.preferring("xla"):
        assert take(("fast",)) == "xla"
    with dispatch.preferring("narrow"), dispatch.preferring(None):
        assert take(("fast",)) == "fast"
    assert take(("fast",)) == "fast"
    assert dispatch.call(BACKENDS, "xla", on_gpu=("fast",)) == "xla"
    monkeypatch.setattr(dispatch, "DEFAULT", ("narrow",))
    with pytest.raises(NotImplementedError, match="narrow: not this"):
        take(())


@pytest.mark.parametrize(
    ("platform", "capability", "kernels"),
    [("gpu", "9.0", True), ("gpu", "8.0", True), ("gpu", "7.5", False), ("gpu", "gfx90a", False),
     ("gpu", "10.0", True), ("cpu", None, False), ("tpu", None, False)],
)  # fmt: skip
def test_kernels_are_for_nvidia_from_ampere_on(monkeypatch, platform, capability, kernels):
    more = {} if capability is None else {"compute_capability": capability}
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform=platform, **more)])
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert dispatch.on_ampere() == kernels
    here = jax.local_devices(backend="cpu")[0]
    with jax.default_device(here):  # what is placed on a CPU beside a GPU
        assert not dispatch.on_ampere()
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("m",), axis_types=(AxisType.Auto,))):
        assert not dispatch.on_ampere()
