"""The tasks `tango_mini` and `tango_mini_blank`. Clips are drawn when they are asked about; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask

from tango.mini import benchmark_questions, cache_name, clip_file, is_right


class TangoMini(ConfigurableTask):
    """lmms-eval's usual kind of task, but for where its questions come from."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: Mapping[str, Any]) -> None:
        """Make the questions."""
        stem = "blank" if dataset_kwargs["blank"] else "clip"
        rows = [
            {
                "videoID": f"{stem}_{question['clip']:04d}",
                "clip": question["clip"],
                "blank": dataset_kwargs["blank"],
                "kind": question["kind"],
                "question": question["text"],
                "options": list(question["options"]),
                "answer": question["answer"],
            }
            for question in benchmark_questions(dataset_kwargs["num_clips"])
        ]
        self.dataset = self.dataset_no_image = DatasetDict(test=Dataset.from_list(rows))


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The clip's file, among lmms-eval's other videos."""
    folder = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / cache_name()
    folder.mkdir(parents=True, exist_ok=True)
    return [str(clip_file(folder, doc["clip"], blank=doc["blank"]))]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Whether the text is the right word, once for all questions and once for those of its kind."""
    scored = {
        "videoID": doc["videoID"],
        "task_category": doc["kind"],
        "pred_answer": results[0],
        "answer": doc["answer"],
        "score": float(is_right(results[0], doc["answer"])),
    }
    return {"accuracy": scored, doc["kind"]: scored}


def percent(scored: Sequence[Mapping[str, Any]]) -> float:
    """The share of right answers."""
    return 100 * sum(one["score"] for one in scored) / len(scored)
