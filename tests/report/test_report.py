import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxmem import kv as tk
from jaxmem.data.world.atomic import complete
from jaxmem.kv import AUDIO, EMPTY, VISION
from jaxmem.memory.base import State
from jaxmem.report import tables
from jaxmem.report.compare import comparison
from jaxmem.report.files import write_json, write_picture
from jaxmem.report.kept import Kept, count_modalities, kept
from jaxmem.report.maps import Span, age_histogram, map_edges, memory_map
from jaxmem.report.numbers import clock, milliseconds, size, wilson
from jaxmem.report.results import (
    Answered,
    Compilations,
    Ending,
    Report,
    Result,
    accuracy,
    as_dict,
    by_type,
    median_and_worst,
    start_and_end,
)

LAYERS = [
    Kept(np.array([0.0, 0.0, 5.0, 9.5]), np.array([VISION, VISION, AUDIO, AUDIO], np.int8)),
    Kept(np.array([3.0, 8.0]), np.array([VISION, AUDIO], np.int8)),
]
ANSWERS = (
    Answered(3.0, "What?", "red", 2.0, truth="red", type="colour"),
    Answered(6.0, "Where?", "none", 4.0, truth="topleft", type="where"),
    Answered(9.0, "Who?", "star", 3.0),
)


def result(name="omnimem", answers=ANSWERS, **more):
    values = dict(
        memory=name,
        options={"lam": 0.02},
        reference=False,
        slots=(96, 96),
        kept={"vision": 3},
        nbytes=4096,
        chunk_ms=(3.0, 2.0),
        first_token_ms=(3.0, 4.0),
        answers=answers,
    )
    return Result(**{**values, **more})


def report(*results, **more):
    values = dict(
        model="tiny",
        note="",
        source="clips/a.mp4",
        seconds=10.0,
        chunk_seconds=1.0,
        tokens=200,
        full_bytes=40960,
        wall_seconds=2.0,
        compilations=Compilations(3, 1.5, 0),
        end=Ending(10.0, "everything was decoded", "end"),
        results=results or (result(),),
    )
    return Report(**{**values, **more})


def text_of(*shown, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*shown)
    return console.export_text()


