"""Records of question files: both layouts, times, long files, and what is malformed by its line."""

import json
import re

import pytest

from jaxmem.data.question_files import Asked, QuestionFiles


def turns(*texts, **more):
    roles = ("human", "gpt") * len(texts)
    found = [{"from": r, "value": t} for r, t in zip(roles, texts, strict=False)]
    found[0] |= more
    return found


def record(name="a.mp4", *texts, **more):
    return {"id": name, "video": name, "conversations": turns(*(texts or ("Who?", "Me."))), **more}


def write(path, *records, lines=False, indent=None):
    texts = [json.dumps(each, indent=indent) for each in records]
    path.write_text("\n".join(texts) if lines else "[\n" + ",\n".join(texts) + "\n]\n")
    return path


def test_a_conversation_and_a_single_question(tmp_path):
    long = turns('<image>\nWhat is cut? {["', "An onion. ", "And then?\n<video>", "Peeled.", time=3)
    system = [{"from": "system", "value": "Be brief."}]
    first = {"video": "kitchen/a.mp4", "conversations": system + long, "start": 2, "end": 9.5}
    second = {"video_id": "v_b", "q": "What is cut?", "a": "An onion.", "time": 0}
    found = QuestionFiles([write(tmp_path / "all.json", first, second)])
    assert len(found) == 2
    one, other = found[0], found[1]
    assert one.video == tmp_path / "kitchen/a.mp4" and (one.start, one.stop) == (2.0, 9.5)
    assert one.asked == (
        Asked('What is cut? {["', "An onion.", 3.0),
        Asked("And then?", "Peeled.", None),
    )
    assert other.video == tmp_path / "v_b" and (other.start, other.stop) == (0.0, None)
    assert other.asked == (Asked("What is cut?", "An onion.", 0.0),)
    assert QuestionFiles([tmp_path / "all.json"], folder="away")[1].video.parts == ("away", "v_b")


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_every_record_of_long_files_is_found(tmp_path, lines, indent):
    """Whatever brackets and quotes stand in the texts, with the line that it begins in."""
    odd = ['"', "\\", '\\"', "}{", "][", "ü\n", '"}],"']
    records = [
        record(f"{i}.mp4", f"Q{i}{odd[i % len(odd)]}", f"A{odd[i % len(odd)]}{i}")
        for i in range(300)
    ]
    files = [
        write(tmp_path / f"{part}.json", *records[part::2], lines=lines, indent=indent)
        for part in (0, 1)
    ]
    found = QuestionFiles(files)
    assert len(found) == 300
    for i, each in enumerate(found[j] for j in range(300)):
        number = 2 * (i % 150) + i // 150
        assert each.video.name == f"{number}.mp4"
        question = records[number]["conversations"][0]["value"]
        assert each.asked[0].question == question.strip()
        path, line, place = re.fullmatch(r"(.+):(\d+), record (\d+)", each.where).groups()
        assert int(place) == i % 150 + 1
        assert path == str(files[i // 150])
        before = files[i // 150].read_text().split("\n")[int(line) - 1]
        assert before == "{" if indent else json.dumps(records[number]) in before


def test_a_digest_is_that_of_the_contents(tmp_path):
    one = QuestionFiles([write(tmp_path / "a.json", record())])
    assert QuestionFiles([write(tmp_path / "b.json", record())]).digest == one.digest
    assert QuestionFiles([write(tmp_path / "c.json", record("b.mp4"))]).digest != one.digest


BAD = {
    '"video" is None, expected the path': {"conversations": turns("a", "b")},
    '"conversations" is None, expected a list': {"video": "a"},
    '"conversations" is [1], expected a list of objects': {"video": "a", "conversations": [1]},
    '"from" are [\'human\'], expected "human" and "gpt" in turn': record("a", "Who?"),
    "\"from\" are ['gpt', 'human']": {
        "video": "a", "conversations": turns("a", "b")[::-1]
    },
    '"from" are []': {"video": "a", "conversations": []},
    "the text of the question is '<image>', expected words": record("a", "<image>", "b"),
    "the text of the answer is None, expected words": {"video_id": "a", "q": "Who?"},
    '"time" is -1, expected seconds': {"video_id": "a", "q": "b", "a": "c", "time": -1},
    '"time" is True': {"video_id": "a", "q": "b", "a": "c", "time": True},
    '"start" is \'0:10\', expected seconds': record(start="0:10"),
    '"end" is 3 s, expected more than the 4 s of "start"': record(start=4, end=3),
    '"time" is 7 s, outside of "start" and "end"': {
        "video": "a", "conversations": turns("a", "b", time=7), "end": 6
    },
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_malformed_records_are_named_by_file_and_line(tmp_path, message):
    file = write(tmp_path / "all.json", record(), record(), BAD[message], record())
    with pytest.raises(ValueError, match=r"1 record\(s\) of questions are malformed") as caught:
        QuestionFiles([file])
    assert f"\n  {file}:4, record 3: {message}" in str(caught.value)


@pytest.mark.parametrize(
    "text, line, message",
    [
        ('[\n{"video": "a.mp4", "conve', 2, "the file ends within what begins here"),
        ('[\n{"video_id": "a", "q": "b", "a": "c"},\n"text"\n]', 3, "found '\"text\"'"),
        ('[{"video_id": "a", "q": "b", "a": "c"}\n]\nmore', 3, "found 'more'"),
        ('[{"video_id": "a", "q": "b", "a": }]', 1, "Expecting value"),
        ('{"video_id": "a", "q": "b", "a": "c"}\n\n12', 3, "found '12'"),
        ('[\n{"video": 1]}', 2, "expected a record in braces, found '{\"video\": 1'"),
        ('{"data": [{"video_id": "a", "q": "b", "a": "c"}]}', 1, '"video" is None'),
    ],
)
def test_files_that_are_no_list_of_records(tmp_path, text, line, message):
    file = tmp_path / "all.json"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        QuestionFiles([file])
    assert f"\n  {file}:{line}" in str(caught.value) and message in str(caught.value)


def test_files_without_records(tmp_path):
    for text in ("", "[]", " \n"):
        (tmp_path / "none.json").write_text(text)
        with pytest.raises(ValueError, match="no record in .*none.json"):
            QuestionFiles([tmp_path / "none.json"])
    with pytest.raises(ValueError, match="no record in no file"):
        QuestionFiles([])
    with pytest.raises(ValueError, match="the file of questions .*lost.json cannot be read"):
        QuestionFiles([tmp_path / "lost.json"])
    many = write(tmp_path / "many.json", *[{"video": i} for i in range(12)])
    with pytest.raises(ValueError, match=r"12 record\(s\)") as caught:
        QuestionFiles([many])
    assert str(caught.value).count("many.json") == 10
