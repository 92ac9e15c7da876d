"""What is wrong with a question, told where it is read and not after its video was watched."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

from jaxmem.data.benchmarks.item import Form, Item, Video

MOST = 26
"""Options of a question: as many as there are letters."""
SECONDS = "seconds of the video"
PAIRS = 'pairs of a name and a value, as (("name", "value"),)'


def fault(item: Item) -> str | None:
    """Return in words why a question cannot be asked, scored or reported; None if it can."""
    due = (item.due is None and item.form != "proactive") or _is_time(item.due)
    named = ("id", "question", "kind", "group")
    for what, good, expected in (
        *((what, isinstance(getattr(item, what), str), "text") for what in named),
        ("video", isinstance(item.video, Video), "what reading.video(name) returns"),
        ("form", item.form in get_args(Form), f"one of {', '.join(get_args(Form))}"),
        ("asked_at", item.asked_at is None or _is_time(item.asked_at), SECONDS),
        ("due", due, SECONDS),
        ("polls", _are_times(item.polls), SECONDS),
        ("evidence", item.evidence is None or _are_times(item.evidence, 2), f"two {SECONDS}"),
        ("labels", _are_pairs(item.labels, str), PAIRS),
        ("record", _are_pairs(item.record, object), PAIRS),
        ("options", *_options(item)),
        ("right", *_right(item)),
    ):
        if not good:
            return f"Item.{what} is {getattr(item, what)!r:.60}, expected {expected}"
    return None


def _options(item: Item) -> tuple[bool, str]:
    """Return whether the options are good, and what they should be."""
    listed = isinstance(item.options, tuple | list)
    good = listed and all(isinstance(one, str) and one.strip() for one in item.options)
    return item.form != "options" or (good and 2 <= len(item.options) <= MOST), (
        f"2 to {MOST}, none of them empty (a question without options has another form)"
    )


def _right(item: Item) -> tuple[bool, str]:
    """Return whether the right reply is one of the question's form, and what it should be."""
    right, text = item.right, isinstance(item.right, str)
    if item.form == "options":
        count = len(item.options) if _options(item)[0] else 0
        return type(right) is int and 0 <= right < count, f"a number from 0 to {count - 1}"
    if item.form == "count":
        return re.fullmatch("[0-9]+", str(right)) is not None, "a whole number"
    if item.form == "yes_no":
        return text and right in ("Yes", "No"), "Yes or No"
    if item.form == "proactive":
        return text and bool(str(right).strip()), "the words to wait for"
    return text, "text"


def _is_time(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < math.inf


def _are_times(values: Any, count: int | None = None) -> bool:
    listed = isinstance(values, tuple | list) and count in (None, len(values))
    return listed and all(map(_is_time, values))


def _are_pairs(values: Any, kind: type) -> bool:
    """Return whether these are names, each with a value of a kind."""
    return isinstance(values, tuple | list) and all(
        isinstance(one, tuple) and len(one) == 2 and all(map(isinstance, one, (str, kind)))
        for one in values
    )