def test_wilson_against_published_values():
    # Newcombe 1998, table I, method 3: 81/263 and 0/20.
    np.testing.assert_allclose(wilson(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(wilson(0, 20), (0.0, 0.1611), atol=5e-5)
    for right, asked in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="right <= asked"):
            wilson(right, asked)


def test_clock_cuts_and_never_rounds_up():
    shown = [clock(t) for t in (0, 59.999, 60, 75.5, 3599.994, 3600, 36125.25)]
    assert shown == ["00:00", "00:59.99", "01:00", "01:15.5", "59:59.99", "1:00:00", "10:02:05.25"]


def test_sizes_and_times():
    assert [size(n) for n in (0, 1023, 1024, 3 << 20, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "5.00 GiB",
    ]
    assert [milliseconds(t) for t in (None, 2.5, 123.4)] == ["-", "2.50 ms", "123 ms"]
    assert [milliseconds(t) for t in (999.4, 1204.0)] == ["999 ms", "1204 ms"]


def test_accuracy_counts_known_truths_only():
    score = accuracy(ANSWERS)
    assert (score.right, score.asked, score.share) == (1, 2, 0.5)
    assert accuracy(ANSWERS[2:]) is None
    assert {k: v.right for k, v in by_type(ANSWERS).items()} == {"colour": 1, "where": 0}


def test_start_and_end_do_not_overlap():
    assert start_and_end([]) is None and start_and_end([1.0]) == (1.0, 1.0)
    assert start_and_end([1.0, 5.0]) == (1.0, 5.0)
    assert start_and_end([9.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 8.0, 2.0]) == (5.0, 5.0)
    assert median_and_worst([]) is None
    assert median_and_worst([3.0, 1.0, 8.0]) == (3.0, 8.0)


def layer(order, kind, ticks):
    n = len(order)
    empty = tk.empty(n, kv_heads=1, head_dim=2, axes=3)
    pos = np.zeros((n, 1, 3), np.int32)
    pos[:, 0, 0] = ticks
    return State(
        empty._replace(
            pos=pos, index=np.array(order)[:, None], modality=np.array(kind, np.int8)[:, None]
        ),
        (),
    )


def test_kept_reads_clocks_and_leaves_empty_slots_out():
    state = layer([0, 7, 15, 0], [VISION, AUDIO, AUDIO, EMPTY], [0, 6, 18, 0])
    (held,) = kept([state], seconds=8.0, seconds_per_tick=0.25)
    np.testing.assert_array_equal(held.time, [0.0, 1.5, 4.5])
    assert held.modality.tolist() == [VISION, AUDIO, AUDIO]
    (held,) = kept([state], seconds=8.0)  # 16 arrivals in 8 seconds
    np.testing.assert_allclose(held.time, [0.0, 3.5, 7.5])
    assert count_modalities([held, held]) == {"vision": 2, "audio": 4}


@pytest.mark.parametrize("seconds", [0.02, 1.0, 10.5, 3600.0, 90000.0])
def test_columns_cover_the_stream(seconds):
    edges = map_edges(seconds, 1.0)
    assert edges[0] == 0 and edges[-1] >= seconds and 1 <= len(edges) - 1 <= 480


def bars(axes):
    return [(p.get_x(), p.get_height(), p.get_facecolor()) for p in axes.patches if p.get_height()]


def test_memory_map_draws_every_kept_token():
    figure = memory_map(
        LAYERS,
        seconds=10.0,
        title="omnimem",
        happened=[Span(1.0, 3.0, VISION), Span(4.0, 5.0, AUDIO)],
        answers=ANSWERS,
    )
    lanes, strip, ages = figure.axes
    assert [t.get_text() for t in lanes.get_yticklabels()] == ["layer 0", "layer 1"]
    assert [t.get_text() for t in strip.get_yticklabels()] == ["shown", "heard", "asked"]
    # Two pictures of the same second stand sqrt(2) as high as one; pictures go up, sound down.
    heights = sorted(
        {round(h, 6) for x, h, _ in bars(lanes) if 0 <= x < 10 and abs(h) < 0.9 and h != 1.0}
    )
    up = [-h for h in heights if h < 0]
    assert max(up) == pytest.approx(min(up) * np.sqrt(2), rel=1e-4)
    assert any(h > 0 for h in heights)
    total = sum(h for _, h, _ in bars(ages))
    assert total == pytest.approx(6 / 2)  # tokens per layer


def test_pictures_are_written_completely(tmp_path):
    many = [Kept(np.zeros(0), np.zeros(0, np.int8))] * 40
    figures = {
        "map.png": memory_map(LAYERS, seconds=10.0, title="map"),
        "empty.png": memory_map(many, seconds=0.0, title="nothing held"),
        "ages.svg": age_histogram(LAYERS, seconds=7300.0, title="ages"),
        "compare.png": comparison(
            [result(), result("full", (), reference=True, chunk_ms=None, first_token_ms=None)],
            [LAYERS, LAYERS],
            seconds=10.0,
            title="two",
        ),
    }
    for name, figure in figures.items():
        assert write_picture(tmp_path / "new" / name, figure, dpi=40).stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(figures)


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), complete(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_report_as_json_says_what_follows_from_it():
    plain = json.loads(json.dumps(as_dict(report()), allow_nan=False))
    assert plain["format"] == "jaxmem-stream-report" and plain["speed"] == 5.0
    (only,) = plain["results"]
    assert only["accuracy"]["right"] == 1 and set(only["by_type"]) == {"colour", "where"}
    assert [a["right"] for a in only["answers"]] == [True, False, None]


def test_tables_fit_a_terminal_and_say_what_counts():
    shown = text_of(tables.summary(report()))
    for part in ("50% (1/2;", "5.0x real time", "96 slots in each of 2 layers", "10.0%", "0 while"):
        assert part in shown
    assert "adapter" not in shown
    assert "tiny-omnimem" in text_of(tables.summary(report(config={"adapter": "tiny-omnimem"})))
    names = ("omnimem", "last_frames", "full")
    compared = report(*(result(n, slots=(1024, 12288), nbytes=3 << 20) for n in names))
    shown = text_of(tables.comparison(compared))
    assert "…" not in shown and all(name in shown for name in names)
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_lines_show_truth_lateness_and_every_memory():
    wrong = text_of(tables.answers_line(ANSWERS[1:2], ["omnimem"]))
    assert "00:06" in wrong and "none" in wrong and "truth: topleft" in wrong
    late = Answered(6.0, "Who?", "star", 1.0, wanted_time=90.0)
    assert "wanted at 01:30" in text_of(tables.answer_line(late))
    both = text_of(tables.answers_line([ANSWERS[1], ANSWERS[1]], ["omnimem", "recent"]))
    assert "omnimem none" in both and "recent none" in both and "(topleft)" in both
