r"""Question files: JSON records of a video and of what is asked about it, read one at a time.

In the layout of LLaVA-Video-178K, as a list or with a record on every line:

    {"video": "kitchen/a.mp4", "conversations": [
        {"from": "human", "value": "<image>\nWhat is cut?", "time": 12.5},
        {"from": "gpt", "value": "An onion."}]}

or in that of Video-Instruct: {"video_id": "v_a", "q": "What is cut?", "a": "An onion."}. "time" (of
a question), "start" and "end" (of what is watched) are seconds of the video, and optional.
"""

import hashlib
import json
import math
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SHOWN = 10  # records that an error names
PLACEHOLDER = re.compile(r"\s*<(?:image|video)>\s*")
SYNTAX = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
SPACE = re.compile(rb"[\s,]*")
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


class Asked(NamedTuple):
    """A question about a video."""

    question: str
    answer: str
    time: float | None  # seconds of the video when it is asked; None: at the end


class Record(NamedTuple):
    """A video and its questions, as they stand in the file."""

    video: Path  # Video-Instruct names it without its suffix
    asked: tuple[Asked, ...]
    start: float  # seconds of the video
    stop: float | None  # None: its end
    where: str  # file, line, and which record of the file it is


class QuestionFiles:
    """The records of some files: a sequence that holds where they lie, and reads one when asked.

    Every record is read once to begin with, so that what is malformed is known before training.

    Attributes:
      digest: hash of the files' contents.
    """

    def __init__(self, files: Sequence[str | Path], folder: str | Path | None = None):
        """Find the records.

        Args:
          files: with records.
          folder: where paths of videos begin; None: in the folder of each file.

        Raises:
          ValueError: if a file cannot be read, or records are malformed; up to ten of them are
            named by file and line.
        """
        self._files, self._folder = [Path(file) for file in files], folder
        mark, problems = hashlib.blake2b(digest_size=16), list[str]()
        found = list[tuple[int, ...]]()
        for number, path in enumerate(self._files):
            found += [(number, i, *x) for i, x in enumerate(_spans(path, mark, problems), 1)]
        self._spans = np.asarray(found, np.int64).reshape(-1, 5)
        self.digest = mark.hexdigest()
        for i in range(len(self)):
            try:
                self[i]
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(
                f"{len(problems)} record(s) of questions are malformed; mend or remove them:\n"
                + "\n".join(f"  {problem}" for problem in problems[:SHOWN])
            )
        if not len(self):
            raise ValueError(f"no record in {', '.join(map(str, self._files)) or 'no file'}.")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Record:
        file, number, start, stop, line = (int(x) for x in self._spans[index])
        path = self._files[file]
        where = f"{path}:{line}, record {number}"
        with path.open("rb") as opened:
            opened.seek(start)
            text = opened.read(stop - start)
        try:
            record = _record(json.loads(text), Path(self._folder or path.parent))
        except ValueError as error:  # those of json are ValueErrors
            raise ValueError(f"{where}: {error}") from None
        return record._replace(where=where)


def _spans(path: Path, mark: Any, problems: list[str]) -> list[tuple[int, int, int]]:
    """Return where the records of a file begin and end, and their lines; note what is none."""
    try:
        with path.open("rb") as file:
            empty = not path.stat().st_size
            data: Any = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ValueError(f"the file of questions {path} cannot be read: {error}") from error
    mark.update(data)
    first = _after_space(data, 0)
    top = int(data[first : first + 1] == b"[")  # depth at which records lie
    spans, depth, past = list[tuple[int, int, int]](), 0, first + top
    begin, line = 0, 1
    for part in SYNTAX.finditer(data, first):
        sign = data[part.start() : part.start() + 1]
        if sign in b"]}":
            depth -= 1
        if depth == top and sign in b"{}":
            if sign == b"{":
                line += data[begin : part.start()].count(b"\n")
                begin = part.start()
                _note(path, data, past, begin, problems)
            else:
                past = part.end()
                spans.append((begin, past, line))
        if sign in b"[{":
            depth += 1
    if depth:
        problems.append(f"{_place(path, begin)}: the file ends within what begins here")
    else:
        end = len(data) if not top else data.rfind(b"]")
        _note(path, data, past, end, problems)
        _note(path, data, end + top, len(data), problems)
    return spans


def _after_space(data: Any, start: int) -> int:
    found = SPACE.match(data, start)
    return found.end() if found else start


def _note(path: Path, data: Any, start: int, stop: int, problems: list[str]) -> None:
    """Note what lies between two records besides space."""
    start = _after_space(data, start)
    if start < stop:
        text = bytes(data[start : min(stop, start + 40)]).decode(errors="replace").strip()
        problems.append(f"{_place(path, start)}: expected a record in braces, found {text!r}")


def _place(path: Path, start: int) -> str:
    """Return the file and the line of one of its bytes."""
    with path.open("rb") as file:
        line = 1 + file.read(start).count(b"\n")
    return f"{path}:{line}"


def _record(value: Any, folder: Path) -> Record:
    """Return what a JSON object says; ValueError if it says something else than it should."""
    video = value.get("video", value.get("video_id"))
    if not isinstance(video, str) or not video:
        raise ValueError(f'"video" is {video!r}, expected the path of a file')
    start, stop = _seconds(value, "start") or 0.0, _seconds(value, "end")
    if stop is not None and stop <= start:
        raise ValueError(f'"end" is {stop:g} s, expected more than the {start:g} s of "start"')
    asked = tuple(_question(*turn) for turn in _turns(value))
    for _, _, time in asked:
        if time is not None and not start <= time <= (math.inf if stop is None else stop):
            raise ValueError(f'"time" is {time:g} s, outside of "start" and "end"')
    return Record(folder / video, asked, start, stop, "")


def _turns(value: dict[str, Any]) -> list[tuple[Any, Any, float | None]]:
    """Return the texts and times of questions and answers."""
    if "q" in value:
        return [(value["q"], value.get("a"), _seconds(value, "time"))]
    turns = value.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f'"conversations" is {_short(turns)}, expected a list of objects')
    turns = [turn for turn in turns if turn.get("from") != "system"]
    roles = [ROLES.get(turn.get("from", "")) for turn in turns]
    if not turns or roles != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError(
            f'"from" are {_short([turn.get("from") for turn in turns])}, expected "human" and '
            '"gpt" in turn'
        )
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [(ask.get("value"), tell.get("value"), _seconds(ask, "time")) for ask, tell in pairs]


def _question(question: Any, answer: Any, time: float | None) -> Asked:
    """Return a question without the placeholder of its video."""
    for what, text in (("question", question), ("answer", answer)):
        if not isinstance(text, str) or not PLACEHOLDER.sub("", text).strip():
            raise ValueError(f"the text of the {what} is {_short(text)}, expected words")
    return Asked(PLACEHOLDER.sub("", question).strip(), answer.strip(), time)


def _seconds(value: dict[str, Any], name: str) -> float | None:
    found = value.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < math.inf:
        raise ValueError(f'"{name}" is {_short(found)}, expected seconds of the video')
    return float(found)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
