"""Laws of the options that a command line has for memories: each has an effect, or is refused."""

import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import pytest
import small

import jaxmem as jm
from jaxmem.experiments.memories import parse_options
from jaxmem.experiments.stream.__main__ import configured, main
from jaxmem.experiments.stream.config import check
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import Spec
from jaxmem.memory.by_name import Budget, Wrapped, check_around, contestants
from jaxmem.memory.options import kind_of, worded
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec, stream_tokens

SPEC = small.tiny_spec()
BUDGET = 64
BANK = {"capacity": 4800}

OTHER = {
    ("omnimem", "table"): None,  # a file that the test writes
    ("omnimem", "profile"): "salmonn-8b",
    ("omnimem", "unit_dtype"): "bfloat16",
    ("infinipot_v", "grid"): (2, 8),
    ("pyramid", "grid"): (2, 8),
    ("rekv", "topk"): 3,
    ("flexmem", "clip"): 40,
    ("flexmem", "reader_layers"): (1, 2),
    ("flexmem", "reader_weights"): (1.0, 2.0, 3.0),
    ("flexmem", "reader_question"): "what happens?",
}
"""Values that do not follow from an option's type and default."""


def chosen(name, options, bank=None):
    given = {name: options, **({"bank": bank} if bank else {})}
    return contestants((name,), given, Budget(BUDGET, None), SPEC, 4800)[0].memory


def another(name, key, option, folder):
    """Return a valid value that is not the default's."""
    if (name, key) == ("omnimem", "table"):
        path = folder / "table.json"
        caps = [[10, 20]] * SPEC.layers
        document = {"format": "jaxmem-budget-table", "version": 1, "caps": caps}
        path.write_text(json.dumps(document))
        return path
    if (name, key) in OTHER:
        return OTHER[name, key]
    kinds = [option.type]
    if get_origin(option.type) in (Union, UnionType):
        kinds = [k for k in get_args(option.type) if k is not NoneType]
    (kind,) = kinds
    if get_origin(kind) is Literal:
        return next(v for v in get_args(kind) if v != option.default)
    if kind is bool:
        return not option.default
    if kind is float:
        return 0.75 if option.default is None else option.default / 2 or 0.5
    if kind is int:
        return 4 if option.default is None else option.default + 1
    assert get_origin(kind) is tuple, (name, key, option)
    return tuple(x / 2 for x in option.default)


CASES = [(name, key) for name in MEMORIES for key in worded(name)]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_every_option_changes_the_memory_or_is_refused(name, key, tmp_path):
    value = another(name, key, worded(name)[key], tmp_path)
    try:
        assert chosen(name, {key: value}) != chosen(name, {})
    except ValueError as error:
        assert key.removeprefix("reader_") in str(error).replace("-", "_"), error


@pytest.mark.parametrize("key", [key for key in worded("bank") if key != "capacity"])
def test_every_option_of_a_bank_changes_the_memory(key, tmp_path):
    value = another("bank", key, worded("bank")[key], tmp_path)
    assert chosen("recent", {}, {**BANK, key: value}) != chosen("recent", {}, BANK)
    assert chosen("recent", {}, BANK) != chosen("recent", {})


@pytest.mark.parametrize("name", [n for n in MEMORIES if getattr(kind_of(n), "sized", ())])
def test_what_the_budget_decides_is_refused(name):
    """Also by the words of a command line, before they are parsed."""
    for key in kind_of(name).sized:
        with pytest.raises(ValueError, match=f"{name}.{key} has no effect: the budget"):
            chosen(name, {key: 3})
        with pytest.raises(ValueError, match=f"{name}.{key} has no effect: the budget"):
            parse_options(name, [f"--{key}", "3"], {})
        assert key not in worded(name)


def test_a_default_given_by_hand_wins_over_a_preset():
    """An option that was set is known by its word, whatever its value."""
    default = worded("snapkv")["audio_share"].default
    assert embedded().presets["snapkv"]["audio_share"] != default
    assert parse_options("snapkv", ["--audio-share", str(default)], {}) == {"audio_share": default}
    assert parse_options("flexmem", ["--no-reindex", "--topk=16"], {"topk": 3}) == {
        "reindex": False,
        "topk": 16,
    }


