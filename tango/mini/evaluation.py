"""Ask a model the benchmark's questions about mp4 files, through the same `generate` that everybody uses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.answering import generate_output, prepare
from tango.containers import Video
from tango.errors import TangoError
from tango.files import write_bytes, writing
from tango.fingerprints import of_content
from tango.mini.benchmark import benchmark_clip, clip_file
from tango.mini.questions import KINDS, Question, is_right
from tango.mini.train_vision import see
from tango.ops.segmentation import adjacent_similarity, segment_by_static_tokens
from tango.pruning import pruning_of
from tango.video import read_video

Control = Literal["none", "blank", "other"]
_KEPT = "all clips before this one are kept; make room, and the same command goes on from there"


def ask_model(model: Any, processor: Any, video: Video, question: Question) -> dict[str, Any]:
    """Ask one question.

    Returns:
        `text` is what the model generated; `choice` the option whose first token it found likeliest at the place of the
        answer. `right` judges the choice, `exact` the text.
    """
    inputs = prepare(processor, video, question.text)
    output = generate_output(model, inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    text = processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    first = [processor.tokenizer(option, add_special_tokens=False).input_ids[0] for option in question.options]
    choice = question.options[int(output.logits[0][0, first].argmax())]
    return {
        **asdict(question),
        "text": text,
        "choice": choice,
        "right": choice == question.answer,
        "exact": is_right(text, question.answer),
    }


def evaluate(
    model: Any,
    processor: Any,
    clips: Path,
    indices: Iterable[int],
    *,
    num_frames: int | None = None,
    control: Control = "none",
) -> Iterator[dict[str, Any]]:
    """Yield one record per clip, with all its questions. With `tango.prune` active the videos are pruned.

    Args:
        clips: folder of the mp4 files; missing ones are written.
        control: "blank": grey frames in place of the clip; "other": the clip after it. Both with the clip's own
            questions, to see what can be answered without seeing.
    """
    for index in indices:
        _, questions = benchmark_clip(index)
        file = clip_file(clips, index + (control == "other"))
        video = read_video(file, num_frames=num_frames or processor.default_num_frames)
        if control == "blank":
            video.frames.fill_(127)
        answers = [ask_model(model, processor, video, question) for question in questions]
        record: dict[str, Any] = {"clip": index, "file": of_content(file), "questions": answers}
        pruning = pruning_of(model)
        if pruning is not None and pruning.stats is not None:
            record["tokens_before"], record["tokens_after"] = pruning.stats.tokens_before, pruning.stats.tokens_after
        yield record


class Results:
    """A file of results: one line that says what was run, then one line per clip. A crash loses at most one clip.

    Raises:
        TangoError: the file holds results of something else.
    """

    def __init__(self, file: Path, setting: dict[str, Any]):
        self.file, self.records = file, list[dict[str, Any]]()
        try:
            lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []  # the rest of a cut line
            theirs, *self.records = map(json.loads, lines or [json.dumps(setting)])
            different = theirs != json.loads(json.dumps(setting))  # which has tuples as lists
            different |= not all(isinstance(record["clip"], int) for record in self.records)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise TangoError(f"cannot go on with {file}: {error}; name another file or remove it") from error
        if different:
            raise TangoError(f"{file} holds results of another run ({lines[0]}); name another file or remove it")
        write_bytes(file, "".join(json.dumps(line) + "\n" for line in (setting, *self.records)).encode())

    def check_clips(self, clips: Path, control: Control) -> None:
        """Hold the clips in a folder against those that the results are about; missing ones are written.

        Raises:
            TangoError: one is another clip now.
        """
        for record in self.records:
            file = clip_file(clips, record["clip"] + (control == "other"))
            if record.get("file") != of_content(file):
                raise TangoError(
                    f"{file} is not the clip that {self.file} has answers about; name another file or remove it"
                )

    def add(self, record: dict[str, Any]) -> None:
        """Append the record of a clip."""
        with writing(self.file, _KEPT), self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        self.records.append(record)


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies in percent, over all questions and per kind, with 95 % intervals, and the mean of tokens kept."""
    summary: dict[str, Any] = {"clips": len(records)}
    for name in ("all", *KINDS):
        chosen = [[q for q in r["questions"] if name in ("all", q["kind"])] for r in records]
        count = sum(map(len, chosen))
        if count:
            accuracy, margin = clustered(chosen, "right")
            exact = 100 * sum(q["exact"] for of_clip in chosen for q in of_clip) / count
            summary[name] = {"questions": count, "accuracy": accuracy, "margin": margin, "exact": exact}
    kept = [r["tokens_after"] / r["tokens_before"] for r in records if "tokens_after" in r]
    summary["tokens_kept"] = float(np.mean(kept)) if kept else 1.0
    return summary


def clustered(chosen: list[list[dict[str, Any]]], field: str) -> tuple[float, float]:
    """Share of right answers and half of its 95 % interval, in percent. Questions about one clip are not independent:
    the interval is that of a ratio of sums over clips."""
    right = np.array([sum(bool(q[field]) for q in of_clip) for of_clip in chosen], float)
    asked = np.array([len(of_clip) for of_clip in chosen], float)
    share, clips = right.sum() / asked.sum(), np.count_nonzero(asked)
    if clips < 2:
        return 100 * share, math.nan
    variance = ((right - share * asked) ** 2).sum() / asked.sum() ** 2 * clips / (clips - 1)
    return 100 * share, 100 * 1.96 * math.sqrt(variance)


def similarity(model: Any, frames: Tensor) -> NDArray[np.float32]:
    """Cosine between the tokens at the same place in neighbouring frames, (T - 1, N)."""
    with torch.inference_mode():
        return adjacent_similarity(see(model, frames)[0])[0].numpy()


def static_share(
    table: NDArray[np.float32], *, segment_threshold: float = 0.65, static_threshold: float = 0.8
) -> float:
    """Share of a video's tokens that averaging static ones over their segments saves; Tango's defaults at 10 %."""
    static, start, saved = table > static_threshold, 0, 0
    for length in segment_by_static_tokens(table, segment_threshold):
        if length > 1:
            saved += (length - 1) * int(static[start : start + length - 1].all(axis=0).sum())
        start += length
    return saved / ((len(table) + 1) * table.shape[1])
