"""What the readers of all benchmarks share: their files, records and fields, videos, problems."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxmem.data.benchmarks.checks import fault
from jaxmem.data.benchmarks.item import Benchmark, Found, Item, Problem, Video
from jaxmem.data.benchmarks.videos import Folder

Json = Mapping[str, Any]


class Reading:
    """The folder of a benchmark while it is read, and what was found in it.

    Attributes:
      folder: of the annotations.
      found: items and problems so far.
    """

    def __init__(self, benchmark: Benchmark, folder: Path, videos: Path | None = None):
        """Begin with nothing.

        Args:
          benchmark: whose files are read.
          folder: of the user's copy.
          videos: folder of the videos; None: the same.

        Raises:
          ValueError: if there is no such folder.
        """
        for where in filter(None, (folder, videos)):
            if not where.is_dir():
                raise ValueError(f"{where} is no folder: give that of your copy of the benchmark.")
        self.benchmark, self.folder, self.found = benchmark, folder, Found()
        self._videos = Folder(videos or folder)
        self._ids, self._numbers = Counter[str](), Counter[str]()

    def files(self, *patterns: str) -> list[Path]:
        """Return the files of these names, in the folder itself or else below it."""
        for below in ("", "**/"):
            if found := sorted({x for p in patterns for x in self.folder.glob(below + p)}):
                return [one for one in found if one.is_file()]
        return []

    def records(self, *patterns: str) -> Iterator[tuple[str, Json]]:
        """Yield the records of all such files, each with the place where it stands."""
        return self._records(self.files(*patterns))

    def records_of_first(self, *patterns: str) -> Iterator[tuple[str, Json]]:
        """Yield the records of the files of the first pattern that has any.

        Copies often hold the same questions in several layouts, and each is to be asked once.
        """
        found = (files for one in patterns if (files := self.files(one)))
        return self._records(next(found, []))

    def _records(self, paths: Sequence[Path]) -> Iterator[tuple[str, Json]]:
        for path in paths:
            for number, record in enumerate(records_of(path), 1):
                where = f"{path.relative_to(self.folder)}, record {number}"
                if isinstance(record, Mapping):
                    yield where, record
                else:
                    problem = Problem(where, f"it is {short(record)}, expected an object", 1)
                    self.found.problems.append(problem)

    @contextmanager
    def noting(self, where: str, questions: int = 1) -> Iterator[None]:
        """Note a record that turns out to be malformed as a problem, and go on."""
        before = len(self.found.items)
        try:
            yield
        except MalformedError as error:
            cost = max(questions - (len(self.found.items) - before), 1)
            self.found.problems.append(Problem(where, str(error), cost))

    def mend(self, where: str, reason: str) -> None:
        """Note that a record was read in another way than it stands there."""
        self.found.mended.append(Problem(where, reason, 0))

    def add(self, item: Item) -> None:
        """Take a question, and give it an id that no other one has (`own_id` is the benchmark's).

        The first question of an own id has it as it is, later ones with a number behind it. So ids
        stay when a record before them, one of another id, is mended.

        Raises:
          MalformedError: if it cannot be asked or scored.
        """
        if reason := fault(item):
            raise MalformedError(reason)
        own = item.id or self.numbered(item.video)
        self._ids[own] += 1
        number = self._ids[own]
        # What looks like an id with a number has one of its own: "x#2" is the second "x" alone.
        plain = number == 1 and not NUMBER.search(own)
        self.found.items.append(replace(item, id=own if plain else f"{own}#{number}"))

    def numbered(self, video: Video) -> str:
        """Return an id for a question that has none: its video and a number within that.

        To be called before anything of a record but its video is read: those that turn out to be
        malformed count, and keep their number when they are mended.
        """
        self._numbers[video.id] += 1
        return f"{video.id}.{self._numbers[video.id]}"

    def video(self, *names: str, start: float = 0.0, fps: float | None = None) -> Video:
        """Return a video by the first of its names that there is a file of."""
        found = next((path for name in names if (path := self._videos.find(name))), None)
        return Video(names[0], found, start, fps)


NUMBER = re.compile(r"#[0-9]+\Z")
"""What `Reading.add` puts behind an id that comes again."""


def own_id(item: Item) -> str:
    """Return the id that a benchmark's own record gives a question that was read."""
    return NUMBER.sub("", item.id)


class MalformedError(ValueError):
    """A record says something else than it should."""


def records_of(path: Path) -> list[Any]:
    """Return the records of a file: JSON (a list, or an object by id), JSON lines, CSV or Parquet.

    Those of an object have their key as "_id", and as "_value" what is no record.

    Raises:
      ValueError: if the file holds nothing of the kind.
    """
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        if path.suffix == ".jsonl":
            # str.splitlines would cut at U+2028 and others, which may stand inside a text.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        value = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}. Download it again.") from error
    if isinstance(value, dict):
        return [
            {"_id": k, **(v if isinstance(v, dict) else {"_value": v})} for k, v in value.items()
        ]
    if not isinstance(value, list):
        raise ValueError(f"{path} holds {short(value)}, expected a list of records.")
    return value


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"{path} is read by the package pyarrow: pip install 'jaxmem[benchmarks]'."
        ) from None
    try:
        return parquet.ParquetFile(path).read().to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}. Download it again.") from error