def test_options_of_several_types_are_plain_words():
    words = ["--hermes.mix", "llava", "--bank.recall-by", "parts", "--flexmem.reader-keys", "3"]
    options = configured([*words, "--flexmem.reader-layers", "1", "2"]).memories
    assert options["hermes"] == {"mix": "llava"} and options["bank"] == {"recall_by": "parts"}
    preset = {"flexmem": {"reader": jm.FlexMem().reader.__class__((2,), keys=2, query="after")}}
    budget = Budget(BUDGET, None)
    more = {"flexmem": options["flexmem"]}
    memory = contestants(("flexmem",), more, budget, SPEC, 4800, presets=preset)[0].memory
    assert (memory.reader.layers, memory.reader.keys, memory.reader.query) == ((1, 2), 3, "after")
    with pytest.raises(ValueError, match="exclude each other"):
        chosen("flexmem", {"reader_question": "what?", "reader_keys": 3})


@pytest.mark.parametrize("name", [*MEMORIES, "bank"])
def test_help_has_no_subcommands_and_a_text_for_every_option(name, capsys):
    assert main(["--help-memory", name.replace("_", "-")]) == 0
    shown = capsys.readouterr().out
    assert "subcommands" not in shown
    for one in worded(name):
        assert f"--{one.replace('_', '-')}" in shown


def test_help_is_one_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") <= 45 and "--help-memory" in shown


@pytest.mark.parametrize(
    ("names", "options", "bits", "message"),
    [
        (
            ("moviechat",),
            {"bank": BANK},
            None,
            "--bank has no effect here: moviechat keeps",
        ),
        (("rekv",), {"bank": BANK}, None, r"rekv has a bank of its own \(--rekv.capacity\)"),
        (("full", "ma_lmm"), {}, 8, "--bits has no effect here: full .*; ma_lmm keeps features"),
        (("full",), {"bank": {"blocks": 3}}, None, "bank has no option blocks"),
        (("omnimem",), {"omnimem": {"table": Path("x"), "profile": "y"}}, None, "profile"),
    ],
)
def test_what_no_memory_takes_is_refused(names, options, bits, message):
    with pytest.raises(ValueError, match=message):
        contestants(names, options, Budget(BUDGET, None), SPEC, 4800, bits=bits)


def test_what_stays_bare_beside_others_is_said():
    wrapped = Wrapped(8, BANK)
    notes = check_around(("omnimem", "rekv", "moviechat"), wrapped)
    assert [note.partition(":")[0] for note in notes] == ["without --bits", "without --bank"]
    assert "rekv has a bank" in notes[1] and "rekv" not in notes[0] and "omnimem" not in notes[1]
    assert check_around(("omnimem", "recent"), wrapped) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-new", "3"], "--max-new has no effect without --model"),
        (["--dtype", "float32"], "--dtype has no effect without --model"),
        (["--max-pixels", "9"], "--max-pixels has no effect without --model"),
        (["--video", "x", "--questions", "3"], "--questions has no effect beside --video"),
        (["--memory", "recent", "--compare", "omnimem,full"], "--memory has no effect beside"),
    ],
)
def test_options_that_others_leave_without_an_effect_are_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check(configured([*words, "--out", str(tmp_path)]))


def test_audio_of_features():
    """In pieces of so many rows, or none; refused where the stream has no audio."""
    assert chosen("moviechat", {}).tokens is None
    assert chosen("moviechat", {"audio_tokens": 2}).tokens == 2
    assert type(chosen("moviechat", {"audio_tokens": 0})) is jm.MovieChat
    silent = Spec(layers=4, kv_heads=2, head_dim=32, width=128, chunk=20, frame=(4, 4))
    with pytest.raises(ValueError, match="audio-tokens 2 has no effect: the stream has no audio"):
        contestants(("ma_lmm",), {"ma_lmm": {"audio_tokens": 2}}, Budget(64, None), silent, None)


@pytest.mark.parametrize("name", MEMORIES)
def test_python_makes_the_memory_of_the_command_line(name):
    """One public call, with the same options and presets."""
    model = embedded()
    spec, tokens = model_spec(model, 2), stream_tokens(model, 240)
    words = [f"--{name}.reindex"] if "reindex" in worded(name) else []
    options = configured([*words, "--memory", name]).memories
    budget, more = Budget(None, 1 << 22), {"presets": model.presets}
    (theirs,) = contestants((name,), options, budget, spec, tokens, **more)
    given = options.get(name, {})
    ours = jm.memory_for(model, name, "4MiB", spec=spec, tokens=tokens, **given)
    assert ours == theirs.memory
    if set(model.presets.get(name, {})) - set(given):
        bare = contestants((name,), options, budget, spec, tokens)[0].memory
        assert ours != bare
