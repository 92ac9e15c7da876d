"""Small copies of streaming benchmarks in the layouts of their own files, with their traps.

Words are ours. A layout writes files to a folder and returns what `read` is to find there.
"""

from pathlib import Path

from benchmark_files import ABCD, LETTERED, Expected, dump, touch


def streamingbench(folder: Path):
    touch(folder, "videos/sample_1_real.mp4")

    def entry(window, *stamps, **more):
        asked = [
            {"task_type": "Object Perception", "question": "Which shape?", "time_stamp": stamp,
             "answer": "C", "options": LETTERED, "required_ability": "x"} | more
            for stamp in stamps
        ]  # fmt: skip
        return {"video_path": "./videos/sample_1_real.mp4", "time": window, "questions": asked}

    dump(
        folder / "questions_real.json",
        [
            entry("[0:0:0 - 0:1:0]", "00:00:30", "00:00:20"),  # not in the order of time
            entry("[0:12:0 - 0:13:0]", "00:12450"),
            entry("[0:5:0 - 0:6:10]", "05:11:00"),
            entry("[0:0:0 - 0:1:0]", "00:24"),
            entry("", "soon"),
            entry("[0:0:0 - 0:1:0]", "00:00:10", answer="E"),
        ],
    )
    five = [*LETTERED, "E. none"]
    kinds = ({"task_type": t} for t in ("Scene Understanding", "Anomaly Context Understanding"))
    omni = [entry("", "00:00:10", options=five, answer="E", **kind) for kind in kinds]
    dump(folder / "questions_omni.json", omni)
    bare = {"options": ABCD, "answer": "B"}  # 98 sequential options have no letters
    first, then = entry("", "00:00:10", **bare), entry("", "00:00:20", **bare)
    for one in (first, then):
        one["questions"] = one["questions"][0]
    dump(folder / "questions_sqa.json", [[first, then]])
    waiting = entry("", "00:00:03", ground_truth_time_stamp="00:00:05", ground_truth_output="GOAL")
    dump(folder / "questions_proactive.json", [waiting])
    real = "Object Perception"
    return Expected(
        [
            (real, 30, 2, 4, "options"), (real, 20, 2, 4, "options"), (real, 765, 2, 4, "options"),
            (real, 311, 2, 4, "options"), (real, 24, 2, 4, "options"),
            ("Scene Understanding", 10, 4, 5, "options"),
            ("Anomaly Context Understanding", 10, 4, 5, "options"),
            ("Sequential Question Answering", 10, 1, 4, "options"),
            ("Sequential Question Answering", 20, 1, 4, "options"),
            ("Proactive Output", 3, "GOAL", 0, "proactive"),
        ],
        problems=["'soon', expected hours", "'E', expected a letter of 4"],
        mended=["'00:12450' is read as 765 s", "'05:11:00' is read as 311 s", "'00:24'"],
        labels=[("ability", "x")],
        groups={"Real-time", "Omni-source", "Contextual"},
        videos=["videos/sample_1_real.mp4"] * 10,
    )  # fmt: skip