# Fields of records.


def entry(record: Any, *names: str) -> Any:
    """Return the first of some fields that a record has."""
    if not isinstance(record, Mapping):
        raise MalformedError(f"it is {short(record)}, expected an object")
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise MalformedError(f'it has no "{names[0]}"')


def words(record: Any, *names: str, default: str | None = None) -> str:
    """Return a field that is text, or a whole number as text."""
    there = isinstance(record, Mapping) and any(record.get(name) is not None for name in names)
    if default is not None and isinstance(record, Mapping) and not there:
        return default
    found = entry(record, *names)
    found = str(found) if isinstance(found, int) and not isinstance(found, bool) else found
    if not isinstance(found, str) or not (found.strip() or default is not None):
        raise MalformedError(f'"{names[0]}" is {short(found)}, expected text')
    return found.strip()


def seconds(record: Any, *names: str) -> float:
    """Return a field that is a time in seconds."""
    found = entry(record, *names)
    try:
        value = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise MalformedError(f'"{names[0]}" is {short(found)}, expected seconds of the video')
    return value


def listed(record: Any, *names: str) -> Sequence[Any]:
    """Return a field that is a list."""
    found = entry(record, *names)
    if not isinstance(found, list | tuple):
        raise MalformedError(f'"{names[0]}" is {short(found)}, expected a list')
    return found


def choices(record: Any, *names: str) -> tuple[str, ...]:
    """Return a field that is the list of options, without the letters in front of them.

    Empty ones are left out at the end of the list alone: elsewhere that would move the letters.
    """
    found = ["" if option is None else str(option).strip() for option in listed(record, *names)]
    what = f'"{names[0]}" is'
    return _filled(what, unlettered(_filled(what, found)))


def _filled(what: str, options: Sequence[str]) -> tuple[str, ...]:
    """Return options without empty ones at the end; `what` is how an error about them begins."""
    count = max((i for i, one in enumerate(options, 1) if one), default=0)
    if count < 2 or not all(options[:count]):
        raise MalformedError(
            f"{what} {short(list(options))}, expected two options or more, none of them empty"
        )
    return tuple(options[:count])


LABEL = r"\(?{}[).:\]]\s*"
"""Of an option: "A.", "(A)", "A)" or "A:"."""


def unlettered(options: Sequence[str]) -> tuple[str, ...]:
    """Return options without their letters, where all of them have the one of their place."""
    cut = [re.sub(rf"^{LABEL.format(letter(i))}", "", one) for i, one in enumerate(options)]
    changed = all(short != whole for short, whole in zip(cut, options, strict=True))
    return tuple(cut if changed else options)


def letter(number: int) -> str:
    """Return the letter of an option."""
    return chr(ord("A") + number)


def right_letter(answer: str, options: Sequence[str]) -> int:
    """Return the number of the option that a letter names, as "B", "(B)" or "B. text"."""
    found = re.match(r"\(?([A-Z])(?:$|[).:\]\s])", answer.strip())
    number = ord(found[1]) - ord("A") if found else -1
    if not 0 <= number < len(options):
        raise MalformedError(f'"answer" is {short(answer)}, expected a letter of {len(options)}')
    return number


def right_text(answer: str, options: Sequence[str]) -> int:
    """Return the number of the option that has a text; the answer may have its letter in front."""
    plain = [" ".join(one.lower().split()).rstrip(".") for one in (answer, *options)]
    if plain.count(plain[0]) == 1:
        for number, option in enumerate(plain[1:]):
            label = LABEL.format(letter(number).lower())
            if re.fullmatch(label + re.escape(option), plain[0]):
                return number
    if plain.count(plain[0]) == 2:
        return plain.index(plain[0], 1) - 1
    if plain.count(plain[0]) > 2:
        raise MalformedError(f'"answer" is {short(answer)}, the text of several options')
    raise MalformedError(f'"answer" is {short(answer)}, none of the options {short(options)}')


def right_number(value: Any, options: Sequence[str]) -> int:
    """Return a number that counts options from 0."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, bool) or not 0 <= number < len(options):
        raise MalformedError(
            f"the right option is {short(value)}, expected 0 to {len(options) - 1}"
        )
    return number


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a question and the options that are written behind it, from "(A) ..." or "A. ..." on.

    What follows the last option on another line is an instruction, and left out.
    """
    for mark in (r"\({}\)\s*", r"(?m:^)[ \t]*{}[.):]\s*", r"(?<=\s){}[.)]\s+"):
        cuts, at = [], 0
        while found := re.compile(mark.format(letter(len(cuts)))).search(text, at):
            cuts.append(found)
            at = found.end()
        if len(cuts) > 1:
            ends = [*(one.start() for one in cuts[1:]), len(text)]
            each = [text[a.end() : b].strip() for a, b in zip(cuts, ends, strict=True)]
            each[-1] = each[-1].partition("\n")[0].strip()
            return text[: cuts[0].start()].strip(), _filled("the options of the question are", each)
    raise MalformedError(f"the question holds no options: {short(text)}")


def short(value: Any) -> str:
    """Return a value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
