"""Training: the one-pass forward keeps its promises, it learns, and a stopped run continues."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.data.world import synthetic as sy
from jaxmem.decoder import decoder
from jaxmem.experiments import train as command
from jaxmem.experiments.parsing import read
from jaxmem.models.tiny import tiny
from jaxmem.report.results import Accuracy
from jaxmem.rope import angles, rotate
from jaxmem.training import batches, loop, losses, optimizers
from jaxmem.training.evaluation import evaluate

SMALL = tiny.TinyConfig(width=32, layers=2, heads=2, kv_heads=1, mlp_width=48, stem_width=24)
RECIPE = loop.TrainConfig(
    model=SMALL,
    stages=(loop.Stage(4, 2, 4, 2), loop.Stage(6, 1, 4, 2, crowd=3.0)),
    save_every=2,
)


@pytest.fixture(scope="module")
def batch():
    return loop.batch_of(RECIPE, 2)


@pytest.fixture(scope="module")
def params():
    return tiny.init(SMALL, jax.random.key(1))


@pytest.fixture(scope="module")
def answers():
    return jax.jit(lambda p, b: losses.forward(p, SMALL, b)[0])


def test_batch_is_a_function_of_seed_and_step(batch):
    again = loop.batch_of(RECIPE, 2)
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    other = loop.batch_of(RECIPE, 3)
    assert not np.array_equal(batch.logmel, other.logmel)
    reseeded = loop.batch_of(dataclasses.replace(RECIPE, seed=1), 2)
    assert not np.array_equal(batch.logmel, reseeded.logmel)
    assert batch.frames.shape == (1, 6, 48, 48, 3)


def test_jumps_only_go_forward():
    rng = np.random.default_rng(0)
    long = []
    for _ in range(200):
        begin = batches.jump(rng, 32)
        assert begin[0] == 0 and begin.dtype == np.int32
        assert np.diff(begin).min() >= tiny.TICKS
        long.append(begin[-1])
    assert np.min(long) == 31 * 4 and np.max(long) > 4 * 300


def test_a_question_does_not_see_later_seconds(batch, params, answers):
    before = answers(params, batch)
    time = int(batch.time[0, 0])
    assert time < batch.frames.shape[1]
    frames, logmel = batch.frames.copy(), batch.logmel.copy()
    frames[:, time:], logmel[:, time:] = 0, 0
    after = answers(params, batch._replace(frames=frames, logmel=logmel))
    early = batch.time[0] <= time
    np.testing.assert_allclose(after[0, early], before[0, early], atol=1e-5)
    frames[:, time - 1] = 255
    changed = answers(params, batch._replace(frames=frames, logmel=logmel))
    assert np.abs(changed - after)[0, 0].max() > 1e-4


def test_questions_do_not_see_each_other(batch, params, answers):
    before = answers(params, batch)
    ids = batch.ids.copy()
    ids[0, 1, 0] = 1 + (ids[0, 1, 0] % 5)
    after = answers(params, batch._replace(ids=ids))
    np.testing.assert_allclose(after[0, [0, 2, 3]], before[0, [0, 2, 3]], atol=1e-5)
    assert np.abs(after - before)[0, 1].max() > 1e-4


def test_forward_equals_a_plain_causal_transformer(batch, params, answers, monkeypatch):
    """Stream and question in one sequence, one full attention matrix, no chunks."""
    config = tiny.decoder_config(SMALL)
    pick = 2
    time, ask = int(batch.time[0, pick]), int(batch.ask[0, pick])
    vision = tiny.encode_vision(params, SMALL, batch.frames[0, :time])
    audio = tiny.encode_audio(params, SMALL, batch.logmel[0, :time])
    x, rel, _, span = tiny.layout(SMALL, vision, audio)
    begin = np.stack([batch.begin[0, :time], np.zeros(time), np.zeros(time)], -1).astype(np.int32)
    pos = np.concatenate(
        [
            (begin[:, None] + np.asarray(rel)[None]).reshape(-1, 3),
            begin[-1:] + np.asarray(span)[None] + tiny.question_positions(ask + 1),
        ]
    )
    ids = jnp.asarray(batch.ids[0, pick, : ask + 1])

    @jax.jit
    def plain(params, x, ids, pos):
        words = decoder.embed(params["decoder"], ids)
        h = jnp.concatenate([x.reshape(-1, SMALL.width), words])
        turn = angles(config.rope, pos)[:, None]
        hidden = np.triu(np.ones((len(h), len(h)), bool), 1)
        for index in range(SMALL.layers):
            layer = decoder.layer_at(params["decoder"], index)
            q, k, v = decoder.qkv(layer, config, h)
            q, k = rotate(q, turn), rotate(k, turn)
            k, v = (jnp.repeat(t, SMALL.heads // SMALL.kv_heads, 1) for t in (k, v))
            score = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(SMALL.head_dim)
            p = jax.nn.softmax(jnp.where(hidden[None], -jnp.inf, score))
            h = decoder.finish(layer, config, h, jnp.einsum("hqk,khd->qhd", p, v))
        return decoder.logits(params["decoder"], config, h[-1:])[0]

    expected = plain(params, x, ids, jnp.asarray(pos))
    np.testing.assert_allclose(answers(params, batch)[0, pick], expected, atol=2e-4)
    monkeypatch.setattr(losses, "CHUNK", 48)
    chunked = jax.jit(lambda p, b: losses.forward(p, SMALL, b)[0])(params, batch)
    np.testing.assert_allclose(chunked[0, pick], expected, atol=2e-4)


def test_loss_gradient_reaches_every_weight(batch):
    state = loop.start(RECIPE)
    gradient = jax.jit(jax.grad(lambda p: losses.loss(p, SMALL, batch, 0.3)[0]))(state.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_muon_turns_matrices_only():
    chosen = optimizers.matrices(loop.start(RECIPE).params)
    assert chosen["model"]["vision"]["up"]["kernel"] is not None
    assert chosen["model"]["decoder"]["layers"]["q"]["kernel"].reduction_axis == 1
    assert chosen["model"]["decoder"]["layers"]["q_norm"]["scale"] is None
    assert chosen["model"]["decoder"]["embedding"]["embedding"] is None
    assert chosen["auxiliary"]["colour"]["kernel"] is None


def test_schedule():
    rate = optimizers.schedule(1.0, 1000)
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(100)) == pytest.approx(1) and float(rate(400)) == pytest.approx(1)
    assert float(rate(700)) < 0.7 and float(rate(1000)) == pytest.approx(0.03)


def test_it_learns_and_continues_exactly(tmp_path):
    recipe = dataclasses.replace(RECIPE, stages=(loop.Stage(4, 4, 8, 12),), save_every=6)
    seen = []
    whole = loop.train(recipe, tmp_path / "whole", report=lambda step, v: seen.append(v["loss"]))
    assert len(seen) == 12 and np.mean(seen[-3:]) < np.mean(seen[:3])

    def stop(step, values):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tmp_path / "parts", report=stop)
    with pytest.raises(ValueError, match="--resume"):
        loop.train(recipe, tmp_path / "parts")
    parts = loop.train(recipe, tmp_path / "parts", resume=True)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    weights, config = tiny.load(tmp_path / "parts" / "tiny.safetensors")
    assert config == SMALL
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        weights,
        parts.params["model"],
    )
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [10, 12]


def test_ahead_keeps_order_and_raises():
    assert list(batches.ahead(lambda step: step * step, range(5))) == [0, 1, 4, 9, 16]

    def fail(step):
        if step == 2:
            raise RuntimeError("broken")
        return step

    with pytest.raises(RuntimeError, match="broken"):
        list(batches.ahead(fail, range(5)))


def test_intervals_of_a_share():
    score = Accuracy.of(96, 100)
    assert score.share == 0.96 and score.asked == 100
    assert score.low == pytest.approx(0.9016, abs=1e-3)
    assert score.high == pytest.approx(0.9843, abs=1e-3)
    assert Accuracy.of(50, 50).high <= 1 + 1e-9


def test_evaluation_counts_right_answers(params):
    scores = evaluate(params, SMALL, seconds=4, questions=96)
    assert scores["all"].asked == 96
    assert set(scores) - {"all"} <= set(sy.TYPES)
    rest = [s for n, s in scores.items() if n != "all"]
    right = sum(s.right for s in rest)
    assert right == scores["all"].right


def test_command_line(tmp_path, capsys, root):
    assert read(loop.TrainConfig, root / "configs" / "train_tiny.py") == loop.TrainConfig()
    assert command.main(["--config", str(tmp_path / "none.py")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "bad.py").write_text("get_config = lambda: 3\n")
    assert command.main(["--config", str(tmp_path / "bad.py")]) == 2
    assert "made a int, expected TrainConfig" in capsys.readouterr().err
    weights = tmp_path / "w.safetensors"
    tiny.save(weights, tiny.init(SMALL, jax.random.key(0)), SMALL)
    assert not command.main(
        ["--evaluate", "--weights", str(weights), "--seconds", "4", "--questions", "48"]
    )
    printed = capsys.readouterr().out
    assert "all" in printed and "n=48" in printed


def test_a_rank_needs_an_optimizer_that_has_one(tmp_path, capsys):
    assert command.main(["--rank", "4", "--out", str(tmp_path)]) == 2
    assert "--rank has no effect with muon" in capsys.readouterr().err


def test_options_without_an_effect_and_folders_that_are_none(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for words, message in (
        ("--evaluate --mixer mamba2", "--mixer has no effect with --evaluate"),
        ("--evaluate --steps-scale 2", "--steps-scale has no effect with --evaluate"),
        ("--weights tiny", "--weights has no effect without --evaluate"),
        ("--evaluate --questions 0", "at least 1, got 0 and 64"),
        ("--evaluate --seconds 16 0", "at least 1, got 2000 and 16, 0"),
        (f"--out {tmp_path / 'file'}", "is no folder to write to"),
    ):
        assert command.main(words.split()) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_other_optimizers_train_from_the_command_line(name, tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from jaxmem.models.tiny.tiny import TinyConfig\n"
        "from jaxmem.training.loop import Stage, TrainConfig\n"
        "def get_config():\n"
        "    model = TinyConfig(width=32, layers=2, heads=2, kv_heads=1, mlp_width=48, "
        "stem_width=24)\n"
        "    return TrainConfig(model=model, stages=(Stage(4, 2, 4, 12),))\n"
    )
    words = ["--config", str(recipe), "--optimizer", name, "--rank", "2", "--out"]
    assert command.main([*words, str(tmp_path / "run")]) == 0, capsys.readouterr().err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines) and len(lines) == 2


def test_recipe_errors():
    with pytest.raises(ValueError, match="more than 0"):
        loop.scaled(RECIPE, 0)
    with pytest.raises(ValueError, match="4 steps"):
        loop.stage_of(RECIPE, 4)
    assert loop.scaled(RECIPE, 0.01).steps == 2


def test_shipped_model_answers_held_out_questions():
    shipped, config = tiny.load()
    score = evaluate(shipped, config, seconds=32, questions=192)["all"]
    assert score.asked == 192
    assert score.share > 0.9