def ovo_bench(folder: Path):
    touch(folder, "src_videos/COIN/a.mp4")
    base = {"video": "COIN/a.mp4", "question": "Which shape?"}
    asked = base | {"options": [*ABCD, "none"], "realtime": 10.5}
    probes = [{"realtime": 20, "count": 2}, {"realtime": 9.5, "count": 1}]  # not in order
    steps = [{"realtime": 5, "step": "cut", "type": 1}, {"realtime": 6, "step": "stir", "type": 0}]
    dump(
        folder / "ovo_bench_new.json",
        [
            asked | {"id": 0, "task": "EPM", "answer": "another wording", "gt": 4},
            asked | {"id": 1, "task": "OCR", "answer": "square", "gt": 0},  # contradicts "gt"
            {"id": 2, "task": "REC", "video": "COIN/a.mp4", "activity": "jump",
             "start_times": [1], "end_times": [2], "test_info": probes},
            {"id": 3, "task": "SSR", "video": "COIN/a.mp4", "tutorial": "cook",
             "all_steps": ["cut"], "start_time": [1], "end_time": [2], "test_info": steps},
            base | {"id": 4, "task": "CRR", "answer": "x", "ask_time": 3, "clue_time": 7,
                    "test_info": [{"realtime": 8, "type": 1}, {"realtime": "x", "type": 1}]},
            asked | {"id": 5, "task": "ATR", "gt": 7},
            asked | {"id": 6, "task": "XYZ", "gt": 1},
        ],
    )  # fmt: skip
    return Expected(
        [
            ("EPM", 10.5, 4, 5, "options"), ("OCR", 10.5, 0, 5, "options"),
            ("REC", 9.5, "1", 0, "count"), ("REC", 20, "2", 0, "count"),
            ("SSR", 5, "Yes", 0, "yes_no"), ("SSR", 6, "No", 0, "yes_no"),
            ("CRR", 8, "Yes", 0, "yes_no"),
        ],
        problems=["'x', expected seconds", "is 7, expected 0 to 4", "'XYZ', expected one of EPM"],
        evidence=[*[None] * 6, (7, 7)],
        groups={"Backward", "Real-time", "Forward"},
        videos=["src_videos/COIN/a.mp4"] * 7,
    )  # fmt: skip


def rvs(folder: Path, which: str, video: str):
    touch(folder, video)
    turns = [
        {"question": "What was it?", "answer": "a star", "start_time": 3, "end_time": 9.5},
        {"question": "And then?", "answer": "a cross", "start_time": 3, "end_time": 9.5},
        {"question": "And then?", "answer": "a cross", "start_time": 3},
    ]
    record = {"video_id": "v1", "video_path": f"data/{video}", "duration": 20}
    record |= {"conversations": turns, "clip_start_time": 2, "clip_end_time": 12}
    dump(folder / f"rvs_{which}.json", [record])
    return Expected(
        streams=[(0, 1.0 if video.endswith(".npy") else None)] * 2,
        items=[("", 9.5, "a star", 0, "text"), ("", 9.5, "a cross", 0, "text")],
        problems=['no "end_time"'],
        evidence=[(3, 9.5)] * 2,
        videos=[video] * 2,
    )


def vstream_qa(folder: Path):
    touch(folder, "own.mp4", "movie.mp4")
    dump(folder / "rvs_movie.json", {"c1": {"video": "movie", "start": 60, "end": 90.5}})
    dump(folder / "vs_ego.json", [{"video_id": "own"}])
    base = {"question": "What?", "answer": "a star", "answer_type": "object"}
    records = [base | {"id": 1, "video_id": "own"}, base | {"id": 2, "video_id": "c1"}]
    dump(folder / "test_qa_ego4d.json", [*records, base | {"id": 3}])
    return Expected(
        [("object", None, "a star", 0, "text"), ("object", 90.5, "a star", 0, "text")],
        problems=['no "video_id"'],
        evidence=[None, (60, 90.5)],
        videos=["own.mp4", "movie.mp4"],
    )


def ovbench(folder: Path):
    touch(folder, "COIN/b.mp4", "AVA/frames1/000001.jpg")
    base = {"question": "Which?", "candidates": ABCD, "answer": "Star.", "start": 10, "end": 20.5}
    coin = [base | {"video": "COIN/b.mp4", "task": "FP", "subtask": "goal"}]
    dump(folder / "COIN.json", [*coin, coin[0] | {"end": 5}])
    dump(folder / "AVA.json", [base | {"video": "AVA/frames1", "fps": 2}])
    return Expected(
        streams=[(10, 2), (10, None)],
        items=[("AVA", 20.5, 2, 4, "options"), ("FP", 20.5, 2, 4, "options")],
        problems=["is 5 s, not after"],
        videos=["AVA/frames1", "COIN/b.mp4"],
    )
