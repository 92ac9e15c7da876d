"""Plug-ins of evaluation harnesses against stand-ins of their interfaces, and lmms-eval itself."""

import abc
import re
import sys
import tomllib
from types import ModuleType, SimpleNamespace
from typing import get_args, get_origin

import pytest
from lmms_task import evaluated, write_task

import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.experiments.evaluate import benchmark_watch
from jaxmem.experiments.harnesses import lmms, streams, vlmeval
from jaxmem.experiments.harnesses.streams import Question, Streams
from jaxmem.memory.options import NAMES, members, worded


class Base(abc.ABC):
    """What `lmms_eval.api.model.lmms` asks of a model."""

    is_simple = True

    def __init__(self):
        self.task_dict, self.added = {}, []
        self.cache_hook = SimpleNamespace(add_partial=lambda *one: self.added.append(one))

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


class Manifest(SimpleNamespace):
    """`ModelManifest`."""

    def __init__(self, model_id, simple_class_path=None, chat_class_path=None, aliases=()):
        super().__init__(model_id=model_id, simple=simple_class_path, chat=chat_class_path)


class Recorder:
    """In place of `Streams`: notes what is asked, and says its number."""

    def __init__(self, *given, **options):
        self.given, self.options, self.calls = given, options, []

    def replies(self, questions, max_new=None):
        self.calls.append((list(questions), max_new))
        return [f"{q.at}. stop here" for q in questions]


