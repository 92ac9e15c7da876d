"""Questions of a session apart from any model: what is published, cut, and told when it turns."""

import pytest

from jaxmem.serve.answers import Answer
from jaxmem.serve.question import Question, Standing


class Words:
    """A streamer whose tokens are words."""

    def push(self, ids, done):
        new = [str(i) for i in ids[getattr(self, "count", 0) :]]
        self.count = len(ids)
        return new


def answer():
    return Answer("what", Words())


@pytest.mark.parametrize("late", [0, 1, 2])
def test_an_answer_is_published_whole_whenever_it_is_followed(late):
    """Also what was written before."""
    heard, source, question = [], answer(), Question("q", "what", 3.0)
    steps = [([1], False), ([1, 2], True)]
    for ids, done in steps[:late]:
        source.grow(ids, done, None)
    question.follow(source, heard.append)
    for ids, done in steps[late:]:
        source.grow(ids, done, None)
    kinds = [m["type"].removeprefix("response.") for m in heard]
    assert kinds == ["start", "text.delta", "text.delta", "text.done"]
    assert heard[-1]["text"] == question.answer == "12" and not heard[-1]["cut"]
    assert question.done and question.tokens == 2 and question.first_token_ms > 0
    question.end("too late", heard.append)
    assert len(heard) == 4 and not question.plain()["cut"]


def test_an_answer_that_is_cut_says_so_once_and_is_not_written_on():
    heard, source, question = [], answer(), Question("q", "what", 3.0)
    question.follow(source, heard.append)
    source.grow([1], False, None)
    question.end("the server stops", heard.append)
    source.grow([1, 2], True, None)
    assert heard[-1] == {
        "type": "response.text.done",
        "id": "q",
        "text": "1",
        "cut": True,
        "why": "the server stops",
        "first_token_ms": question.first_token_ms,
    }
    assert source.over and [m["type"] for m in heard].count("response.text.done") == 1
    with pytest.raises(ValueError, match="the server stops"):
        source.reply(0.0)


def test_a_standing_question_tells_when_it_turns_from_no_to_yes():
    heard, asked = [], []

    def ask(text):
        asked.append(answer())
        asked[-1]._streamer.push = lambda ids, done: ids
        return asked[-1]

    standing = Standing("s", "is it there", every=2.0, due=0.0)
    said = ["no", "Yes.", "yes", "no", "yes"]
    for number, text in enumerate(said):
        at = 2.0 * number + 1
        standing.ask(ask, at, heard.append)
        standing.ask(ask, at + 1.5, heard.append)  # it is not due
        asked[-1].grow([text], True, None)
    assert len(asked) == 5 and [m["at"] for m in heard] == [3.0, 9.0]
    assert heard[0] == {"type": "session.alert", "id": "s", "text": "is it there", "at": 3.0}
    standing.ask(ask, 50.0, heard.append)
    standing.ask(ask, 60.0, heard.append)  # the last answer is not over
    asked[-1].fail(ValueError("no engine"))
    assert len(asked) == 6 and standing.plain()["answer"] == "yes" and len(heard) == 2
