"""Questions about a stream of `world.world`, with their only right answers.

"Most recent" is meant throughout. A question that the overlap of events makes ambiguous is never
asked. Times are whole seconds: a question at time t knows the seconds 0 .. t-1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxmem.data.world.recurring import lookalikes
from jaxmem.data.world.scene import COLOURS, DECOYS, GRID, QUADRANTS, SHAPES, SOUNDS, Events, Stream

GLYPHS = SHAPES + DECOYS
TYPES = {
    "colour": 3.0, "where": 3.0, "sound_when": 2.5, "shape_when": 2.5, "heard": 1.5, "order": 2.0,
    "count": 2.0, "shape_now": 1.0, "sound_now": 1.0, "last_shape": 1.2, "last_sound": 1.0,
    "first_sound": 0.8,
}  # fmt: skip  # question type: how often it is drawn
ABSENT = 0.1  # share of the questions about a thing that was not shown yet
_ASKED_ALIKE = 0.7  # share of questions about a shape that mean one which another looks like
_ASKED_DECOY = 0.08  # share of the colour questions about dots or stripes


class Question(NamedTuple):
    """A question asked at `time` (s); `evidence_time`: when what it is about ended, -1 if never."""

    time: int
    text: str
    answer: str
    type: str
    evidence_time: float


class _Past(NamedTuple):
    """What was shown before a time: rows of `Events`, cut at that time."""

    time: int
    events: Events
    decoys: Events
    alike: list[int]  # shapes that something took the place of and looks like, and asked for so


_Draft = tuple[str, str, float]  # text, answer, evidence time


def questions(
    stream: Stream,
    count: int,
    seed: int = 0,
    times: tuple[int, ...] | None = None,
    types: tuple[str, ...] | None = None,
) -> list[Question]:
    """Draw questions about a stream, in order of time.

    Args:
        stream: what is asked about.
        count: how many.
        seed: another seed gives other questions about the same stream.
        times: the seconds to ask at; default any from 1 to the end.
        types: the kinds of question, of `TYPES`; default all.

    Raises:
        ValueError: an unknown type, or a time outside 1 .. seconds.
    """
    names = tuple(TYPES) if types is None else types
    unknown = [n for n in names if n not in TYPES]
    if unknown or not names:
        raise ValueError(f"unknown question types {unknown}: use some of {', '.join(TYPES)}")
    allowed = np.arange(1, stream.seconds + 1) if times is None else np.asarray(times, int)
    if not allowed.size or allowed.min() < 1 or allowed.max() > stream.seconds:
        raise ValueError(f"times must be whole seconds from 1 to {stream.seconds}, got {times}")
    rng = np.random.default_rng(np.random.SeedSequence((*stream.seed, 7, seed)))
    weights = np.array([TYPES[n] for n in names])
    busy = {
        "shape_now": allowed[np.isin(allowed - 1, _seconds(stream.events, "glyph"))],
        "sound_now": allowed[np.isin(allowed - 1, _seconds(stream.events, "sound"))],
    }
    out: list[Question] = []
    for name in rng.choice(names, 20 * count + 20, p=weights / weights.sum()):
        if len(out) == count:
            break
        name = str(name)
        # Most seconds are empty: ask about the present mostly when there is something.
        pool = busy.get(name, allowed)
        pool = pool if len(pool) and rng.random() < 0.7 else allowed
        time = int(rng.choice(pool))
        draft = _ASK[name](_past(stream, time), rng)
        if draft is not None:
            text, answer, evidence = draft
            out.append(Question(time, text, answer, name, float(evidence)))
    if len(out) < count:
        raise ValueError(f"only {len(out)} of {count} questions fit: allow more times or types")
    return sorted(out, key=lambda q: q.time)


def _seconds(events: Events, field: str) -> np.ndarray:
    """Seconds in which something is shown or heard."""
    rows = np.flatnonzero(getattr(events, field) >= 0)
    spans = [np.arange(events.start[i], events.end[i]) for i in rows]
    return np.concatenate([*spans, np.zeros(0, int)])


def _past(stream: Stream, time: int) -> _Past:
    def cut(events: Events) -> Events:
        n = int(np.searchsorted(events.start, time))
        kept = Events(*(field[:n] for field in events))
        return kept._replace(end=np.minimum(kept.end, time))

    events = cut(stream.events)
    alike = lookalikes(events) if stream.difficulty.recur else []
    return _Past(time, events, cut(stream.decoys), alike)


def _latest(events: Events, field: str, value: int) -> int:
    """Row of the most recent event with that class, -1 if there was none."""
    rows = np.flatnonzero(getattr(events, field) == value)
    return int(rows[np.argmax(events.end[rows])]) if len(rows) else -1


def _draw(rng: np.random.Generator, classes: np.ndarray, size: int, absent: float = ABSENT) -> int:
    """A class that was present (mostly) or one that was not."""
    present = np.unique(classes[classes >= 0])
    others = np.setdiff1d(np.arange(size), present)
    pick_other = len(others) and (not len(present) or rng.random() < absent)
    return int(rng.choice(others if pick_other else present))


def _shape(past: _Past, rng: np.random.Generator) -> int:
    """A shape to ask about; where scenes come back, often one that another looks like."""
    if past.alike and rng.random() < _ASKED_ALIKE:
        return int(rng.choice(past.alike))
    return _draw(rng, past.events.glyph, len(SHAPES))


def _overlapping(events: Events, row: int, field: str) -> np.ndarray:
    """Rows with something to see or hear during the time of another row."""
    meets = (events.start < events.end[row]) & (events.end > events.start[row])
    return np.flatnonzero(meets & (getattr(events, field) >= 0))


def _colour(past: _Past, rng: np.random.Generator) -> _Draft:
    events = past.decoys if rng.random() < _ASKED_DECOY else past.events
    if events is past.decoys:
        glyph = len(SHAPES) + _draw(rng, events.glyph - len(SHAPES), len(DECOYS))
    else:
        glyph = _shape(past, rng)
    row = _latest(events, "glyph", glyph)
    verb = "were" if GLYPHS[glyph] in DECOYS else "was"
    text = f"What colour {verb} the {GLYPHS[glyph]}?"
    return (text, "none", -1) if row < 0 else (text, COLOURS[events.colour[row]], events.end[row])


def _where(past: _Past, rng: np.random.Generator) -> _Draft:
    e = past.events
    glyph = _shape(past, rng)
    text = f"Where was the {SHAPES[glyph]}?"
    row = _latest(e, "glyph", glyph)
    if row < 0:
        return text, "none", -1
    step = e.end[row] - e.start[row] - 1
    half = GRID // 2
    quadrant = 2 * (e.row[row, step] >= half) + (e.col[row, step] >= half)
    return text, QUADRANTS[quadrant], e.end[row]


def _partner(past: _Past, rng: np.random.Generator, asked: str, wanted: str) -> _Draft | None:
    """The class of the other sense at the same time as the most recent one of a class."""
    e = past.events
    names = {"glyph": SHAPES, "sound": SOUNDS}
    glyph = asked == "glyph"
    value = _shape(past, rng) if glyph else _draw(rng, e.sound, len(SOUNDS))
    if glyph:
        text = f"Which sound came with the {SHAPES[value]}?"
    else:
        text = f"Which shape was there during the {SOUNDS[value]}?"
    row = _latest(e, asked, value)
    if row < 0:
        return text, "none", -1
    partners = np.unique(getattr(e, wanted)[_overlapping(e, row, wanted)])
    if len(partners) > 1:
        return None
    return text, names[wanted][partners[0]] if len(partners) else "none", e.end[row]


def _heard(past: _Past, rng: np.random.Generator) -> _Draft:
    value = _draw(rng, past.events.sound, len(SOUNDS), absent=0.5)
    row = _latest(past.events, "sound", value)
    text = f"Was the {SOUNDS[value]} heard?"
    return (text, "no", -1) if row < 0 else (text, "yes", past.events.end[row])


def _order(past: _Past, rng: np.random.Generator) -> _Draft | None:
    e = past.events
    field, names = ("glyph", SHAPES) if rng.random() < 0.5 else ("sound", SOUNDS)
    a, b = _draw(rng, getattr(e, field), len(names)), _draw(rng, getattr(e, field), len(names))
    if a == b:
        return None
    text = f"Which came last, the {names[a]} or the {names[b]}?"
    i, j = _latest(e, field, a), _latest(e, field, b)
    if i < 0 and j < 0:
        return text, "none", -1
    if i >= 0 and j >= 0 and e.start[i] < e.end[j] and e.start[j] < e.end[i]:
        return None
    later = a if j < 0 or (i >= 0 and e.end[i] > e.end[j]) else b
    return text, names[later], e.end[i if later == a else j]


def _count(past: _Past, rng: np.random.Generator) -> _Draft:
    e = past.events
    if rng.random() < 0.5:
        field, names, verb = "glyph", SHAPES, "was the {} shown"
    else:
        field, names, verb = "sound", SOUNDS, "was the {} heard"
    classes = getattr(e, field)
    number = np.bincount(classes[classes >= 0], minlength=len(names)).clip(max=3)
    # First the answer, then a class that has it: otherwise nearly every answer would be "one".
    present = np.unique(number[number > 0])
    absent = 0 in number and (not len(present) or rng.random() < ABSENT)
    wanted = 0 if absent else rng.choice(present)
    value = int(rng.choice(np.flatnonzero(number == wanted)))
    text = f"How many times {verb.format(names[value])}?"
    row = _latest(e, field, value)
    return text, ("none", "one", "two", "many")[wanted], -1 if row < 0 else e.end[row]


def _now(past: _Past, rng: np.random.Generator, word: str, field: str) -> _Draft | None:
    """What is shown or heard right before the question."""
    names, classes = {"glyph": SHAPES, "sound": SOUNDS}[field], getattr(past.events, field)
    found = classes[(past.events.end == past.time) & (classes >= 0)]
    if len(found) > 1:
        return None
    return f"Which {word} is there now?", names[found[0]] if len(found) else "none", past.time


def _last_shape(past: _Past, rng: np.random.Generator) -> _Draft | None:
    e, text = past.events, "Which was the last shape?"
    rows = np.flatnonzero(e.glyph >= 0)
    if not len(rows):
        return text, "none", -1
    row = rows[np.argmax(e.end[rows])]
    if len(_overlapping(e, row, "glyph")) > 1:
        return None
    return text, SHAPES[e.glyph[row]], float(e.end[row])


def _end_sound(past: _Past, rng: np.random.Generator, last: bool) -> _Draft:
    text = f"Which was the {'last' if last else 'first'} sound?"
    rows = np.flatnonzero(past.events.sound >= 0)
    if not len(rows):
        return text, "none", -1
    row = rows[-1 if last else 0]
    return text, SOUNDS[past.events.sound[row]], float(past.events.end[row])


_ASK: dict[str, Callable[[_Past, np.random.Generator], _Draft | None]] = {
    "colour": _colour,
    "where": _where,
    "sound_when": partial(_partner, asked="glyph", wanted="sound"),
    "shape_when": partial(_partner, asked="sound", wanted="glyph"),
    "heard": _heard,
    "order": _order,
    "count": _count,
    "shape_now": partial(_now, word="shape", field="glyph"),
    "sound_now": partial(_now, word="sound", field="sound"),
    "last_shape": _last_shape,
    "last_sound": partial(_end_sound, last=True),
    "first_sound": partial(_end_sound, last=False),
}
