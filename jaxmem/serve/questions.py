"""All questions of a served session: their order, their limits, and those that wait for a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from jaxmem.pieces import PieceLike
from jaxmem.serve.limits import Limits, RefusedError, checked_name, shown
from jaxmem.serve.listeners import Publish
from jaxmem.serve.live import Live
from jaxmem.serve.question import CUT, Question, Standing, new_id


class Questions:
    """All questions of one session. Its methods may be called on any thread."""

    def __init__(self, live: Live, limits: Limits, publish: Publish):
        """Begin without questions about a stream."""
        self._live, self._limits, self._publish = live, limits, publish
        self._model = live.engine.model
        self._most = limits.history + limits.questions
        self._asked: deque[Question] = deque(maxlen=self._most)
        self._planned: list[Question] = []
        self._standing: dict[str, Standing] = {}
        self._lock = threading.RLock()

    def remember(self, asked: Iterable[dict[str, Any]], standing: Iterable[dict[str, Any]]) -> None:
        """Take over what `plain` and `standing` gave, of a session that goes on."""
        with self._lock:
            for one in asked:
                cut = {} if one["done"] else {"done": True, "cut": True, "why": CUT}
                self._asked.append(Question(**{**one, **cut}))
            for one in standing:
                mine = {"said": one["answer"], "yes": one["yes"], "due": 0.0}
                about = {key: one[key] for key in ("id", "text", "every")}
                self._standing[one["id"]] = Standing(**about, **mine)

    def new(self, text: object, at: float, id: object = None) -> Question:
        """Return a question that is to be asked with `ask` or `plan`.

        Raises:
          ValueError: if the model does not know the words, the id is there already, or too many
            questions wait.
        """
        name = new_id() if id is None else checked_name(id)
        question = Question(name, self._checked(text), at)
        with self._lock:
            if sum(not q.done for q in self._asked) >= self._limits.questions:
                raise RefusedError(
                    f"{self._limits.questions} questions of this session wait for their answers "
                    "already; wait for one of them.",
                    "busy",
                    429,
                )
            if any(q.id == name for q in self._asked):
                raise RefusedError(f"there was a question {name} already; give another id.")
            self._asked.append(question)
        return question

    def _checked(self, text: object) -> str:
        if not isinstance(text, str) or not text.strip():
            raise RefusedError(f"text must be a question in words, got {shown(text)}.")
        if len(text) > self._limits.words:
            raise RefusedError(
                f"the question has {len(text):,} characters, at most {self._limits.words:,} are "
                "taken; shorten it."
            )
        self._model.tokenize(text)
        return text

    def ask(self, question: Question, unfinished: PieceLike | None = None) -> None:
        """Ask about everything that was fed so far, and an unfinished piece.

        Raises:
          ValueError: if the stream has ended; the question is then forgotten.
        """
        try:
            answer = self._live.ask(question.text, unfinished)
        except ValueError:
            with self._lock:
                self._asked = deque((q for q in self._asked if q is not question), self._most)
            raise
        question.follow(answer, self._publish)

    def plan(self, question: Question) -> None:
        """Ask when the stream has come to the question's time (`due`)."""
        with self._lock:
            self._planned = sorted([*self._planned, question], key=lambda q: q.asked_at)
        waiting = {"type": "response.waiting", "id": question.id, "text": question.text}
        self._publish(waiting | {"at": question.asked_at})

    def due(self, end: float) -> None:
        """Ask what was planned for a time before the next piece's `end`, in seconds of stream.

        A question at time t knows the pieces that ended by t.
        """
        with self._lock:
            due = [q for q in self._planned if q.asked_at < end - 1e-6]
            self._planned = self._planned[len(due) :]
        for question in due:
            self.ask(question)

    def watch(self, text: object, every: object, at: float, id: object = None) -> None:
        """Ask a question with yes or no for an answer every so many seconds of stream.

        Raises:
          ValueError: if the model does not know the words, there are too many such questions, or
            `every` is no length of time.
        """
        if isinstance(every, bool) or not isinstance(every, int | float) or not 0 < every < 1e9:
            raise RefusedError(f"every must be a positive number of seconds, got {shown(every)}.")
        name = new_id() if id is None else checked_name(id)
        one = Standing(name, self._checked(text), float(every), at)
        with self._lock:
            if name in self._standing:
                raise RefusedError(f"there is a standing question {name} already; name another.")
            if len(self._standing) >= self._limits.standing:
                raise RefusedError(
                    f"{self._limits.standing} standing questions are asked already; end one of "
                    "them (session.unwatch).",
                    "busy",
                    429,
                )
            self._standing[one.id] = one
        self._publish({"type": "session.watching", **one.plain()})

    def unwatch(self, id: object) -> None:
        """End a standing question.

        Raises:
          ValueError: if there is none of that id.
        """
        with self._lock:
            if self._standing.pop(str(id), None) is None:
                raise RefusedError(f"there is no standing question {shown(id)}.", "unknown", 404)
        self._publish({"type": "session.unwatched", "id": id})

    def ask_standing(self, at: float) -> None:
        """Ask the standing questions that are due at a stream time."""
        with self._lock:
            standing = list(self._standing.values())
        for one in standing:
            one.ask(self._live.ask, at, self._publish)

    @property
    def waiting(self) -> list[Question]:
        """Return the questions whose answers are not over."""
        with self._lock:
            return [q for q in self._asked if not q.done]

    @property
    def writing(self) -> bool:
        """Return whether an answer is being written."""
        with self._lock:
            return any(q not in self._planned for q in self.waiting)

    @property
    def first_token_ms(self) -> float | None:
        """Return how long the first token of the last answer took; None: none was answered."""
        with self._lock:
            found = [q.first_token_ms for q in self._asked if q.first_token_ms is not None]
        return found[-1] if found else None

    def drop_planned(self, why: str) -> None:
        """Cut the questions whose time has not come."""
        with self._lock:
            planned, self._planned = self._planned, []
        for question in planned:
            question.end(why, self._publish)

    def cut(self, id: str, why: str) -> None:
        """Cut the answer to one question, if it is not over."""
        for question in self.waiting:
            if question.id == id:
                with self._lock:
                    self._planned = [q for q in self._planned if q is not question]
                question.end(why, self._publish)

    def end(self, why: str) -> None:
        """Cut all answers that are not over."""
        self.drop_planned(why)
        for question in self.waiting:
            question.end(why, self._publish)

    def plain(self) -> list[dict[str, Any]]:
        """Return the questions, oldest first, as clients see them and saves keep them."""
        with self._lock:
            return [q.plain() for q in self._asked]

    def standing(self) -> list[dict[str, Any]]:
        """Return the standing questions likewise."""
        with self._lock:
            return [one.plain() for one in self._standing.values()]
