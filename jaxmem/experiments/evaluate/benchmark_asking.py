"""The questions of one video of a benchmark, put to all streams at their times."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxmem.data.benchmarks import Item
from jaxmem.data.benchmarks.prompts import poll
from jaxmem.experiments.evaluate.benchmark_cells import asked_at
from jaxmem.experiments.stream.questions import END, Planned
from jaxmem.experiments.stream.run import Asked, Happened, Stream, put
from jaxmem.finite import NotFiniteError


class Asking:
    """Puts the questions of one video to all streams, and notes the replies of each."""

    def __init__(
        self, items: Sequence[Item], asked: Mapping[str, str], answered: Callable[[], object]
    ):
        """Begin with nothing asked; the arguments are those of `watch`."""
        self.items, self._asked, self._answered = items, asked, answered
        self.replies: dict[str, list[dict[str, Any]]] = {}
        self.broken: dict[str, str] = {}  # memory -> why it cannot answer any more
        self._waiting: deque[tuple[Item, bool]] = deque()

    def planned(self, earliest: float) -> list[Planned]:
        """Return when what is asked, in order; "proactive" items are asked again and again."""
        plan: list[tuple[Planned, Item, bool]] = []
        for item in self.items:
            if item.polls:
                last = len(item.polls) - 1
                for i, time in enumerate(item.polls):
                    plan.append((Planned(max(time, earliest), poll(item)), item, i == last))
            else:
                time = END if item.asked_at is None else max(item.asked_at, earliest)
                plan.append((Planned(time, self._asked[item.id]), item, True))
        plan.sort(key=lambda one: one[0].time)
        self._waiting = deque((item, last) for _, item, last in plan)
        return [one for one, _, _ in plan]

    def __call__(
        self, streams: Sequence[Stream], question: Planned, now: float
    ) -> Iterator[Happened]:
        """Put the next question of the plan."""
        item, last = self._waiting.popleft()
        for one in streams:
            name = one.contestant.name
            done = self.replies.setdefault(name, [])
            if name in self.broken or any(reply["id"] == item.id for reply in done):
                continue
            try:
                if item.polls and not re.search(r"\byes\b", _said(one, question, now), re.I):
                    if last:
                        done.append(self._noted(one, item, None))
                    continue
                if item.polls:
                    question = question._replace(text=self._asked[item.id])
                _said(one, question, now)
                done.append(self._noted(one, item, now))
            except NotFiniteError as error:
                self.broken[name] = str(error)
        if last:
            self._answered()
        yield Asked([one.answers[-1] for one in streams if one.answers])

    def _noted(self, one: Stream, item: Item, now: float | None) -> dict[str, Any]:
        """Return the last answer of a stream as the reply to an item; None: it kept silent."""
        media, answer = one.session.model.media, one.answers[-1]
        return {
            "id": item.id,
            "asked": self._asked[item.id],
            "reply": "" if now is None else answer.answer,
            "time": None if now is None else answer.time,
            "asked_at": asked_at(item),
            "wanted_time": answer.wanted_time,
            "seen": one.session.seconds,  # of the stream, whole pieces
            "frames": one.session.pieces * round(media.fps * media.piece_seconds),
            "tokens": one.session.tokens,
            "first_token_ms": answer.first_token_ms,
        }


def _said(one: Stream, question: Planned, now: float) -> str:
    for _ in put(one, question, now):
        pass
    return one.answers[-1].answer
