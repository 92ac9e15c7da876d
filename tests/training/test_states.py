"""Embedded models with a state: one pass computes what streaming and asking do, and they train."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from embedded_states import SMALL

import jaxmem as jm
from jaxmem.data.world import synthetic as sy
from jaxmem.experiments import train as command
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.mixers import MIXERS
from jaxmem.training import batches, loop, losses, optimizers

START = jax.jit(tiny.init, static_argnums=0)
SECONDS, COUNT = 5, 6
CASES = [
    ("mamba2", "none", 2),
    *(
        pytest.param(name, attend, layers, marks=pytest.mark.slow)
        for name in MIXERS
        for attend, layers in (("none", 2), ("one_in_four", 4))
        if (name, attend) != ("mamba2", "none")
    ),
]


def drawn(config, seed=3):
    """Weights of which none is 0 or 1 by accident."""
    shapes, rng = START(config, jax.random.key(seed)), np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape)), shapes)


@pytest.mark.parametrize(("mixer", "attend", "layers"), CASES)
def test_one_pass_is_streaming_and_asking(mixer, attend, layers, tmp_path):
    """From the weights file, piece by piece, every question at its time."""
    config = tiny.sized(mixer, attend, dataclasses.replace(SMALL, layers=layers))
    path = tmp_path / f"{tiny.name_of(config)}.safetensors"
    tiny.save(path, drawn(config), config)
    model, world = jm.load(path), sy.world((3, 1), SECONDS, sy.level("standard"))
    sizes = SECONDS, COUNT, sy.level("standard"), config
    batch, asked = batches.one((3, 1), *sizes, disturb=False)
    assert len(set(batch.time.tolist())) > 2
    one_pass = jax.jit(losses.forward, static_argnums=1)
    expected = np.asarray(one_pass(model.params, config, batches.stack([batch]))[0][0])

    session, found = jm.Session(model, jm.Full(SECONDS * config.tokens)), {}
    frames, samples = sy.frames(world, np.arange(SECONDS) + 0.5), sy.sound(world)
    for second, sound in enumerate(samples.reshape(SECONDS, -1)):
        session.feed(SimpleNamespace(frames=frames[second : second + 1], samples=sound))
        for i in np.flatnonzero(batch.time == second + 1):
            found[int(i)] = session.ask(asked[i].text).logits
    assert sorted(found) == list(range(COUNT))
    logits = np.stack([found[i] for i in range(COUNT)])
    np.testing.assert_allclose(logits, expected, atol=3e-4 * expected.std())
    assert np.ptp(expected, axis=0).max() > 0.1 * expected.std()  # what was seen and asked counts


@pytest.mark.parametrize("attend", ["none", "one_in_four"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_has_a_model_of_tinys_size(mixer, attend):
    def count(config):
        made = jax.eval_shape(lambda: tiny.init(config, jax.random.key(0)))
        return sum(x.size for x in jax.tree.leaves(made))

    config = tiny.sized(mixer, attend)
    assert abs(count(config) / count(tiny.TinyConfig()) - 1) < 0.005
    kinds = tiny.decoder_config(config).kinds
    assert [kind is None for kind in kinds] == [False] * 3 + [attend == "one_in_four"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_muon_turns_the_projections_of_mixers_only(mixer):
    config = tiny.sized(mixer, "none")
    shapes = jax.eval_shape(lambda: tiny.init(config, jax.random.key(0)))
    chosen = optimizers.matrices(shapes)["decoder"]["mixers"][0]
    kernels = {n: leaf["kernel"] for n, leaf in chosen["mixer"].items() if "kernel" in (leaf or {})}
    turned = {name for name, found in kernels.items() if found is not None}
    expected = {"mamba2": {"in"}, "gated_delta": {"qkv", "z"}, "mom": {"q", "k", "v", "z"}}
    assert turned == expected.get(mixer, {"q", "k", "v"}) | {"out"}
    assert chosen["up"]["kernel"].reduction_axis == 1 and chosen["norm"]["scale"] is None


RECIPE = """
from jaxmem.models.tiny.tiny import TinyConfig
from jaxmem.training.loop import Stage, TrainConfig

def get_config():
    model = TinyConfig(width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_width=128,
                       stem_width=16)
    return TrainConfig(model=model, stages=(Stage(3, 2, 3, 3),), save_every=2)
"""


def test_command_trains_stops_resumes_and_measures(tmp_path, monkeypatch, capsys):
    """From nothing to a file that other commands take; what broke off goes on."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    words = ["--config", str(tmp_path / "recipe.py"), "--mixer", "mamba2", "--out", str(tmp_path)]

    def broken(config, step, made=loop.batch_of):
        if step == 2:
            raise RuntimeError("the machine went away")
        return made(config, step)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="went away"):
        patch.setattr(loop, "batch_of", broken)
        command.main(words)
    weights = tmp_path / "tiny-mamba2.safetensors"
    before, config = tiny.load(weights)
    assert (config.mixer, config.attend, config.layers) == ("mamba2", "none", 1)
    assert command.main(words) == 2 and "--resume" in capsys.readouterr().err
    other = [word.replace("mamba2", "linear") for word in words]
    assert command.main([*other, "--resume"]) == 2
    assert "a run of tiny-mamba2.safetensors, not of" in " ".join(capsys.readouterr().err.split())
    assert command.main([*words, "--resume"]) == 0
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3
    same = jax.tree.map(np.array_equal, before, tiny.load(weights)[0])
    assert not any(jax.tree.leaves(same["decoder"]["mixers"][0]["mixer"]["in"]))
    measure = ["--evaluate", "--weights", str(weights), "--seconds", "3", "--questions", "48"]
    assert command.main(measure) == 0
    assert "n=48" in capsys.readouterr().out


def test_bad_models_are_refused(capsys):
    assert command.main(["--mixer", "elephant"]) == 2
    assert "mixer is one of mamba2, gated_delta, linear, mom, titans" in capsys.readouterr().err
    for attend in ("one_in_four", "none"):
        assert command.main(["--attend", attend]) == 2
        assert f"--attend {attend} has no effect without --mixer" in capsys.readouterr().err
    with pytest.raises(ValueError, match="of 3 layers none would attend"):
        tiny.sized("mamba2", "one_in_four", tiny.TinyConfig(layers=3))
    with pytest.raises(ValueError, match="leaves no weights for MLPs"):
        tiny.sized("mamba2", "none", dataclasses.replace(SMALL, mlp_width=24))
    with pytest.raises(ValueError, match="name a mixer if some layers do not attend"):
        tiny.decoder_config(tiny.TinyConfig(attend="none"))
