"""Miniature copies of the four benchmarks: real clips, and the files, columns and folders that VLMEvalKit expects."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clips import write_clip

REVISION = "0123456789abcdef0123456789abcdef01234567"
COLOURS = ["red", "green", "blue", "yellow"]
LETTERS = "ABCD"
UNREADABLE = b"this is no video"
MVBENCH_TASKS = (
    "action_sequence", "action_prediction", "action_antonym", "fine_grained_action", "unexpected_action",
    "object_existence", "object_interaction", "object_shuffle", "moving_direction", "action_localization",
    "scene_transition", "action_count", "moving_count", "moving_attribute", "state_change", "fine_grained_pose",
    "character_order", "egocentric_navigation", "episodic_reasoning", "counterfactual_inference",
)  # fmt: skip
MLVU_TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")


def write_hub_cache(home: Path, *, unreadable: bool = False) -> Path:
    """All four data sets as a hub cache below `home`, which is then a HF_HOME.

    Args:
        unreadable: one video in each of Video-MME, MVBench and LongVideoBench is no video.
    """
    videos = [write_clip(home / f"clip{k}.mp4", num_frames=16 + 8 * k).read_bytes() for k in range(4)]
    broken = [UNREADABLE, *videos[1:]] if unreadable else videos
    write_video_mme(home, broken)
    write_mvbench(home, broken)
    write_longvideobench(home, broken)
    write_mlvu(home, videos)
    return home


def _snapshot(home: Path, repository: str) -> Path:
    base = home / "hub" / f"datasets--{repository.replace('/', '--')}"
    for folder in ("refs", "blobs", f"snapshots/{REVISION}"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "refs/main").write_text(REVISION)
    return base / "snapshots" / REVISION


def _write(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def write_video_mme(home: Path, videos: list[bytes]) -> None:
    """Video-MME: a parquet file, from which the toolkit makes its table."""
    import pandas as pd  # comes with the toolkits

    folder = _snapshot(home, "lmms-lab/Video-MME")
    for name in ("subtitle", "videomme"):
        (folder / name).mkdir(exist_ok=True)
    for k, video in enumerate(videos):
        _write(folder / "video", f"vid{k}.mp4", video)
    rows = [
        {
            "video_id": f"{i:03d}",
            "duration": ["short", "medium", "long"][i % 3],
            "domain": ["Knowledge", "Life Record"][i % 2],
            "sub_category": ["Technology", "Travel"][i % 2],
            "url": "",
            "videoID": f"vid{i % 4}",
            "question_id": f"{i:03d}-1",
            "task_type": "Attribute Perception",
            "question": f"Question {i}: what colour is the square?",
            "options": [f"{letter}. {colour}." for letter, colour in zip(LETTERS, COLOURS, strict=True)],
            "answer": LETTERS[i % 4],
        }
        for i in range(9)
    ]
    pd.DataFrame(rows).to_parquet(folder / "videomme/test-00000-of-00001.parquet")


def write_longvideobench(home: Path, videos: list[bytes]) -> None:
    """LongVideoBench: a JSON file, from which the toolkit makes its table; five options in some questions."""
    folder = _snapshot(home, "longvideobench/LongVideoBench")
    rows = []
    for i in range(6):
        k = i % 4
        _write(folder / "videos", f"lv{k}.mp4", videos[k])
        _write(folder / "subtitles", f"lv{k}_en.json", b"[]")
        rows.append(
            {
                "video_id": f"lv{k}",
                "question": f"Question {i}: what colour?",
                "question_wo_referring_query": "What colour?",
                "candidates": [*COLOURS, "black"] if i % 2 else COLOURS,
                "correct_choice": k,
                "position": [0],
                "topic_category": "KG",
                "question_category": ["S2E", "T2A"][i % 2],
                "level": "L1-Perception",
                "id": f"lv{k}_{i}",
                "video_path": f"lv{k}.mp4",
                "subtitle_path": f"lv{k}_en.json",
                "duration_group": [15, 60, 600, 3600][k],
                "starting_timestamp_for_subtitles": 0,
                "duration": 4.0 + k,
                "view_count": 1,
            }
        )
    (folder / "lvb_val.json").write_text(json.dumps(rows))


def write_mvbench(home: Path, videos: list[bytes]) -> None:
    """MVBench: a JSON file per task, most of them empty here. "Action Sequence" asks about parts of videos.

    Two of its questions are about parts of the same video, and one option of the first might be part of any text.
    """
    folder = _snapshot(home, "OpenGVLab/MVBench")
    (folder / "json").mkdir(exist_ok=True)
    for task in MVBENCH_TASKS:
        (folder / "json" / f"{task}.json").write_text("[]")
    for task, place, count in (
        ("moving_direction", "video/clevrer/video_validation", 3),
        ("action_sequence", "video/star/Charades_v1_480", 5),
    ):
        rows = []
        for i in range(count):
            k = i % 4
            _write(folder / place, f"mv{k}.mp4", videos[k])
            row = {"video": f"mv{k}.mp4", "question": f"Question {i}: what colour?"}
            row |= {"candidates": COLOURS, "answer": COLOURS[k]} if i else {"candidates": ["e", "7"], "answer": "e"}
            rows.append(row | {"start": 0.1, "end": 0.5 + 0.1 * i} if task == "action_sequence" else row)
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows))


def write_mlvu(home: Path, videos: list[bytes]) -> None:
    """MLVU: a JSON file per multiple-choice task, four of them empty here."""
    folder = _snapshot(home, "MLVU/MVLU") / "MLVU"
    (folder / "json").mkdir(parents=True, exist_ok=True)
    for task in MLVU_TASKS:
        rows = []
        for k in range(2 if task in ("1_plotQA", "4_count", "5_order") else 0):
            _write(folder / "video" / task, f"ml{k}.mp4", videos[k])
            question = f"Question {k} of {task[2:]}: what colour?"  # an answer counts for every question alike
            row = {"video": f"ml{k}.mp4", "duration": 4.0, "question": question}
            rows.append({**row, "candidates": COLOURS, "answer": COLOURS[k], "question_type": task[2:]})
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows))
