"""MVBench: twenty tasks of short clips, each with videos in a folder of its own."""

from __future__ import annotations

from pathlib import Path

from jaxmem.data.benchmarks import reading as r
from jaxmem.data.benchmarks.item import Benchmark, Item

FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
"""Task -> folder of its videos."""
FRAMES, FPS = "episodic_reasoning", 3.0
"""The task whose videos are folders of pictures, and how many pictures a second."""


def read(reading: r.Reading) -> None:
    """Read the file of every task. Some tasks are about a part of their video."""
    for path in reading.files(*(f"{task}.json" for task in FOLDERS)):
        for number, record in enumerate(r.records_of(path), 1):
            with reading.noting(f"{path.name}, record {number}"):
                _add(reading, path, record)


def _add(reading: r.Reading, path: Path, record: r.Json) -> None:
    task, name = path.stem, r.words(record, "video")
    start = r.seconds(record, "start") if record.get("start") is not None else 0.0
    fps = FPS if task == FRAMES else None
    places = f"{FOLDERS[task]}/{name}", f"video/{FOLDERS[task]}/{name}", name
    video = reading.video(*places, start=start, fps=fps)
    own, options = reading.numbered(video), r.choices(record, "candidates")
    stop = r.seconds(record, "end") if record.get("end") is not None else None
    reading.add(
        Item(
            id=own,
            video=video,
            question=r.words(record, "question"),
            right=r.right_text(r.words(record, "answer"), options),
            options=options,
            asked_at=stop,
            kind=task.replace("_", " "),
        )
    )


BENCHMARK = Benchmark(
    name="mvbench",
    read=read,
    files=tuple(f"{task}.json" for task in FOLDERS),
    holds="a JSON file for each task, with records of video, question, candidates and answer",
    rule="before_parenthesis",
    average="kinds",
    empty_counts=False,
)