@pytest.fixture
def stand_in(monkeypatch):
    """A stand-in for lmms-eval, and a recorder for the model."""
    for name, held in (
        ("lmms_eval", {}), ("lmms_eval.api", {}), ("lmms_eval.models", {}),
        ("lmms_eval.api.model", {"lmms": Base}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": Manifest}),
    ):  # fmt: skip
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(lmms, "Streams", Recorder)
    lmms._made.cache_clear()
    yield
    lmms._made.cache_clear()


DOCS = [
    {"video": "a.mp4", "realtime": 9.5}, {"video": "a.mp4", "time_stamp": "00:01:05"},
    {"video": "b.mp4"}, {"video": "a.mp4", "query_times": [2, 4]},
    {"video": "a.mp4", "start": 3, "end": 7},
]  # fmt: skip
TIMES = [(9.5, 0.0), (65.0, 0.0), (None, 0.0), (2.0, 0.0), (4.0, 0.0), (7.0, 3.0)]
ASKED = [
    Question(v, "What?", at, start)
    for v, (at, start) in zip(["a.mp4"] * 2 + ["b.mp4"] + ["a.mp4"] * 3, TIMES, strict=True)
]
SAID = ["9.5", "65.0", "None", "[2.0, 4.0]", "7.0"]


def made(kind, docs=DOCS, **options):
    model = getattr(lmms, kind)(batch_size="1", device=None, **options)
    model.task_dict = {"task": {"test": docs}}
    return model


def simple(number, settings, to_text=None):
    to_visual = lambda doc: [doc["video"]]
    rounds = () if to_text is None else (to_text,)
    return SimpleNamespace(args=("What?", settings, to_visual, *rounds, number, "task", "test"))


def chat(number, settings, to_messages=None):
    def plain(doc, **more):
        shown = {"type": "video", "url": doc["video"]}
        content = [shown, {"type": "text", "text": "What?"}]
        return [{"role": "user", "content": content}]

    return SimpleNamespace(args=("", to_messages or plain, settings, number, "task", "test"))


def test_the_manifest_names_classes_of_their_kind(stand_in, root):
    found = lmms.manifest()
    assert found.model_id == "jaxmem"
    for path, is_simple in ((found.simple, True), (found.chat, False)):
        module, name = path.rsplit(".", 1)
        kind = getattr(sys.modules[module], name)
        assert issubclass(kind, Base) and kind.is_simple is is_simple
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, name = points["lmms_eval.models"]["jaxmem"].partition(":")
    assert getattr(sys.modules[module], name) is lmms.manifest


@pytest.mark.parametrize(("kind", "request_of"), [("Simple", simple), ("Chat", chat)])
def test_requests_become_questions_at_their_times(stand_in, kind, request_of):
    model = made(kind, model="DIR", budget=64)
    assert model.streams.given == ("DIR", "omnimem", "64")
    settings = [{"max_new_tokens": 8 if i == 2 else 16, "until": ["."]} for i in range(len(DOCS))]
    settings[0] = {"max_new_tokens": 16, "until": " stop"}
    replies = model.generate_until([request_of(i, one) for i, one in enumerate(settings)])
    assert replies == ["9.5.", "65", "None", "[2.0, 4.0]", "7"]
    assert {most: len(asked) for asked, most in model.streams.calls} == {16: 5, 8: 1}
    every = [one for asked, _ in model.streams.calls for one in asked]
    assert sorted(map(repr, every)) == sorted(map(repr, ASKED))
    assert [one[0] for one in model.added] == ["generate_until"] * 5
    with pytest.raises(NotImplementedError, match="asks for likelihoods"):
        model.loglikelihood([])


def test_rounds_go_on_as_the_task_says(stand_in):
    """Both protocols: the first record has two further rounds, the second one none."""

    def to_text(doc, previous_output, round_idx, previous_round_info):
        assert len(previous_output) == round_idx
        assert previous_round_info == (None if round_idx == 1 else "kept")
        done = "realtime" not in doc or round_idx == 3
        return None, f"round {round_idx}", done, previous_output, "kept"

    def to_messages(doc, **more):
        if not more:
            return chat(0, {}).args[1](doc)
        _, text, done, said, kept = to_text(doc, **more)
        return (None if done else [{"role": "user", "content": text}]), done, said, kept

    for kind, requests in (
        ("Simple", [simple(i, {}, to_text) for i in range(2)]),
        ("Chat", [chat(i, {}, to_messages) for i in range(2)]),
    ):
        model = made(kind)
        said = model.generate_until_multi_round(requests)
        assert [len(one) for one in said] == [3, 1] and said[0][2] == "9.5. stop here"
        asked = [[q.text for q in questions] for questions, _ in model.streams.calls]
        assert asked == [["What?", "What?"], ["round 1"], ["round 2"]]
        assert {q.video for questions, _ in model.streams.calls for q in questions} == {"a.mp4"}


def test_chats_may_cut_a_video_and_pictures_are_refused(stand_in):
    model = made("Chat")

    def cut(doc):
        shown = {"type": "video", "url": "c.mp4", "start_time": 5, "end_time": "0:08"}
        return [{"role": "system", "content": "Be brief."},
                {"role": "user", "content": [shown, {"type": "text", "text": "Q"}]}]  # fmt: skip

    model.generate_until([chat(2, {}, cut)])
    assert model.streams.calls[0][0] == [Question("c.mp4", "Be brief.\nQ", 8.0, 5.0)]
    picture = lambda doc: [{"role": "user", "content": [{"type": "image", "url": object()}]}]
    with pytest.raises(ValueError, match="about one video, given by its path; this task gives obj"):
        model.generate_until([chat(2, {}, picture)])
    with pytest.raises(ValueError, match="gives nothing"):
        model.generate_until([chat(2, {}, lambda doc: [{"role": "user", "content": "Q"}])])


def test_harnesses_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    lmms._made.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'jaxmem\[lmms\]'"):
        _ = lmms.Simple
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = lmms.Other
    monkeypatch.setitem(sys.modules, "vlmeval.config", None)
    with pytest.raises(ValueError, match="needs VLMEvalKit"):
        vlmeval.register()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": 1}, "unknown option x: give model"),
        ({"memory": "recent,full"}, "one memory at a time"),
        ({"dtype": "float32"}, "--dtype has no effect"),
        ({"uniform.sinks": 1}, "the memory is recent"),
        ({"recent.sink": 1}, "do not parse: --recent.sink 1"),
        ({"scorer": "x"}, "without --memory retention"),
        ({"recent.reindex": "yes"}, "recent.reindex is True or False, got 'yes'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    given = {"model": "tiny", "memory": "recent", "budget": "64"} | options
    with pytest.raises(ValueError, match=message):
        Streams(given.pop("model"), given.pop("memory"), given.pop("budget"), **given)


@pytest.mark.parametrize("as_given", [bool, str])
def test_what_is_on_or_off_is_given_as_harnesses_do(monkeypatch, as_given):
    """As Python's True or False, or as that word; other words are not taken for it."""
    monkeypatch.setattr(streams, "setup_of", lambda config, *more: config)

    def read(memory, given):
        return Streams("tiny", memory, "64KiB", **given).setup.options[memory]

    on, off = as_given(True), as_given(False)
    given = {"last_copy.carry": on, "last_copy.per_head": off, "last_copy.text": "keys"}
    assert read("last_copy", given) == {"carry": True, "per_head": False, "text": "keys"}
    assert read("last_copy", {"last_copy.per-head": on}) == {"per_head": True}
    given = {"flexmem.own_audio": off, "flexmem.long_term": on}  # the second may be None, too
    assert read("flexmem", given) == {"own_audio": False, "long_term": True}
    name = {"omnimem.profile": as_given(True)}
    assert read("omnimem", name) == {"profile": "True"}


def from_args(text):
    """The plug-in as lmms-eval makes it of --model_args: no comma within brackets separates."""
    pairs = (part.split("=", 1) for part in re.split(r",(?![^\[]*\])", text))
    return lmms.Simple(**{key: int(x) if x.isnumeric() else x for key, x in pairs}).streams.setup


@pytest.fixture
def options_alone(stand_in, monkeypatch):
    """The plug-in reads its options, and loads no model."""
    monkeypatch.setattr(lmms, "Streams", Streams)
    monkeypatch.setattr(streams, "setup_of", lambda config, *more: config)


def test_every_option_of_several_values_is_given_in_brackets(options_alone):
    found = from_args("model=tiny,memory=hermes,hermes.shares=[0.2,1],budget=64").options
    assert found == {"hermes": {"shares": (0.2, 1.0)}}
    count = 0
    for name in NAMES:
        for key, option in worded(name).items():
            several = (kind for kind in members(option.type) if get_origin(kind) is tuple)
            for kinds in map(get_args, several):
                given = [1, 2, 3] if kinds[-1] is Ellipsis else list(range(1, 1 + len(kinds)))
                for text in (str(given), str(given).replace(" ", "")):
                    found = from_args(f"memory={name},budget=64KiB,{name}.{key}={text}").options
                    assert found == {name: {key: tuple(given)}}
                count += 1
    assert count >= 6
    assert from_args("memory=flexmem,flexmem.reader_layers=3").options["flexmem"] == {
        "reader_layers": (3,)
    }
    assert from_args("memory=pyramid,pyramid.grid=None").options["pyramid"] == {"grid": None}
    given = {"pyramid.grid": (4, 4)}
    assert Streams("tiny", "pyramid", "64", **given).setup.options["pyramid"] == {"grid": (4, 4)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hermes,hermes.shares=[0.1]", r"hermes.shares takes 2 numbers in brackets, got '\[0.1\]'"),
        ("hermes,hermes.shares=0.1", "hermes.shares takes 2 numbers in brackets, got '0.1'"),
        ("hermes,hermes.shares=[0.1", r"got '\[0.1': give them as hermes.shares=\[0.1,0.3\]."),
        ("hermes,hermes.shares=[0.1,x]", "hermes.shares takes 2 numbers"),
        ("pyramid,pyramid.grid=[4,4.5]", r"takes 2 whole numbers .* pyramid.grid=\[1,2\]\."),
        ("flexmem,flexmem.reader_layers=[]", "takes any number of whole numbers in brackets"),
    ],
)
def test_other_values_in_brackets_are_refused(options_alone, given, said):
    with pytest.raises(ValueError, match=said):
        from_args(f"memory={given}")


def test_questions_lose_the_placeholders_of_their_video():
    assert streams.text_of("<video>\nWhat? <image>") == "What?"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [str(held_out(i, 5, folder, count=0, scale=1, fps=2)[0]) for i in range(2)]


@pytest.mark.slow
def test_videos_are_streamed_once(clips, monkeypatch):
    """With the embedded model: the replies are those of a session asked at the same times."""
    opened, asked = [], "Which was the last shape?"

    def open_for(model, path, **options):
        opened.append(str(path))
        return jm.feeding.open_for(model, path, **options)

    monkeypatch.setattr(benchmark_watch, "open_for", open_for)
    model = Streams("tiny", "recent", "64", **{"recent.sinks": 0})
    first, second = clips
    order = [(first, 4.0), (second, None), (first, 2.0), (first, None)]
    replies = model.replies([Question(video, asked, at) for video, at in order], 4)
    assert opened == [first, second]
    tiny = jm.load("tiny")
    for (video, at), reply in zip(order, replies, strict=True):
        session = jm.Session(tiny, jm.memory_for(tiny, "recent", 64, sinks=0))
        assert session.watch(video, stop=at).ask(asked).text == reply
    with pytest.warns(UserWarning, match=r"absent.mp4: 2 question\(s\) have no reply"):
        assert model.replies([Question("absent.mp4", asked)] * 2) == ["", ""]


@pytest.mark.slow
def test_vlmevalkit_takes_a_model_from_its_table(clips, monkeypatch):
    """A stand-in for the kit; questions in turn about a video share its stream."""
    table = {}
    for name, held in (
        ("vlmeval", {}), ("vlmeval.config", {"supported_VLM": table}), ("vlmeval.vlm", {}),
        ("vlmeval.vlm.base", {"BaseModel": type("BaseModel", (), {})}),
    ):  # fmt: skip
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    vlmeval._made.cache_clear()
    vlmeval.register("mine", memory="recent", budget=64)
    model = table["mine"]()
    assert model.VIDEO_LLM and isinstance(model, sys.modules["vlmeval.vlm.base"].BaseModel)
    text = {"type": "text", "value": "Which was the last shape?"}
    shown = [{"type": "video", "value": one} for one in clips]
    tiny = jm.load("tiny")
    for one, clip in zip(shown, clips, strict=True):
        session = jm.Session(tiny, jm.memory_for(tiny, "recent", 64)).watch(clip)
        assert model.generate_inner([one, text], "MLVU") == session.ask(text["value"]).text
        kept = model.streams.session(clip)
        model.generate_inner([one, text])
        assert model.streams.session(clip) is kept
    with pytest.raises(ValueError, match="about one video.*image"):
        model.generate_inner([{"type": "image", "value": "a.jpg"}, text])
    vlmeval._made.cache_clear()


@pytest.mark.lmms
@pytest.mark.parametrize("force", [(), ("--force_simple",)], ids=["chat", "simple"])
@pytest.mark.parametrize("output", ["generate_until", "generate_until_multi_round"])
def test_lmms_eval_runs_the_plug_in(output, force, tmp_path):
    """The installed lmms-eval, from its command line, on questions that the model knows."""
    pytest.importorskip("lmms_eval")
    docs = []
    for seed in range(2):
        path, asked = held_out(seed, 8, tmp_path, count=3)
        docs += [{"video": str(path), "question": q.text, "answer": q.answer, "realtime": q.time}
                 for q in asked]  # fmt: skip
    write_task(tmp_path, docs, output)
    how = "model=tiny,memory=recent,budget=200"
    right, _ = evaluated(tmp_path, "--model", "jaxmem", "--model_args", how, *force)
    assert right == 1.0
