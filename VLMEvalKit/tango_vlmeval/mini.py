"""tango-mini's benchmark as a data set of the toolkit; its clips are drawn here, not downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path, load

from tango import OptionError
from tango.mini import benchmark_questions, cache_name, clip_file, is_right

_CONTROLS = ("none", "blank")


class TangoMini(VideoBaseDataset):
    """Questions of ten kinds about generated clips. The answer is one of four words, which the prompt does not list.

    Args:
        num_clips: the first so many clips, each with all its questions.
        control: "blank" shows grey frames in place of every clip: what can be answered without seeing.
    """

    TYPE = "Video-MCQ"

    def __init__(
        self,
        dataset: str = "TangoMini",
        nframe: int = 16,
        fps: float = -1,
        num_clips: int = 200,
        control: str = "none",
    ):
        if control not in _CONTROLS or num_clips < 1:
            raise OptionError(
                f"control must be {' or '.join(_CONTROLS)} and num_clips at least 1, got {control!r} and {num_clips!r}"
            )
        self._num_clips, self._blank = num_clips, control == "blank"
        super().__init__(dataset=dataset, nframe=nframe, fps=fps)

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """Names that the toolkit knows without a JSON file: none."""
        return []

    def prepare_dataset(self, dataset: str) -> dict[str, str]:  # noqa: ARG002 - both names have the same questions
        """Write the table of questions; the clips follow as they are asked about."""
        root = Path(LMUDataRoot()) / cache_name()
        root.mkdir(parents=True, exist_ok=True)
        stem = "blank" if self._blank else "clip"
        rows = [
            {
                "index": i,
                "video": f"{stem}_{question['clip']:04d}",
                "clip": question["clip"],
                "task_type": question["kind"],
                "question": question["text"],
                "candidates": str(list(question["options"])),
                "answer": question["answer"],
            }
            for i, question in enumerate(benchmark_questions(self._num_clips))
        ]
        table = root / f"{stem}_{self._num_clips}.tsv"
        unfinished = table.with_name(f".{os.getpid()}-{table.name}")
        pd.DataFrame(rows).to_csv(unfinished, sep="\t", index=False)
        os.replace(unfinished, table)
        return {"root": str(root), "data_file": str(table)}

    def build_prompt(self, line: Any, video_llm: bool) -> list[dict[str, Any]]:
        """The clip and, after it, the question alone."""
        if isinstance(line, int):
            line = self.data.iloc[line]
        file = clip_file(Path(self.data_root), int(line["clip"]), blank=self._blank)
        shown = [("video", str(file))] if video_llm else [("image", p) for p in self.save_video_frames(line["video"])]
        return [{"type": kind, "value": value} for kind, value in (*shown, ("text", line["question"]))]

    @classmethod
    def evaluate(cls, eval_file: str, **judge_kwargs: Any) -> dict[str, float]:  # noqa: ARG003 - nothing to judge
        """Shares of right words, overall and by kind of question, in percent; the scores go into the usual table."""
        data = load(eval_file)
        pairs = zip(data["prediction"], data["answer"], strict=True)
        data["score"] = [int(is_right(str(prediction), str(answer))) for prediction, answer in pairs]
        dump(data, get_intermediate_file_path(eval_file, "_score"))
        shares = {"overall": data["score"].mean(), **data.groupby("task_type")["score"].mean()}
        rating = {name: round(100 * float(share), 4) for name, share in shares.items()}
        dump(rating, get_intermediate_file_path(eval_file, "_rating", "json"))
        return rating
