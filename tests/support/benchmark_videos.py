"""Small copies of benchmarks that ask at the end of a video, in the layouts of their own files."""

import json
from pathlib import Path

from benchmark_files import ABCD, LETTERED, WITHIN, Expected, dump, parquet, touch


def video_mme(folder: Path):
    touch(folder, "data/abc.mp4")
    row = {"video_id": "001", "duration": "short", "domain": "Knowledge", "url": "u",
           "sub_category": "Law", "videoID": "abc", "question_id": "001-1", "answer": "B",
           "task_type": "Counting Problem", "question": "Many?", "options": LETTERED}  # fmt: skip
    parquet(folder / "test.parquet", [row, row | {"answer": "Z"}])
    return Expected(
        [("Counting Problem", None, 1, 4, "options")],
        problems=["'Z', expected a letter"],
        labels=[("duration", "short"), ("domain", "Knowledge"), ("sub_category", "Law")],
        videos=["data/abc.mp4"],
    )


def mlvu(folder: Path):
    touch(folder, "video/1_plotQA/p.mp4", "video/4_count/p.mp4", "video/9_summary/s.mp4")
    base = {"video": "p.mp4", "duration": 700.5, "question": "Which?"}
    plot = base | {"candidates": ABCD, "answer": "star", "question_type": "plotQA"}
    dump(folder / "json/1_plotQA.json", [plot, plot | {"answer": "moon"}])
    count = plot | {"question_type": "count", "candidates": ["1", "2"], "answer": "2"}
    dump(folder / "json/4_count.json", [count | {"duration": 30}])
    whole = base | {"video": "s.mp4", "answer": "All of it.", "question_type": "summary"}
    dump(folder / "json/9_summary.json", [whole])
    # The same questions as copies have them, which are not read beside the files of the tasks.
    copied = {"video_name": "s.mp4", "question": WITHIN, "answer": "D", "task_type": "summary"}
    dump(folder / "json/mlvu_dev.json", [copied])
    return Expected(
        [
            ("plotQA", None, 2, 4, "options"), ("count", None, 1, 2, "options"),
            ("summary", None, "All of it.", 0, "text"),
        ],
        problems=["'moon', none of the options"],
        labels=[("duration", "10 min and more")],
        videos=["video/1_plotQA/p.mp4", "video/4_count/p.mp4", "video/9_summary/s.mp4"],
    )  # fmt: skip


def longvideobench(folder: Path):
    touch(folder, "videos/v1.mp4")
    base = {"id": "v1_0", "video_id": "v1", "video_path": "v1.mp4", "question": "Which?",
            "correct_choice": 1, "question_category": "S2E", "topic_category": "T", "level": "L1",
            "duration_group": 15, "position": [3], "duration": 12.5}  # fmt: skip
    blank = [ABCD[0], "", *ABCD[2:]]
    listed = [base | {"candidates": ABCD[:2]}, base | {"candidates": ABCD, "correct_choice": 4}]
    dump(folder / "lvb_val.json", [*listed, base | {"candidates": blank}])
    longvideobench_table(folder, base)  # the same questions, which are not read beside the file
    return Expected(
        [("S2E", None, 1, 2, "options")],
        problems=["is 4, expected 0 to 3", "none of them empty"],
        labels=[("duration", "15 s"), ("topic", "T"), ("level", "L1")],
        videos=["videos/v1.mp4"],
    )


def longvideobench_table(folder: Path, record):
    """Write a record as the hub's table has it."""
    columns = {f"option{i}": text for i, text in enumerate([*ABCD[:3], "N/A", "N/A"])}
    parquet(folder / "validation.parquet", [record | columns])


def egoschema(folder: Path):
    touch(folder, "good_clips_git/u1.mp4")
    asked = {"question": "Why?"} | {f"option {i}": f"because {i}" for i in range(5)}
    dump(folder / "questions.json", [asked | {"q_uid": name} for name in ("u1", "u2", "private")])
    dump(folder / "subset_answers.json", {"u1": 3, "u2": 9})
    return Expected(
        [("", None, 3, 5, "options")],
        problems=["is 9, expected 0 to 4"],
        videos=["good_clips_git/u1.mp4"],
    )


def lvbench(folder: Path):
    touch(folder, "all/key1.mp4")
    asked = {"uid": "7", "question": WITHIN, "answer": "C", "question_type": ["er", "kir"],
             "time_reference": "15:05-16:10"}  # fmt: skip
    questions = [asked, asked | {"question": "Which?"}, asked | {"time_reference": "90:00:05"}]
    record = {"key": "key1", "type": "sport", "video_info": {}, "qa": questions}
    lines = "\n".join(map(json.dumps, [record, {"key": "key2"}]))
    (folder / "video_info.meta.jsonl").write_text(lines + "\n")
    return Expected(
        [("", None, 2, 4, "options")] * 2,
        problems=["holds no options", 'no "qa"'],
        labels=[("type", "er"), ("type", "kir"), ("video type", "sport")],
        evidence=[(905, 970), (324005, 324005)],
        videos=["all/key1.mp4"] * 2,
    )


