"""Facts planted in prose: five digits that a name goes with, said once and asked for later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxmem.typing import Int

Tokenize = Callable[[str], np.ndarray]
BREAK = "\n\n"
DIGITS = 5  # of a key
WHO = (
    "Alice", "Bruno", "Clara", "Daniel", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas",
    "Karla", "Leon", "Maria", "Nils", "Olga", "Peter", "Rosa", "Simon", "Tanja", "Victor",
)  # fmt: skip


class Phrasing(NamedTuple):
    """How a fact is said, how it is asked for, and how the answer begins."""

    said: str
    asked: str
    begins: str


PHRASINGS = (
    Phrasing(
        "The pass key of {who} is {key}.",
        "What is the pass key of {who}?",
        "The pass key of {who} is ",
    ),
    Phrasing(
        "Remember that {who} keeps the money in locker {key}.",
        "In which locker does {who} keep the money?",
        "{who} keeps the money in locker ",
    ),
    Phrasing(
        "To reach {who} by telephone, dial {key}.",
        "What must one dial to reach {who} by telephone?",
        "To reach {who} by telephone, dial ",
    ),
    Phrasing(
        "The ticket that {who} bought has the number {key}.",
        "Which number has the ticket that {who} bought?",
        "The ticket that {who} bought has the number ",
    ),
)


class Fact(NamedTuple):
    """A fact and the question about it."""

    said: str
    question: str
    answer: str
    depth: float  # where it is said, as a part of the text
    phrasing: int  # number in `PHRASINGS`


class Asked(NamedTuple):
    """A question about a text, in tokens."""

    question: Int[np.ndarray, "q"]
    answer: Int[np.ndarray, "a"]
    fact: Fact


class Planted(NamedTuple):
    """A text with facts in it."""

    ids: Int[np.ndarray, "N"]
    asked: tuple[Asked, ...]
    rounds: int = 0  # how often all of the prose had passed before its end


def depths(count: int) -> list[float]:
    """Return `count` depths, evenly spaced, none at either end."""
    return [(i + 0.5) / count for i in range(count)]


def facts(number: int, where: Sequence[float], seed: int = 0) -> list[Fact]:
    """Return one fact for every depth, in the phrasing that follows from `number` of the text.

    Names differ within a text, keys are drawn.

    Raises:
      ValueError: if there are more depths than names.
    """
    if len(where) > len(WHO):
        raise ValueError(f"{len(where)} facts need as many names, there are {len(WHO)}.")
    rng = np.random.default_rng((seed, number))
    names = rng.permutation(len(WHO))
    out = []
    for i, depth in enumerate(where):
        key = "".join(str(d) for d in rng.integers(0, 10, DIGITS))
        kind = (number + i) % len(PHRASINGS)
        said, asked, begins = (part.format(who=WHO[names[i]], key=key) for part in PHRASINGS[kind])
        question = f"{BREAK}Question: {asked}\nAnswer: {begins}"
        out.append(Fact(said, question, key, depth, kind))
    return out


def plant(
    tokenize: Tokenize, prose: Sequence[str], first: int, tokens: int, given: Sequence[Fact]
) -> Planted:
    """Return a text of `tokens` tokens from paragraph `first` on, facts between its paragraphs.

    A fact comes before the paragraph that would pass its depth.

    Args:
      tokenize: text to ids.
      prose: paragraphs; after the last one comes the first.
      first: the text begins there.
      tokens: N.
      given: what is planted.

    Raises:
      ValueError: if the text is too short for its facts.
    """
    waiting = sorted(given, key=lambda fact: fact.depth)
    parts: list[np.ndarray] = []
    held, at = 0, first
    while held < tokens:
        part = tokenize(prose[at % len(prose)] + BREAK)
        while waiting and held + len(part) > waiting[0].depth * tokens:
            parts.append(tokenize(waiting.pop(0).said + BREAK))
            held += len(parts[-1])
            if held > tokens:
                raise ValueError(
                    f"a text of {tokens} tokens is too short for {len(given)} facts: give more "
                    "tokens, or fewer depths."
                )
        parts.append(part)
        held, at = held + len(part), at + 1
    ids = np.concatenate(parts)[:tokens].astype(np.int32)
    asked = [Asked(tokenize(f.question), tokenize(f.answer), f) for f in given]
    return Planted(ids, tuple(asked), (at - first - 1) // len(prose))
