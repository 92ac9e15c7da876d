"""A benchmark: a function from the folder of a user's copy to `Item`s, and the names of its rules.

found = jaxmem.data.benchmarks.read("ovo-bench", "OVO-Bench")
found.items, found.problems, found.mended
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from jaxmem.data.benchmarks.reading import Reading

Form = Literal["options", "count", "yes_no", "text", "proactive"]
"""What a reply is: an option, a whole number, yes or no, words for a judge, words in time."""
Average = Literal["questions", "kinds", "groups"]
"""What a score is the mean of: questions; kinds of questions; groups of kinds."""
Rule = Literal[
    "first_character", "before_parenthesis", "prefix_search", "a_on_failure", "ranked", "contains",
]  # fmt: skip
"""How the letter of a reply is read; what each does is in `rules`."""


class Video(NamedTuple):
    """What one stream watches.

    Attributes:
      name: as the annotations name it.
      path: a file, a folder of pictures, or an array of them (.npy); None: there is none.
      start: seconds of the video where the stream begins.
      fps: pictures a second, of pictures without times of their own.
    """

    name: str
    path: Path | None
    start: float = 0.0
    fps: float | None = None

    @property
    def id(self) -> str:
        """Return what tells streams apart, the same on every machine."""
        return f"{self.name}@{self.start}" if self.start else self.name


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
      id: the benchmark's own, or "" where it has none. `Reading.add` makes it unique.
      video: what is watched.
      question: in the benchmark's words, without its options.
      right: number of the right option, or the right text, number or "Yes" or "No".
      options: without the letters that were in front of them.
      asked_at: seconds of the video; None: at its end.
      kind: the benchmark's own name of the type of question.
      group: of kinds, where the benchmark has any.
      evidence: seconds of the video between which the answer can be seen.
      form: what a reply is.
      labels: further names by which the benchmark splits its scores: ("duration", "long").
      polls: times at which a "proactive" question asks whether it is time for it.
      due: the time at which it is.
      record: further fields of the benchmark's own record that a judge's file repeats.
    """

    id: str
    video: Video
    question: str
    right: int | str
    options: tuple[str, ...] = ()
    asked_at: float | None = None
    kind: str = ""
    group: str = ""
    evidence: tuple[float, float] | None = None
    form: Form = "options"
    labels: tuple[tuple[str, str], ...] = ()
    polls: tuple[float, ...] = ()
    due: float | None = None
    record: tuple[tuple[str, Any], ...] = ()


class Problem(NamedTuple):
    """A record that cannot be asked as it stands, or that was mended."""

    where: str  # file and record, or video
    reason: str
    questions: int  # that it costs


@dataclass
class Found:
    """What the files of a benchmark hold."""

    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    mended: list[Problem] = field(default_factory=list)  # at no cost


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and the names of its rules.

    Attributes:
      name: on the command line.
      read: from the files of a folder to items.
      files: patterns of the annotation files, of which one at least is there.
      holds: what they hold, in words.
      rule: by which the benchmark (or the harness that most papers use) reads the letter of a
        reply.
      average: what its score is the mean of.
      empty_counts: whether a question without a reply counts as wrong; else it is left out.
    """

    name: str
    read: Callable[[Reading], None]
    files: tuple[str, ...]
    holds: str
    rule: Rule = "prefix_search"
    average: Average = "questions"
    empty_counts: bool = True

    def __post_init__(self):
        rules, averages = get_args(Rule), get_args(Average)
        for what, good, expected in (
            ("name", isinstance(self.name, str), "text"),
            ("read", callable(self.read), "a function of a Reading"),
            ("files", _are_patterns(self.files), 'a tuple of patterns as ("mine.json",)'),
            ("holds", isinstance(self.holds, str), "text"),
            ("rule", self.rule in rules, f"one of {', '.join(rules)}"),
            ("average", self.average in averages, f"one of {', '.join(averages)}"),
            ("empty_counts", isinstance(self.empty_counts, bool), "True or False"),
        ):
            if not good:
                raise ValueError(
                    f"Benchmark.{what} of {self.name!r} is {getattr(self, what)!r}, expected "
                    f"{expected}."
                )


def _are_patterns(files: Any) -> bool:
    """Return whether files below a folder can be found by these."""
    listed = isinstance(files, tuple | list) and len(files) > 0
    return listed and all(isinstance(x, str) and x and not Path(x).is_absolute() for x in files)
