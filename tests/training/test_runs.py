"""A run of steps, of a toy: lines, event files, what is refused, how it ends."""

import json
import struct
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.training.runs import Folder, follow


class State(NamedTuple):
    x: jnp.ndarray
    step: np.ndarray


class Says(NamedTuple):
    loss: float


def update(state, batch):
    return State(state.x + batch, state.step + 1), Says(float(batch))


def run(path, steps=6, recipe=None, made=lambda steps: iter(steps), **more):
    folder = Folder(
        path, every=2, **{k: more.pop(k) for k in ("resume", "other_recipe") if k in more}
    )
    begun = State(jnp.zeros(()), np.zeros((), np.int32))
    return follow(begun, update, made, steps, folder, recipe=recipe or {"rate": 1}, **more)


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def kept(path):
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir())


def test_a_run_ends_with_its_lines_and_its_last_two_checkpoints(tmp_path):
    seen, files = [], []
    more = {
        "report": lambda n, v: seen.append((n, v["loss"])),
        "more": lambda n: {"seconds": 2 * n},
    }
    state = run(tmp_path, 25, saved=lambda state: files.append(int(state.step)), **more)
    assert float(state.x) == sum(range(25)) and seen == [(n + 1, n) for n in range(25)]
    found = [(line["step"], line["loss"], line["seconds"]) for line in lines(tmp_path)]
    assert found == [(10, 4.5, 20), (20, 14.5, 40), (25, 22.0, 50)]
    assert kept(tmp_path) == [24, 25] and files == [*range(2, 25, 2), 25]
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"rate": 1}


def test_time_ends_a_run_at_a_checkpoint_that_goes_on(tmp_path):
    state = run(tmp_path, minutes=0.0)
    assert int(state.step) == 1 and kept(tmp_path) == [1]
    state = run(tmp_path, resume=True)
    assert float(state.x) == sum(range(6)) and [line["step"] for line in lines(tmp_path)] == [1, 6]


def test_damaged_files_of_a_run_are_named_or_dropped(tmp_path):
    run(tmp_path, 12)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"no": 3}\n[]\n{"step": 12,')
    run(tmp_path, 12, resume=True)
    assert [line["step"] for line in lines(tmp_path)] == [10, 12]
    for text in ("[]", '{"a'):
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(ValueError, match=r"recipe\.json is damaged.*remove it"):
            run(tmp_path, resume=True)


def test_a_command_without_other_recipe_does_not_offer_it(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(ValueError, match="give what it was, or another --out"):
        run(tmp_path, resume=True, recipe={"rate": 2})


def test_what_does_not_fit_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        run(tmp_path, resume=True)
    run(tmp_path, 2)
    with pytest.raises(ValueError, match="use --resume or another --out"):
        run(tmp_path)
    with pytest.raises(ValueError, match="rate was 1, now 2.*--other-recipe"):
        run(tmp_path, resume=True, recipe={"rate": 2}, other_recipe=False)
    assert int(run(tmp_path, 4, resume=True, recipe={"rate": 2}, other_recipe=True).step) == 4
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"rate": 2}


def test_a_loss_that_is_not_finite_ends_it(tmp_path):
    with pytest.raises(ValueError, match="step 8: loss nan is not finite.*checkpoint of step 6"):
        run(tmp_path, 12, made=lambda steps: (np.nan if n == 7 else n for n in steps))
    assert kept(tmp_path) == [4, 6]


def test_event_files_hold_the_lines(tmp_path):
    """Those of a part that is done again are purged."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    run(tmp_path, 20)
    found = {}
    for file in (tmp_path / "tensorboard").iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):  # length, its checksum, an event, its checksum
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    for line in lines(tmp_path):
        assert found["loss", line["step"]] == pytest.approx(line["loss"])
