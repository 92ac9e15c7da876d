"""`evaluate text` on a small random decoder: losses, answers, cells, tables."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from rich.console import Console

from jaxmem.decoder.decoder import DecoderConfig, embed, logits
from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.experiments.evaluate import text as command
from jaxmem.experiments.evaluate.text_run import Ran
from jaxmem.kv import Modality
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import FeatureMemory
from jaxmem.memory.baselines import Full
from jaxmem.memory.options import NAMES
from jaxmem.models.hf.gguf import Words
from jaxmem.models.text import text_model, text_model_of
from jaxmem.programs import model_spec
from jaxmem.report.text import Outcome, over_full, table
from jaxmem.rope import rope_1d

CFG = DecoderConfig(1, 16, 2, 1, 8, 16, 128, rope_1d(8))
TOKENS, CHUNK = 600, 150
SIZES = [CHUNK, CHUNK, CHUNK, CHUNK - 1]  # tokens that are predicted


class Letters:
    """A tokenizer of characters."""

    class Encoding:
        def __init__(self, ids):
            self.ids = ids

    def encode(self, text, add_special_tokens=False):
        return self.Encoding([min(ord(c), 127) for c in text])

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def model():
    return text_model_of("letters", CFG, small.params(CFG), Words(Letters(), (0,), 4000))


@jax.jit
def nats(weights, h, ids):
    found = jax.nn.log_softmax(logits(weights, CFG, h).astype(jnp.float32))
    return -jnp.take_along_axis(found, ids[:, None], 1)[:, 0]


def in_one_pass(weights, ids):
    """The nats of every token but the first, by plain attention over all before it."""
    ids = jnp.asarray(ids)
    h = small.one_pass(weights, CFG, embed(weights, ids), jnp.arange(len(ids))[:, None] * 1.0)
    return np.asarray(nats(weights, h[:-1], ids[1:]))


SMALL = {
    "memories": "full,recent", "tokens": TOKENS, "chunk": CHUNK, "shares": (0.5,), "keys": 1,
    "depths": 2, "alone": 0,
}  # fmt: skip


def run(model, out, console=None, **more):
    config = command.TextConfig(**{**SMALL, "out": out, **more})
    return command.run(config, model, console or Console(quiet=True))


@pytest.fixture(scope="module")
def ran(model, tmp_path_factory):
    """The command, run once: its folder, what it returned and what it showed."""
    out, console = tmp_path_factory.mktemp("text"), Console(width=200, record=True)
    found = run(model, out, console, memories="full,recent,simple_stream")
    return out, found, console.export_text()


def test_the_command_measures_and_writes(ran):
    out, (full, recent), shown = ran
    assert full.memory == "full" and recent.nbytes <= full.nbytes / 2 and recent.slots > 250
    assert recent.loss.shape == (1, 4) and recent.right.shape == (1, 2)
    assert recent.depth.tolist() == [[0.25, 0.75]] and recent.loss[0, 0] == full.loss[0, 0]
    assert np.all(recent.loss[0, 3] != full.loss[0, 3])  # it has forgotten something by then
    assert "simple_stream keeps features" in shown and "recent 0.5" in shown
    names = sorted(p.name for p in (out / "cells").iterdir())
    assert names == ["full_1_0.json", "recent_0.5_0.json"]
    assert (out / "slots.png").stat().st_size > 10_000
    document = json.loads((out / "results.json").read_text())
    assert [c["memory"] for c in document["cells"]] == ["full", "recent"]


def test_loss_and_answers_with_everything_are_those_of_one_pass(model, ran):
    (one,) = command.streams_of(command.TextConfig(**SMALL), model)
    asked, full = one.text.asked[1], ran[1][0]
    ids = np.concatenate([one.text.ids, asked.question, asked.answer])
    want = in_one_pass(model.params, ids)
    text = np.append(want[: TOKENS - 1], 0).reshape(-1, CHUNK)
    np.testing.assert_allclose(full.loss[0], text.sum(1) / SIZES, atol=1e-4)
    np.testing.assert_allclose(full.nats[0, 1], want[-len(asked.answer) :].mean(), atol=2e-4)
    assert not full.right.any()  # it was never trained


def test_a_prompt_is_in_front_and_never_dropped(model, tmp_path):
    (one,) = command.streams_of(command.TextConfig(**SMALL), model)
    (full,) = run(command.pinned(model, "ab"), tmp_path, memories="full", prompt="ab")
    want = in_one_pass(model.params, np.concatenate([model.tokenize("ab"), one.text.ids]))
    text = np.append(want[2:], 0).reshape(-1, CHUNK)
    np.testing.assert_allclose(full.loss[0], text.sum(1) / SIZES, atol=1e-4)
    assert command.pinned(model, "") is model


def test_what_was_measured_is_not_measured_again(model, ran, monkeypatch):
    out, (_, before), _ = ran
    path = out / "cells" / "recent_0.5_0.json"
    cell = json.loads(path.read_text())
    cell["texts"]["several-0"]["nats"] = [9.0, 9.0]
    path.write_text(json.dumps(cell))
    (again,) = run(model, out, memories="recent")
    assert again.nats.tolist() == [[9.0, 9.0]] and again.loss.tolist() == before.loss.tolist()
    with pytest.raises(ValueError, match="nothing was measured"):
        run(model, out, seed=1, measured_only=True)  # other keys, so other texts
    done = {"loss": [1.0] * 4, "nats": [2.0, 2.0], "right": [1, 0], "seconds": [1, 1]}
    monkeypatch.setattr(command, "run_text", lambda *args: Ran(done, None))
    (other,) = run(model, out, seed=1, memories="recent")
    assert other.right.tolist() == [[True, False]]


def test_cells_of_other_texts_are_named(model, tmp_path, monkeypatch):
    done = {"loss": [1.0] * 4, "nats": [2.0, 2.0], "right": [1, 0], "seconds": [1, 1]}
    monkeypatch.setattr(command, "run_text", lambda *args: Ran(done, None))
    run(model, tmp_path, memories="recent")
    console = Console(width=400, record=True)
    with pytest.raises(ValueError, match="nothing was measured"):
        run(model, tmp_path, console, memories="recent,keydiff", seed=1, measured_only=True)
    assert "not those of this command: recent_0.5_0. Without" in console.export_text()


@pytest.mark.parametrize("text", ['{"fingerprint": "0", "te', "[]"])
def test_a_file_that_is_no_cell_is_named(model, tmp_path, text):
    path = tmp_path / "cells" / "recent_0.5_0.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path.name} is no cell of this command; remove it"):
        run(model, tmp_path, memories="recent")


@pytest.mark.parametrize("below", ["", "below/it"])
def test_out_is_a_folder_before_anything_is_measured(model, tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(command, "run_text", None)
    with pytest.raises(ValueError, match=r"--out \S*file\S* is no folder to write to"):
        run(model, tmp_path / "file" / below, memories="recent")


def test_a_memory_that_fails_in_the_stream_is_told(model, tmp_path, monkeypatch):
    def broken(*args):
        raise ValueError("needs Spec.frame")

    monkeypatch.setattr(command, "run_text", broken)
    console = Console(width=200, record=True)
    with pytest.raises(ValueError, match="nothing was measured"):
        run(model, tmp_path, console, memories="recent")
    assert "recent_0.5_0: needs Spec.frame" in console.export_text()


def done(*args):
    return Ran({"loss": [1.0] * 4, "nats": [2.0, 2.0], "right": [1, 0], "seconds": [1, 1]}, None)


def test_cells_of_other_settings_are_set_aside_and_found_again(model, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run_text", done)
    for seed in (0, 1):
        run(model, tmp_path, memories="recent", seed=seed)
    monkeypatch.setattr(command, "run_text", None)  # all of both is there
    for seed in (0, 1):
        run(model, tmp_path, memories="recent", seed=seed)
    first = command.TextConfig(**{**SMALL, "memories": "recent", "keys": 2, "out": tmp_path})
    monkeypatch.setattr(command, "run_text", done)
    command.run(first, model, Console(quiet=True))  # of three settings none is lost
    assert len(list((tmp_path / "cells").iterdir())) == 3


def test_a_refusal_of_an_earlier_run_is_tried_again(model, tmp_path, monkeypatch):
    test_a_memory_that_fails_in_the_stream_is_told(model, tmp_path, monkeypatch)
    monkeypatch.setattr(command, "run_text", done)
    (found,) = run(model, tmp_path, memories="recent")
    assert found.right.tolist() == [[True, False]]


def test_texts_of_ones_own_are_told_of(model, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run_text", done)
    mine = tmp_path / "mine"
    mine.mkdir()
    long = "\ufeff" + "one line of it\n" * 150
    files = {"a.TXT": long, "b.txt": long, "c.md": "short", "d.csv": "1"}
    for name, text in files.items():
        (mine / name).write_text(text)
    console = Console(width=400, record=True)
    run(model, tmp_path / "out", console, memories="recent", texts=mine, tokens=6000, chunk=1500)
    shown = console.export_text()
    assert f"left out: {mine}/b.txt (the same text as {mine}/a.TXT)" in shown
    assert f"left out: {mine}/c.md (5 characters, at least 2000 are read)" in shown
    assert (
        "it up to 3 times" in shown and "recent_0.5_0: holds more" in shown and "d.csv" not in shown
    )
    for wrong in ("nowhere", "a.TXT"):
        with pytest.raises(ValueError, match=f"{wrong} is no folder"):
            run(model, tmp_path / "out", texts=mine / wrong)


def cells(model, **more):
    config = command.TextConfig(**{**SMALL, **more})
    return command.cells_of(config, model, model_spec(model, CHUNK))


def test_budgets_floors_and_positions_of_every_cell(model):
    found = cells(model, memories="full,keydiff,recent", shares=(0.5, 0.25), newest=(0.0, 0.5))
    assert [(c.name, c.share, c.newest) for c in found] == [
        ("full", 1.0, 0.0),
        *(("keydiff", s, f) for s in (0.5, 0.25) for f in (0.0, 0.5)),
        *(("recent", s, 0.0) for s in (0.5, 0.25)),
    ]
    assert found[2].memory.newest == round(found[2].slots / 2) > 0 == found[1].memory.newest
    assert not found[1].memory.reindex
    (longer,) = cells(model, memories="recent", tokens=5000)
    assert longer.memory.reindex  # the model knows 4,000 positions
    (kept,) = cells(model, memories="recent", tokens=5000, renumber=False)
    assert not kept.memory.reindex


def test_bits_are_around_a_memory_and_its_floor(model):
    full, found = cells(model, memories="full,keydiff", newest=(0.5,), bits=4)
    (plain,) = cells(model, memories="keydiff", newest=(0.0,))
    assert isinstance(full.memory, Full) and found.slots > 1.5 * plain.slots
    assert found.memory.bits == 4 and found.memory.memory.newest == round(found.slots / 2)


def test_tokens_are_marked_as_asked(model):
    ids, config = jnp.array([5, 6, -1]), command.TextConfig(**SMALL)
    as_text = text_model_of(
        "letters", CFG, model.params, Words(Letters(), (0,), 4000), Modality.TEXT
    )
    for one, mark in ((model, Modality.VISION), (as_text, Modality.TEXT)):
        rows = one.encode(one.params, ids)
        assert rows.modality.tolist() == [mark, mark, Modality.EMPTY]
    streams, (cell,) = command.streams_of(config, model), cells(model, memories="recent")
    others = dataclasses.replace(config, marked="text")
    marks = {command.fingerprint(c, model, streams, cell) for c in (config, others)}
    assert len(marks) == 2


def test_what_does_not_fit_is_refused(model, capsys):
    (cell,) = cells(model, memories="simple_stream")
    assert cell.memory is None and "keeps features" in cell.why
    for wrong, words in (
        ({"shares": (2.0,)}, "parts of a whole"), ({"newest": (-1.0,)}, "parts of a whole"),
        ({"keys": 0}, "at least 1"), ({"alone": 3}, "--alone at most --depths"),
        ({"chunk": 0}, "--chunk lies between"), ({"tokens": -5}, "got 150 and -5"),
        ({"seed": -1}, "--seed must not"), ({"memories": "full", "bits": 4}, "--bits has no"),
        ({"options": {"bank": {"capacity": 9}}}, "--bank.* has no effect on text"),
        ({"options": {"keydiff": {"newest": 9}}}, "--keydiff.newest is a number of slots"),
        ({"tokens": 60, "chunk": 20}, "too short"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            command.run(command.TextConfig(**{**SMALL, **wrong}), model, Console(quiet=True))
    assert evaluate.main(["text", "--model", "somewhere"]) == 2
    assert "no text model 'somewhere'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="reads text and sees no video"):
        model.preprocess(None, None, None, None, 0)


@pytest.mark.slow
def test_every_memory_of_the_table_is_measured_or_says_why_not(model, tmp_path):
    console = Console(width=400, record=True)
    config = command.TextConfig(**{**SMALL, "memories": ",".join(NAMES), "out": tmp_path})
    measured = {one.memory for one in command.run(config, model, console)}
    shown = console.export_text()
    features = {n for n, kind in MEMORIES.items() if issubclass(kind, FeatureMemory)}
    refused = {name for name in NAMES if f"{name}_0.5_0: " in shown}
    assert features < refused and measured | refused == set(NAMES) and not measured & refused
    assert all(f"{name} keeps features and reads no text" in shown for name in features)
    # The first three count frames, and the weights have no score for the last.
    assert refused - features == {"infinipot_v", "streammem", "pyramid", "retention"}
    assert "Spec.frame" in shown and "has no weights of one" in shown


def test_the_model_needs_its_package(monkeypatch):
    monkeypatch.setattr("jaxmem.models.hf.gguf.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="jaxmem\\[real,hf\\]"):
        text_model("smollm2")


def outcome(memory, loss):
    count = len(loss)
    return Outcome(
        memory=memory, share=0.5, newest=0.5, slots=9, nbytes=99, texts=tuple(range(count)),
        loss=np.array(loss), nats=np.ones((count, 2)), right=np.zeros((count, 2), bool),
        depth=np.tile([0.25, 0.75], (count, 1)), phrasing=np.zeros((count, 2), int),
        alone=np.zeros((0, 1), bool), seconds=(1.0,) * count,
    )  # fmt: skip


def test_losses_are_compared_on_the_same_texts():
    full = outcome("full", [[1.0, 2.0], [3.0, 5.0], [9.0, 9.0]])
    one = outcome("recent", [[1.5, 3.0], [3.5, 6.0]])
    assert over_full(one, [full, one]).share == 0.75
    half = over_full(one, [full, one], half=True)
    assert (half.share, half.low, half.high, half.asked) == (1.0, 1.0, 1.0, 2)
    assert over_full(one, [one]) is None
    assert [row.label for row in (full, one)] == ["full", "recent 0.5, newest 0.5"]
    assert table([full, one], 2).row_count == 2
