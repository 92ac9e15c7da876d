"""The synthetic world: no leak, pure functions of the seed, right answers, pictures and sound."""

import numpy as np
import pytest

from jaxmem.data.world import scene as w
from jaxmem.data.world import synthetic as sy
from jaxmem.data.world.questions import _ASK


@pytest.fixture(scope="module")
def stream():
    return sy.world(sy.split_seed("validation", 3), 64, "standard")


@pytest.fixture(scope="module")
def many():
    return [sy.world(sy.split_seed("validation", i), 64) for i in range(24)]


def test_same_seed_same_stream(stream):
    again = sy.world((1, 3), 64, w.Difficulty())
    for a, b in zip(stream.events, again.events, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(sy.frames(stream), sy.frames(again))
    np.testing.assert_array_equal(sy.sound(stream), sy.sound(again))
    assert sy.questions(stream, 10) == sy.questions(again, 10)
    assert sy.questions(stream, 10) != sy.questions(stream, 10, seed=1)


def test_splits_never_share_a_stream():
    seeds = [sy.split_seed(s, i) for s in sy.SPLITS for i in range(3)]
    seeds += [sy.split_seed("train", 0, 0, 1), sy.split_seed("train", 0, 1, 0)]
    sounds = [sy.sound(sy.world(s, 16)).tobytes() for s in seeds]
    assert len(set(sounds)) == len(seeds)
    events = [tuple(sy.world(s, 64).events.seed) for s in seeds]  # variants of every sound
    for i, a in enumerate(events):
        for b in events[i + 1 :]:
            assert not set(a) & set(b)


def test_event_rate_is_constant():
    for seconds in (64, 256):
        n = [len(sy.world((9, i), seconds).events.start) for i in range(30)]
        assert 0.8 * seconds / 6 < np.mean(n) < 1.25 * seconds / 6


def test_events_are_unambiguous(many):
    overlaps = 0
    for s in many:
        e = s.events
        rings = np.zeros(s.seconds, int)
        for i in np.flatnonzero(e.sound >= 0):
            rings[e.start[i] : e.end[i]] += 1
        assert rings.max(initial=0) <= 1
        for t in range(s.seconds):
            covered = [
                p for g in (e, s.decoys) for i in range(len(g.start)) for p in w.patches(g, i, t)
            ]
            assert len(covered) == len(set(covered)), "two glyphs in one patch"
            shown = [i for i in range(len(e.start)) if w.patches(e, i, t)]
            overlaps += len(shown) > 1
        assert np.all(np.diff(e.start) >= 0)
        assert np.all(e.end > e.start) and np.all(e.end <= s.seconds)
    assert overlaps > 5


def test_world_has_everything(many):
    e = [s.events for s in many]
    glyph, sound = (np.concatenate([getattr(x, n) for x in e]) for n in ("glyph", "sound"))
    assert set(glyph) == set(range(-1, len(w.SHAPES)))
    assert set(sound) == set(range(-1, len(w.SOUNDS)))
    assert np.concatenate([x.large for x in e]).any()
    assert any(np.any(x.row[:, 0] != x.row[:, 1]) for x in e)
    assert {k for s in many for k in s.distractors.kind} == set(range(len(w.DISTRACTORS)))
    assert sum(len(s.scenery.start) > 1 for s in many) > 5
    repeated = [np.bincount(x.glyph[x.glyph >= 0], minlength=8).max() > 1 for x in e]
    assert np.mean(repeated) > 0.5


def test_shares_of_questions(many):
    asked = [q for s in many for q in sy.questions(s, 50)]
    share = np.mean([q.evidence_time < 0 for q in asked])
    assert 0.08 < share < 0.18
    for name in sy.TYPES:
        answers = [q.answer for q in asked if q.type == name]
        assert len(answers) > 15
        top = max(answers.count(a) for a in set(answers)) / len(answers)
        assert top < 0.62, f"{name} can be guessed"


def replay(stream, question):
    """The answer by brute force over a table of seconds (independent of `questions`)."""
    e, t = stream.events, question.time
    words = question.text.lower().strip("?").replace(",", "").split()
    shapes = [x for x in words if x in w.SHAPES + w.DECOYS]
    sounds = [x for x in words if x in w.SOUNDS]
    seen, rings = [[] for _ in range(t)], [None] * t
    for events in (e, stream.decoys):
        for i in range(len(events.start)):
            for s in range(events.start[i], min(events.end[i], t)):
                if events.glyph[i] >= 0:
                    name = (w.SHAPES + w.DECOYS)[events.glyph[i]]
                    seen[s].append((name, w.COLOURS[events.colour[i]], w.patches(events, i, s), i))
                if events.sound[i] >= 0:
                    rings[s] = (w.SOUNDS[events.sound[i]], i)

    def shown(name):
        return [(s, x) for s in range(t) for x in seen[s] if x[0] == name]

    def run(hits):
        """Seconds of the last event among (second, event) pairs."""
        return [s for s, i in hits if i == hits[-1][1]]

    kind = question.type
    if kind == "colour":
        hits = shown(shapes[0])
        return hits[-1][1][1] if hits else "none"
    if kind == "where":
        hits = shown(shapes[0])
        if not hits:
            return "none"
        row, col = np.mean(hits[-1][1][2], axis=0)
        return ("bottom" if row > 1.5 else "top") + ("right" if col > 1.5 else "left")
    if kind == "sound_when":
        hits = [(s, x[3]) for s, x in shown(shapes[0])]
        found = {rings[s][0] for s in run(hits) if rings[s]} if hits else set()
        return found.pop() if found else "none"
    if kind == "shape_when":
        hits = [(s, r[1]) for s, r in enumerate(rings) if r and r[0] == sounds[0]]
        found = {x[0] for s in run(hits) for x in seen[s] if x[0] in w.SHAPES} if hits else set()
        return found.pop() if found else "none"
    if kind == "heard":
        return "yes" if any(r and r[0] == sounds[0] for r in rings) else "no"
    if kind == "order":
        last = {n: max([s for s, _ in shown(n)], default=-1) for n in shapes}
        last |= {
            n: max([s for s, r in enumerate(rings) if r and r[0] == n], default=-1) for n in sounds
        }
        best = max(last, key=last.__getitem__)
        return best if last[best] >= 0 else "none"
    if kind == "count":
        if shapes:
            n = len({x[3] for _, x in shown(shapes[0])})
        else:
            n = len({r[1] for r in rings if r and r[0] == sounds[0]})
        return ("none", "one", "two", "many")[min(n, 3)]
    shape_seconds = [[x[0] for x in s if x[0] in w.SHAPES] for s in seen]
    sound_seconds = [r[0] for r in rings if r]
    if kind == "shape_now":
        return (shape_seconds[-1] or ["none"])[0]
    if kind == "sound_now":
        return rings[-1][0] if rings[-1] else "none"
    if kind == "last_shape":
        return next((s[0] for s in shape_seconds[::-1] if s), "none")
    if kind == "last_sound":
        return (sound_seconds or ["none"])[-1]
    if kind == "first_sound":
        return (sound_seconds or ["none"])[0]
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", list(sy.TYPES))
def test_answers_are_right(many, kind):
    for s in many[:8]:
        for q in sy.questions(s, 12, seed=2, types=(kind,)):
            assert q.type == kind
            assert replay(s, q) == q.answer, q
            assert -1 <= q.evidence_time <= q.time


def test_answers_are_right_where_scenes_come_back(many):
    """The stream of every seed has look-alikes: one thing differs, and a question is about it."""
    asked = []
    for s in [sy.world(one.seed, 64, "recurring") for one in many[:8]]:
        for q in sy.questions(s, 12, seed=2):
            assert replay(s, q) == q.answer, q
        asked += [later_lookalike(s, q) for q in sy.questions(s, 12, types=("colour", "where"))]
    plain = [
        later_lookalike(s, q)
        for s in many[:8]
        for q in sy.questions(s, 12, types=("colour", "where"))
    ]
    assert np.mean(asked) > 0.3 > 10 * np.mean(plain)


def later_lookalike(stream, question):
    """Whether another shape of one colour came to the same place, after the one asked for."""
    e = stream.events
    name = question.text.strip("?").split()[-1]
    rows = np.flatnonzero(e.start < question.time)
    mine = [i for i in rows if e.glyph[i] >= 0 and w.SHAPES[e.glyph[i]] == name]
    if not mine:
        return False
    last = max(mine, key=lambda i: e.end[i])
    same = (e.colour == e.colour[last]) & (e.row[:, 0] == e.row[last, 0])
    same &= (e.col[:, 0] == e.col[last, 0]) & (e.glyph != e.glyph[last]) & (e.glyph >= 0)
    return bool(np.any(same[rows] & (e.start[rows] >= e.end[last])))


@pytest.mark.parametrize("level", ["moving", "flicker"])
def test_pictures_of_a_level_differ_from_second_to_second(stream, level):
    """The same frame at any time and in any company; nothing stands still that did before."""
    other = sy.world(stream.seed, 64, level)
    times = np.arange(0, 12, 0.5) + 0.25
    pictures = sy.frames(other, times).astype(int)
    np.testing.assert_array_equal(sy.frames(other, times[5:6]), pictures[5:6])
    larger = sy.frames(other, times[5:7], scale=2).astype(int)[:, ::2, ::2]
    assert np.abs(larger - pictures[5:7]).mean() < 12
    before = sy.frames(stream, times).astype(int)
    change = lambda x: np.abs(np.diff(x, axis=0)).mean()
    assert change(pictures) > 1.5 * change(before)


def test_levels_that_touch_pictures_alone_share_events(stream):
    knobs = {"pan": 2.0, "flicker": 0.2, "grain": 0.06}
    other = sy.world(stream.seed, 64, w.Difficulty(**knobs))
    for a, b in zip(stream.events, other.events, strict=True):
        np.testing.assert_array_equal(a, b)
    assert sy.questions(stream, 10) == sy.questions(other, 10)
    np.testing.assert_array_equal(sy.sound(stream), sy.sound(other))
    assert not np.array_equal(sy.frames(stream), sy.frames(other))


def test_every_type_has_a_function():
    assert set(sy.TYPES) == set(_ASK)


def test_frames(stream):
    pictures = sy.frames(stream)
    assert pictures.shape == (64, 48, 48, 3) and pictures.dtype == np.uint8
    some = np.array([0.5, 7.25, 63.9])
    np.testing.assert_array_equal(sy.frames(stream, some)[0], pictures[0])
    large = sy.frames(stream, np.arange(64) + 0.5, scale=4)
    assert large.shape == (64, 192, 192, 3)
    small = large.reshape(64, 48, 4, 48, 4, 3).mean((2, 4))
    assert np.abs(small - pictures).mean() < 1.0
    split = sy.frames(stream, some)
    np.testing.assert_array_equal(split[1:], sy.frames(stream, some[1:]))


def test_glyphs_are_where_and_what_the_labels_say(stream):
    colour, glyph = sy.patch_labels(stream)
    pictures = sy.frames(stream).astype(int)
    patches = (
        pictures.reshape(64, 4, 12, 4, 12, 3).transpose(0, 1, 3, 2, 4, 5).reshape(64, 16, 144, 3)
    )
    spread = patches.max(-1) - patches.min(-1)  # saturation
    shown = glyph > 0
    assert shown.any()
    assert np.all(spread.max(-1)[shown] > 120)
    assert np.mean(spread.max(-1)[~shown] > 120) < 0.01
    strong = spread.argmax(-1)
    red = np.argwhere(colour == 1 + w.COLOURS.index("red"))
    for t, p in red:
        assert patches[t, p, strong[t, p]].argmax() == 0


def test_number_labels_count_occurrences(many):
    for s in many[:6]:
        number, (_, glyph), sounds = sy.number_labels(s), sy.patch_labels(s), sy.sound_labels(s)
        shape = (glyph > 0) & (glyph <= len(w.SHAPES))
        np.testing.assert_array_equal(number[:, :16] > 0, shape)
        np.testing.assert_array_equal(number[:, 16:] > 0, sounds > 0)
        for q in sy.questions(s, 12, seed=3, types=("count",)):
            if q.answer == "none":
                continue
            name = next(x for x in w.SHAPES + w.SOUNDS if f" {x} " in q.text)
            if name in w.SHAPES:
                is_it = glyph == 1 + w.SHAPES.index(name)
                seen = number[:, :16]
            else:
                is_it = sounds == 1 + w.SOUNDS.index(name)
                seen = number[:, 16:]
            hits = np.argwhere(is_it[: q.time])
            if len(hits) and q.evidence_time <= hits[-1][0] + 1:
                last = hits[-1]
                assert ("one", "two", "many")[seen[last[0], last[1]] - 1] == q.answer, q


def test_fewer_classes_repeat_more():
    few = w.Difficulty(classes=3)
    for i in range(5):
        e = sy.world((1, i), 64, few).events
        common = np.bincount(e.glyph[e.glyph >= 0], minlength=8)
        assert np.sort(common)[-3:].sum() >= 0.8 * common.sum()


def test_sound(stream):
    samples = sy.sound(stream)
    assert samples.shape == (64 * 16000,) and samples.dtype == np.float32
    assert np.isfinite(samples).all()
    labels = sy.sound_labels(stream)
    level = np.sqrt((samples.reshape(64, 4, 4000) ** 2).mean(-1))
    assert labels.max() > 0
    assert np.median(level[labels > 0]) > 3 * np.median(level[labels == 0])


def test_all_voices_sound_different():
    from jaxmem.data.world import sounds
    from jaxmem.data.world.features import log_mel

    rng = np.random.default_rng(0)
    means = []
    for voice in sounds._VOICES.values():
        wave = voice(16000, 0.5, rng)
        wave = np.asarray(0.1 * wave / wave.std(), np.float32)
        means.append(log_mel(wave).mean(0))
    means = np.array(means)
    distance = np.abs(means[:, None] - means[None]).mean(-1) + 9 * np.eye(len(means))
    assert distance.min() > 0.1


def test_disturbances_keep_type_and_change_little(stream):
    rng = np.random.default_rng(0)
    pictures = sy.frames(stream)[:8]
    other = sy.disturb_frames(pictures, rng)
    assert other.dtype == np.uint8 and other.shape == pictures.shape
    assert 0 < np.abs(other.astype(int) - pictures).mean() < 30
    samples = sy.sound(stream)
    changed = sy.disturb_sound(samples, rng)
    assert changed.dtype == np.float32 and changed.shape == samples.shape
    assert not np.array_equal(changed, samples)


def test_errors_name_the_repair(stream):
    with pytest.raises(ValueError, match="easy, standard, hard, moving, flicker, recurring"):
        sy.world(0, 8, "brutal")
    with pytest.raises(ValueError, match="1 second or more"):
        sy.world(0, 0)
    with pytest.raises(ValueError, match="train, validation, test"):
        sy.split_seed("dev", 0)
    with pytest.raises(ValueError, match="0 or more"):
        sy.split_seed("test", -1)
    with pytest.raises(ValueError, match="0 <= t < 64"):
        sy.frames(stream, np.array([64.0]))
    with pytest.raises(ValueError, match="scale"):
        sy.frames(stream, scale=0)
    with pytest.raises(ValueError, match="colour, where"):
        sy.questions(stream, 1, types=("smell",))
    with pytest.raises(ValueError, match="1 to 64"):
        sy.questions(stream, 1, times=(0,))
