"""Ask a model the benchmark's questions about mp4 files, through its usual `generate`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tango.containers import Signal, Video
from tango.errors import TangoError
from tango.fingerprints import of_content
from tango.mini.benchmark import benchmark_clip, clip_file
from tango.mini.questions import KINDS, Question, is_right
from tango.report.records import append_records, read_run, run_file, write_records
from tango.report.results import read_json_lines
from tango.runtime.answering import generate_output, prepare
from tango.runtime.encoded_video import EncodedVideo
from tango.runtime.encoding import encode
from tango.runtime.pruning import pruning_of
from tango.video.reading import read_video

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tango.models.processors.protocol import ChatProtocol

Control = Literal["none", "blank", "other"]
Record = dict[str, Any]  # in the form of `tango.report.records`
_KEPT = "all clips before this one are kept; make room, and the same command goes on from there"


def ask_model(
    model: PreTrainedModel, processor: ChatProtocol, video: Video | EncodedVideo, question: Question
) -> Record:
    """Ask one question.

    Returns:
        `text` is what the model generated, and `correct` judges it. `choice` is the option whose first token the model
        found likeliest at the start of its answer, and `choice_correct` judges that. The record counts tokens if
        pruning is active.
    Raises:
        TangoError: two options begin with the same token, so they cannot be told apart by it.
    """
    inputs = prepare(processor, video, question.text)
    output = generate_output(model, inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    text = processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    first = [processor.tokenizer(option, add_special_tokens=False).input_ids[0] for option in question.options]
    if len(set(first)) < len(first):
        raise TangoError(f"two of the options {', '.join(question.options)} begin with the same token of this model")
    choice = question.options[int(output.logits[0][0, first].argmax())]
    answer = {
        "question": question.text,
        "options": list(question.options),
        "answer": question.answer,
        "text": text,
        "correct": is_right(text, question.answer),
        "choice": choice,
        "choice_correct": choice == question.answer,
        "failed": False,
    }
    pruning = pruning_of(model)
    if pruning is None or pruning.stats is None:
        return answer
    stats = pruning.stats
    share = stats.visual_share if stats.layer is None else stats.layer.mean_retention_ratio
    entering = {"tokens_entering": stats.tokens_after, "tokens_after": share * stats.tokens_before}
    return {**answer, "tokens_before": stats.tokens_before, **entering}


def ask_about(
    model: PreTrainedModel, processor: ChatProtocol, video: Video, questions: Sequence[Question]
) -> list[Record]:
    """Ask all questions about a video; with `tango.prune` active it is pruned, once for all of them where the method
    does not look at them."""
    pruning = pruning_of(model)
    shown: Video | EncodedVideo = video
    if pruning is not None and pruning.layer_pruner is None and Signal.TEXT not in pruning.pruner.wants:
        shown = encode(model, processor, video, prefix_cache=False)  # answers stay the same, bit for bit
    return [ask_model(model, processor, shown, question) for question in questions]


def evaluate(
    model: PreTrainedModel,
    processor: ChatProtocol,
    clips: Path,
    indices: Iterable[int],
    *,
    num_frames: int | None = None,
    control: Control = "none",
) -> Iterator[list[Record]]:
    """Yield the records of one clip after the other, one record for each of its questions.

    Args:
        clips: folder of the mp4 files; missing ones are written.
        control: what is shown in place of the clip, to see which of its questions can be answered without seeing it:
            "blank", grey frames; "other", the next clip.
    """
    for index in indices:
        _, questions = benchmark_clip(index)
        file = clip_file(clips, index + (control == "other"))
        video = read_video(file, num_frames=num_frames or processor.default_num_frames)
        if control == "blank":
            video.frames.fill_(127)
        about = {"benchmark": "TangoMini" if control == "none" else f"TangoMini-{control}", "clip": index}
        about |= {"video_id": f"clip_{index:04d}", "file": of_content(file)}
        answers = zip(questions, ask_about(model, processor, video, questions), strict=True)
        yield [
            {**about, "question_id": f"{index:04d}-{question.kind}", "group": question.kind, **answer}
            for question, answer in answers
        ]


def _num_questions(index: int) -> int:
    return len(benchmark_clip(index)[1])


class Results:
    """A file of records and its run. A crash loses at most one clip; the same run continues from there.

    Args:
        run: as `tango.report.records.write_records` takes it; its model, method, frames and settings must be those of
            the file.
        num_questions: clip -> how many there are about it.
    Raises:
        TangoError: the file holds records of another run.
    """

    def __init__(self, file: Path, run: Record, num_questions: Callable[[int], int] = _num_questions):
        self.file, self.records, self._num_questions = file, list[Record](), num_questions
        run = json.loads(json.dumps(run))  # tuples become lists, as in the file
        if file.exists():
            self._go_on(run)
        write_records(file, run, self.records)

    def _go_on(self, run: Record) -> None:
        """Take over the records of all clips whose questions were all answered."""
        theirs = read_run(self.file)
        if not theirs:
            raise TangoError(
                f"cannot go on with {self.file}: it has no {run_file(self.file).name}, as in the form of an earlier "
                "release; name another file or remove it"
            )
        if different := [
            name for name in ("model", "method", "num_frames", "settings") if theirs.get(name) != run[name]
        ]:
            told = "; ".join(f"{name}: got {run[name]}, there {theirs.get(name)}" for name in different)
            raise TangoError(f"{self.file} holds results of another run ({told}); name another file or remove it")
        by_clip: dict[int, list[Record]] = {}
        try:
            for _, record in read_json_lines(self.file)[0]:
                by_clip.setdefault(record["clip"], []).append(record)
            for index, records in by_clip.items():
                if len(records) == self._num_questions(index):
                    self.records += records
        except (TypeError, KeyError) as error:
            raise TangoError(f"cannot go on with {self.file}: {error}; name another file or remove it") from error

    @property
    def clips(self) -> set[int]:
        """The clips that have been asked about."""
        return {record["clip"] for record in self.records}

    def check_clips(self, clips: Path, control: Control) -> None:
        """Compare the clips in a folder with those that the results are about; missing ones are written.

        Raises:
            TangoError: a clip has changed.
        """
        for index, content in {record["clip"]: record.get("file") for record in self.records}.items():
            file = clip_file(clips, index + (control == "other"))
            if content != of_content(file):
                raise TangoError(
                    f"{file} is not the clip that {self.file} has answers about; name another file or remove it"
                )

    def add(self, records: list[Record]) -> None:
        """Append the records of a clip."""
        append_records(self.file, records, _KEPT)
        self.records += records


def summarise(records: list[Record], kinds: Iterable[str] = KINDS) -> dict[str, Any]:
    """Compute accuracies in percent with 95 % intervals, over all questions and per kind, and the mean share of tokens.

    `accuracy` judges the choice among four options, `exact` the generated text.
    """
    by_clip: dict[int, list[Record]] = {}
    for record in records:
        by_clip.setdefault(record["clip"], []).append(record)
    summary: dict[str, Any] = {"clips": len(by_clip)}
    for name in ("all", *kinds):
        chosen = [[q for q in of_clip if name in ("all", q["group"])] for of_clip in by_clip.values()]
        count = sum(map(len, chosen))
        if count:
            accuracy, margin = clustered(chosen, "choice_correct")
            exact = 100 * sum(q["correct"] for of_clip in chosen for q in of_clip) / count
            summary[name] = {"questions": count, "accuracy": accuracy, "margin": margin, "exact": exact}
    kept = [q[-1]["tokens_entering"] / q[-1]["tokens_before"] for q in by_clip.values() if "tokens_before" in q[-1]]
    summary["tokens_kept"] = float(np.mean(kept)) if kept else 1.0
    return summary


def clustered(chosen: list[list[Record]], field: str) -> tuple[float, float]:
    """Share of right answers, and half the width of its 95 % interval, in percent.

    Questions about one clip are not independent, so the interval is that of a ratio of sums over clips.
    """
    right = np.array([sum(bool(q[field]) for q in of_clip) for of_clip in chosen], float)
    asked = np.array([len(of_clip) for of_clip in chosen], float)
    share, clips = right.sum() / asked.sum(), np.count_nonzero(asked)
    if clips < 2:
        return 100 * share, math.nan
    variance = ((right - share * asked) ** 2).sum() / asked.sum() ** 2 * clips / (clips - 1)
    return 100 * share, 100 * 1.96 * math.sqrt(variance)
