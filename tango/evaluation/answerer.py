"""`Answerer`: a model, a method, and what an evaluation needs around them."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from tango.answering import generate_ids
from tango.errors import OptionError, TangoError, VideoReadError
from tango.evaluation.config import MethodConfig
from tango.evaluation.efficiency import Efficiency
from tango.evaluation.journal import Journal
from tango.evaluation.preparation import PreparedQuestion, Preparer, collate, cut_at
from tango.evaluation.questions import Answer, Question
from tango.evaluation.readahead import read_ahead
from tango.evaluation.records import environment, versions
from tango.models import load
from tango.models.processor import TimeInstruction
from tango.pruning import Pruning, PruningStats, prune

log = logging.getLogger(__name__)

Outcome = PreparedQuestion | Answer | Exception


class Answerer:
    """Answers questions with one model and one method: read ahead, in batches, journalled, measured.

    Without a method all tokens are kept, on the same way through Tango as with one: the answers are those of stock
    generation where stock code lays out the model's videos as it was trained, and the stages are measured alike.

    Args:
        pretrained, dtype, device, attn_implementation, siglip, local_files_only: as in `tango.load`.
        method: None: all tokens.
        batch_size: up to so many questions that follow each other are generated together.
        num_frames: frames of each video; None: the model's usual number.
        journal: folder that keeps every answer; the same call after a crash goes on where it ended.
        rank: number of this process among those that share the journal.
        workers: threads that read and preprocess videos ahead of the model; 0: none.
        max_ahead: prepared questions that may wait in memory.
        min_pixels, max_pixels: limits of a frame's size for Qwen-VL.
        time_instruction: as in `tango.prepare`.
    Raises:
        TangoError: what `tango.load` and `tango.prune` raise, or the journal is of another configuration.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        method: MethodConfig | None = None,
        batch_size: int = 1,
        num_frames: int | None = None,
        dtype: str = "auto",
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        siglip: str | None = None,
        video_backend: str = "auto",
        journal: Path | None = None,
        rank: int = 0,
        workers: int = 2,
        max_ahead: int = 8,
        local_files_only: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        time_instruction: TimeInstruction | None = None,
    ):
        if batch_size < 1 or workers < 0 or max_ahead < 1:
            got = f"{batch_size}, {workers} and {max_ahead}"
            raise OptionError(f"batch_size and max_ahead must be at least 1 and workers at least 0, got {got}")
        self.method = method or MethodConfig()
        self.batch_size, self.workers, self.max_ahead = batch_size, workers, max(max_ahead, batch_size)
        self.model, self.processor = load(
            pretrained,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            siglip=siglip,
            local_files_only=local_files_only,
        )
        _limit_pixels(self.processor, min_pixels, max_pixels)
        self._stack = ExitStack()
        pruning = self._stack.enter_context(self.method.apply(self.model))
        self.pruning: Pruning = pruning or self._stack.enter_context(prune(self.model, "uniform", retention_ratio=1.0))
        self._prepare = Preparer(
            processor=self.processor,
            num_frames=num_frames or self.processor.default_num_frames,
            video_backend=video_backend,
            time_instruction=time_instruction,
            video_input=self.pruning.adapter.video_input,
            dtype=self.model.dtype,
        )
        self.config: dict[str, Any] = {
            "pretrained": str(pretrained),
            "method": self.method.to_dict(),
            "num_frames": self._prepare.num_frames,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attn_implementation": self.model.config._attn_implementation,
            "siglip": siglip and str(siglip),
            "video_backend": video_backend,
            "time_instruction": time_instruction,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
        }
        self._journal: Journal | None = None
        if journal is not None:
            self._journal = Journal(journal, {**self.config, "versions": versions()}, rank=rank)
            self._stack.callback(self._journal.close)
        self.config |= {"batch_size": batch_size, "device": str(self.model.device), "environment": environment()}
        self._efficiency = Efficiency(device=self.model.device.type, elapsed_ms=[0.0])
        self.processor.tokenizer(
            ["a"], padding=True
        )  # its padding is set on first use, which threads must not race for

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore the model and close the journal. Doing it twice is harmless."""
        self._stack.close()

    def answer(self, question: Question) -> Answer:
        """Answer one question."""
        return next(iter(self.answers([question])))

    def answers(
        self, questions: Iterable[Question], *, progress: bool = False, total: int | None = None
    ) -> Iterator[Answer]:
        """Answer questions in order, as they are asked for; videos are read ahead meanwhile.

        A question that cannot be answered (an unreadable video, too little memory) gets an answer with an `error`.

        Args:
            progress: show samples per second and the time left on stderr.
            total: number of questions, if `questions` has no length.
        Raises:
            TangoError: an error that no question is to blame for, such as an unknown option.
        """
        from tqdm import tqdm

        if total is None and hasattr(questions, "__len__"):
            total = len(questions)
        prepared = read_ahead(questions, self._look_up, workers=self.workers, max_ahead=self.max_ahead)
        with tqdm(total=total, unit="sample", disable=not progress, file=sys.stderr) as bar:
            last = time.perf_counter()
            for group in self._groups(prepared):
                for question, answer in self._answer_group(group):
                    now = time.perf_counter()
                    if not answer.cached:
                        answer = replace(answer, elapsed_ms=1e3 * (now - last), peak_bytes=self._peak_bytes())
                        if self._journal is not None:
                            self._journal.add(question.key, answer)
                    last = now
                    self._efficiency.add(answer)
                    bar.update()
                    yield answer

    def efficiency(self) -> Efficiency:
        """The table over all answers given so far."""
        return self._efficiency

    def _look_up(self, question: Question) -> PreparedQuestion | Answer:
        recorded = None if self._journal is None else self._journal.get(question.key)
        return self._prepare(question) if recorded is None else recorded

    def _groups(self, outcomes: Iterator[tuple[Question, Any]]) -> Iterator[list[tuple[Question, Any]]]:
        """Neighbours that are generated together; everything else alone."""
        group: list[tuple[Question, Any]] = []
        for question, outcome in outcomes:
            if group and not (len(group) < self.batch_size and _go_together(group[0][1], outcome)):
                yield group
                group = []
            group.append((question, outcome))
        if group:
            yield group

    def _answer_group(self, group: list[tuple[Question, Any]]) -> Iterator[tuple[Question, Answer]]:
        questions, outcomes = [question for question, _ in group], [outcome for _, outcome in group]
        if isinstance(outcomes[0], PreparedQuestion):
            return zip(questions, self._generate(outcomes), strict=True)
        if isinstance(outcomes[0], Exception):
            return iter([(questions[0], _failure(outcomes[0]))])
        return iter([(questions[0], outcomes[0])])

    def _generate(self, batch: list[PreparedQuestion]) -> list[Answer]:
        """Answers of a batch; one by one if it fails as a whole."""
        try:
            return self._generate_together(batch)
        except Exception as error:
            if len(batch) == 1:
                return [_failure(error)]
            _failure(error, log_it=False)
        return list(chain.from_iterable(self._generate([one]) for one in batch))

    def _generate_together(self, batch: list[PreparedQuestion]) -> list[Answer]:
        tokenizer = self.processor.tokenizer
        inputs = collate([one.inputs for one in batch], tokenizer.pad_token_id or 0)
        before = self.pruning.stats
        ids = generate_ids(self.model, inputs, **batch[0].generate_options).tolist()
        stats = self.pruning.stats
        if stats is before:
            stats = None
        lengths = [_length(row, self.model.generation_config.eos_token_id) for row in ids]
        stages = {} if stats is None else stats.timer.ms()
        if max(lengths) < 2:
            stages.pop("decoding", None)
        answers = []
        videos = iter(() if stats is None else stats.videos)
        for row, one in enumerate(batch):
            text = tokenizer.decode(ids[row], skip_special_tokens=True).strip()
            own = [next(videos) for _ in range(one.num_videos)]
            answers.append(
                Answer(
                    text=cut_at(text, one.question.generate_options.get("until")),
                    input_tokens=int(inputs["attention_mask"][row].sum()) if stats is None else stats.prompt_after[row],
                    output_tokens=lengths[row],
                    visual_tokens_before=sum(video.tokens_before for video in own),
                    visual_tokens_after=sum(video.tokens_after for video in own),
                    stages_ms={**one.stages_ms, **{name: ms / len(batch) for name, ms in stages.items()}},
                )
            )
        return answers

    def _peak_bytes(self) -> int:
        if self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _go_together(first: Any, second: Any) -> bool:
    """Whether two prepared questions make one batch."""
    if not (isinstance(first, PreparedQuestion) and isinstance(second, PreparedQuestion)):
        return False
    alike = first.generate_options == second.generate_options and first.inputs.keys() == second.inputs.keys()
    return alike and not first.generate_options["do_sample"]


def _failure(error: Exception, *, log_it: bool = True) -> Answer:
    """The answer in place of one that an error prevented, if the error is the question's alone.

    Raises:
        Exception: the error itself, if others would meet it, too.
    """
    if isinstance(error, TangoError) and not isinstance(error, VideoReadError):
        raise error
    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # the device is lost for this process
        raise error
    message = f"{type(error).__name__}: {error}"
    if log_it:
        log.warning("no answer: %s", message)
    return Answer(text="", error=message)


def _length(ids: list[int], eos: int | list[int] | None) -> int:
    """New tokens of a row up to the one that ends it."""
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))


def _limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    limits = {name: value for name, value in limits.items() if value is not None}
    if limits and not hasattr(processor, "patches"):
        raise OptionError(f"{' and '.join(limits)} are for Qwen-VL; frames of this model have one size")
    if limits:
        processor.patches = replace(processor.patches, **limits)
