"""Prose that is everywhere, and facts planted in it."""

import numpy as np
import pytest

from jaxmem.data.text.facts import PHRASINGS, WHO, depths, facts, plant
from jaxmem.data.text.prose import documents, paragraphs


def letters(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def text_of(ids):
    return bytes(ids.astype(np.uint8)).decode(errors="replace")


def test_every_machine_has_prose():
    found = paragraphs(documents())
    assert len(found) > 1000 and all(p.strip() for p in found)


def test_a_folder_of_texts_stands_in_its_place(tmp_path):
    (tmp_path / "b.md").write_text("second\n\n" * 400)
    (tmp_path / "a.txt").write_text("first\n\n" * 400)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "other.bin").write_bytes(b"\xff" * 5000)
    found = paragraphs(documents(tmp_path))
    assert found == ["first"] * 400 + ["second"] * 400
    (tmp_path / "c.rst").write_bytes(b"\xff" * 5000)
    with pytest.raises(ValueError, match=r"c\.rst is no text in UTF-8"):
        documents(tmp_path)
    with pytest.raises(ValueError, match="nothing is no folder"):
        documents(tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no text of at least"):
        documents(tmp_path / "nothing")


def test_a_document_without_empty_lines_has_its_facts_at_their_depths():
    text = ("some words in a line\n" * 500).strip()
    assert paragraphs([text]) == [text]
    cut = paragraphs([text], 400)
    assert max(map(len, cut)) <= 400 and "\n".join(cut) == text
    planted = text_of(plant(letters, cut, 0, 6000, given := facts(0, depths(5))).ids)
    for fact in given:
        assert 0 <= fact.depth - planted.find(fact.said) / 6000 < 402 / 6000
    assert paragraphs(["x" * 900], 400) == ["x" * 400, "x" * 400, "x" * 100]
    words = paragraphs(["one two " * 300], 100)
    assert max(map(len, words)) <= 100 and " ".join(words).split() == ["one", "two"] * 300


def test_facts_lie_at_their_depths_and_are_asked_for():
    given = facts(3, depths(5))
    prose = paragraphs(documents())
    text = plant(letters, prose, 40, 6000, given)
    words = text_of(text.ids)
    assert len(text.ids) == 6000 and len({fact.answer for fact in given}) == 5
    longest = max(len(letters(p)) for p in prose) + 2
    for one in text.asked:
        at = words.index(one.fact.said)
        assert one.fact.depth * 6000 - longest < at <= one.fact.depth * 6000 + 200
        assert words.count(one.fact.answer) == 1 == one.fact.said.count(one.fact.answer)
        assert one.fact.answer not in one.fact.question
        assert text_of(one.answer) == one.fact.answer and len(one.answer) == 5
    assert {one.fact.phrasing for one in text.asked} == set(range(len(PHRASINGS)))
    again, other = plant(letters, prose, 40, 6000, facts(3, depths(5))), facts(4, depths(5))
    np.testing.assert_array_equal(again.ids, text.ids)
    assert {f.answer for f in other}.isdisjoint(f.answer for f in given)


def test_texts_that_are_too_short_are_refused():
    prose = ["word " * 8] * 3
    with pytest.raises(ValueError, match="too short for 5 facts"):
        plant(letters, prose, 0, 60, facts(0, depths(5)))
    with pytest.raises(ValueError, match=f"there are {len(WHO)}"):
        facts(0, depths(30))
