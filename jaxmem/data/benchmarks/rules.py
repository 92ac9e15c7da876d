"""How a reply is read and scored: the rules that benchmarks use, and one that is safe for all.

A rule for options says whether a reply names the right one. Rules differ by many points on the same
replies, so scores are comparable under the same rule only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

from jaxmem.data.benchmarks.item import Item, Rule
from jaxmem.data.benchmarks.reading import letter

PHRASES = (
    "the best answer is", "the correct answer is", "the answer is", "the answer", "best answer:",
    "the best option is", "the correct option is", "best option:",
)  # fmt: skip
"""What "prefix_search" takes from in front of a reply."""
IN_TIME = 2.0
"""Seconds that a proactive answer may be early or late (StreamingBench)."""
NUMBERS: Sequence[str] = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()


def first_character(reply: str, count: int) -> int | None:
    """Return the option whose letter is the first character (StreamingBench)."""
    return _number(reply.strip()[:1], count)


def before_parenthesis(reply: str, count: int) -> int | None:
    """Return that of the character before the first ")", or of the first one (ReKV, MVBench)."""
    head, found, _ = reply.strip().partition(")")
    return _number(head.strip()[-1:] if found else head[:1], count)


def prefix_search(reply: str, count: int) -> int | None:
    """Return the first letter behind a phrase such as "The best answer is" (Video-MME)."""
    text = reply.strip()
    for phrase in PHRASES:
        text = re.sub(rf"^{re.escape(phrase)}", "", text, flags=re.IGNORECASE).strip()
    found = re.search(f"[A-{letter(max(count, 4) - 1)}]", text)
    return None if found is None else _number(found[0], count)


def a_on_failure(reply: str, count: int) -> int | None:
    """Return what "prefix_search" finds, and A where that is nothing (WorldSense)."""
    found = prefix_search(reply, count)
    return 0 if found is None else found


def ranked(reply: str, count: int) -> int | None:
    """Return the letter in the most telling place, the latest of equal ones (lmms-eval)."""
    one = f"([A-{letter(count - 1)}])"
    forms = (
        (10, rf"^\s*{one}(?:[.):\s]|$)"), (9, rf"(?:^|\s){one}[.)]?\s*$"),
        (7, rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*\(?{one}\b"), (6, rf"\({one}\)"),
        (5, rf"\b{one}\."), (4, rf"\b{one}:"), (3, rf"\b{one}\)"), (2, rf"\b{one} "),
    )  # fmt: skip
    found = [
        (weight, match.start(1), match[1]) for weight, x in forms for match in re.finditer(x, reply)
    ]
    return _number(max(found)[2], count) if found else None


def _number(text: str, count: int) -> int | None:
    number = ord(text) - ord("A") if len(text) == 1 else -1
    return number if 0 <= number < count else None


READERS: dict[str, Callable[[str, int], int | None]] = {
    "first_character": first_character,
    "before_parenthesis": before_parenthesis,
    "prefix_search": prefix_search,
    "a_on_failure": a_on_failure,
    "ranked": ranked,
}
"""Rules that read a letter."""
RULES: tuple[str, ...] = get_args(Rule)
"""All of them: "contains" takes the right letter anywhere in the reply (OVO-Bench)."""


class Score(NamedTuple):
    """What a reply is worth; None: that is for a judge to say, or it does not count."""

    official: bool | None
    safe: bool | None
    read: bool  # whether the safe rule found anything to score in the reply
    in_time: bool | None = None  # of a proactive one
    said: bool | None = None  # of a proactive one: whether the reply has the right words, whenever


def score(
    item: Item, reply: str, *, rule: str, empty_counts: bool = True, at: float | None = None
) -> Score:
    """Score a reply by a benchmark's rule, and by the safe one.

    The safe rule for options: a whole-word letter among the item's own, else the option whose text
    the reply contains, else wrong. For numbers: the first one, in digits or words. For yes and no:
    the first of the two.

    Args:
      item: what was asked.
      reply: the model's words.
      rule: in `RULES`, for options.
      empty_counts: whether the benchmark counts an empty reply as wrong.
      at: when the reply came, seconds; of a proactive item.
    """
    counts = empty_counts or bool(reply.strip())
    if item.form == "text":
        return Score(None, None, bool(reply.strip()))
    if item.form == "proactive":
        in_time = at is not None and item.due is not None and abs(at - item.due) <= IN_TIME
        said = str(item.right).lower() in reply.lower()
        return Score(in_time and said, in_time and said, bool(reply.strip()), in_time, said)
    if item.form == "count":
        official = "".join(re.findall(r"\d", reply)) == str(item.right)
        found = _first_number(reply)
        return Score(official if counts else None, found == int(item.right), found is not None)
    if item.form == "yes_no":
        right = str(item.right)
        official = right in reply or reply.strip() == right[0]
        word = re.search(r"\b(yes|no)\b", reply, re.IGNORECASE)
        said = word is not None and word[1].lower() == right.lower()
        return Score(official if counts else None, said, word is not None)
    right, count = int(item.right), len(item.options)
    if rule == "contains":
        official = letter(right) in reply
    else:
        official = READERS[rule](reply, count) == right
    read = safe_option(reply, item.options)
    return Score(official if counts else None, read == right, read is not None)


def safe_option(reply: str, options: Sequence[str]) -> int | None:
    """Return the option that a reply names by a whole-word letter, or else by its text.

    "A" in front of a word in small letters may be an article: it counts where there is no other
    letter and no text. Of several texts that the reply contains the longest is meant.
    """
    letters = f"[A-{letter(len(options) - 1)}]"
    articles = []
    for found in re.finditer(rf"(?<![\w'])({letters})(?![\w'])", reply):
        number = ord(found[1]) - ord("A")
        if found[1] not in "AI" or not re.match(r" +[a-z]", reply[found.end() :]):
            return number
        articles.append(number)
    held = [i for i, one in enumerate(options) if _is_said(one, reply)]
    held.sort(key=lambda i: len(options[i]), reverse=True)
    if len(held) > 1 and _plain(options[held[0]]) == _plain(options[held[1]]):
        return None
    return next(iter((*held, *articles)), None)


def _is_said(option: str, reply: str) -> bool:
    """Return whether a reply holds an option; one without words ("?") has to be all of it."""
    if plain := _plain(option):
        return f" {plain} " in f" {_plain(reply)} "
    return option.strip() == reply.strip() != ""


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _first_number(reply: str) -> int | None:
    found = re.search(rf"\d+|\b(?:{'|'.join(NUMBERS)})\b", reply, re.IGNORECASE)
    if found is None:
        return None
    return int(found[0]) if found[0].isdigit() else NUMBERS.index(found[0].lower())