def mvbench(folder: Path):
    touch(folder, "video/star/Charades_v1_480/a.mp4", "video/sta/sta_video/a.mp4")
    touch(folder, "video/tvqa/frames_fps3_hq/s01/00001.jpg")
    base = {"video": "a.mp4", "question": "Which?", "candidates": ABCD, "answer": "cross"}
    cut = base | {"start": 2, "end": 9.5}
    dump(folder / "json/action_sequence.json", [cut])
    dump(folder / "json/action_localization.json", [cut, base | {"answer": "moon"}])
    dump(folder / "json/episodic_reasoning.json", [base | {"video": "s01"}])
    return Expected(
        streams=[(2, None), (2, None), (0, 3)],
        items=[
            ("action localization", 9.5, 3, 4, "options"),
            ("action sequence", 9.5, 3, 4, "options"),
            ("episodic reasoning", None, 3, 4, "options"),
        ],
        problems=["'moon', none of the options"],
        videos=["video/sta/sta_video/a.mp4", "video/star/Charades_v1_480/a.mp4",
                "video/tvqa/frames_fps3_hq/s01"],
    )  # fmt: skip


def timescope(folder: Path):
    touch(folder, "videos/n1.mp4")
    row = {"index": 4, "video": "n1.mp4", "length": 600, "replace_time": 120.5, "type": "QA",
           "answer": "B", "input": "Which shape?\nA. circle\nB. square\nE. no\nReply."}  # fmt: skip
    bad = row | {"index": 5, "input": "Nothing to choose."}
    parquet(folder / "test.parquet", [row, bad])
    return Expected(
        [("QA", None, 1, 2, "options")],
        problems=["holds no options"],
        labels=[("length", "600 s")],
        evidence=[(120.5, 120.5)],
        videos=["videos/n1.mp4"],
    )


def worldsense(folder: Path):
    touch(folder, "videos/w1.mp4", "audios/w1.wav")
    task = {"task_domain": "d", "task_type": "Counting", "question": "How many?",
            "candidates": LETTERED, "answer": "A"}  # fmt: skip
    video = {"duration": 30, "domain": "Sports", "sub_category": "x", "video_caption": "c"}
    both = video | {"audio_class": ["Speech", "Music"], "task0": task}
    dump(folder / "worldsense_qa.json", {"w1": both | {"task1": task | {"answer": ""}}})
    return Expected(
        [("Counting", None, 0, 4, "options")],
        problems=['"answer" is'],
        labels=[("domain", "Sports"), ("audio", "Speech"), ("audio", "Music")],
        videos=["videos/w1.mp4"],
    )


def daily_omni(folder: Path):
    touch(folder, "Videos/d1/d1_video.mp4", "Videos/d1/d1_audio.wav")
    record = {"Type": "Event Sequence", "Question": "Which?", "Choice": LETTERED, "Answer": "D",
              "video_id": "d1", "video_category": "c", "video_duration": "30s"}  # fmt: skip
    dump(folder / "qa.json", [record, {k: v for k, v in record.items() if k != "Choice"}])
    return Expected(
        [("Event Sequence", None, 3, 4, "options")],
        problems=['no "Choice"'],
        labels=[("duration", "30s"), ("category", "c")],
        videos=["Videos/d1/d1_video.mp4"],
    )


def omnivideobench(folder: Path):
    touch(folder, "videos/o1.mp4")
    asked = {"question": "Which?", "question_type": "causal", "audio_type": "Music",
             "reasoning_steps": [], "answer": "star", "correct_option": "C"}  # fmt: skip
    questions = [asked | {"options": LETTERED}, asked | {"options": ABCD}, asked]
    dump(folder / "data.json", [{"video": "o1.mp4", "video_type": "vlog", "duration": "01:00",
                                 "questions": questions}])  # fmt: skip
    return Expected(
        [("causal", None, 2, 4, "options")] * 2,
        problems=['no "options"'],
        labels=[("audio", "Music"), ("video type", "vlog")],
        videos=["videos/o1.mp4"] * 2,
    )


def lvomnibench(folder: Path):
    touch(folder, "videos/l1.mp4")
    record = {"video_id": "l1", "question": "Which?", "options": LETTERED, "correct_option": "A",
              "question_type": "t", "audio_type": "speech", "difficulty": "hard",
              "video_category": "news"}  # fmt: skip
    dump(folder / "data.json", [record, record | {"correct_option": 2}])
    return Expected(
        [("t", None, 0, 4, "options")],
        problems=["'2', expected a letter"],
        labels=[("audio", "speech"), ("difficulty", "hard"), ("category", "news")],
        videos=["videos/l1.mp4"],
    )


def avut(folder: Path):
    touch(folder, "h1.mp4")
    base = {"video_id": "h1", "question": "Which?", "task_type": "AV Counting"}
    human = [base | {"options": LETTERED, "answer": "B"}, base | {"answer": "a long story"}]
    dump(folder / "AV_Human_data.json", [*human, base])
    dump(folder / "AV_Gemini_data.json", [base | {"options": ABCD, "answer": "cross"}])
    return Expected(
        [
            ("AV Counting", None, 3, 4, "options"), ("AV Counting", None, 1, 4, "options"),
            ("AV Counting", None, "a long story", 0, "text"),
        ],
        problems=['no "answer"'],
        labels=[("file", "AV_Gemini")],
        videos=["h1.mp4"] * 3,
    )  # fmt: skip
