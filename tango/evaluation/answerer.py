"""`Answerer`: one model with one method answers many questions."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from tango.errors import OptionError, UnknownNameError
from tango.evaluation.config import MethodConfig
from tango.evaluation.efficiency import Efficiency
from tango.evaluation.generation import answers_of, can_batch, failure
from tango.evaluation.journal import Journal
from tango.evaluation.preparation import PreparedQuestion, Preparer
from tango.evaluation.questions import Answer, Question
from tango.evaluation.readahead import read_ahead
from tango.evaluation.records import environment, identity, peak_bytes
from tango.models import load
from tango.models.base import pooling_head_of
from tango.models.processors.messages import TimeInstruction
from tango.models.processors.qwen import QwenProcessor, VisionMarks, check_marks
from tango.runtime.pruning import prune
from tango.video.reading import check_backend

if TYPE_CHECKING:
    from tango.models.processors.protocol import ChatProtocol

_Outcome = PreparedQuestion | Answer | Exception
_Pair = tuple[str | None, _Outcome]  # with the question's key in the journal, if there is one


class Answerer:
    """Answers questions with one model and one method: reads videos ahead, makes batches, keeps a journal, measures.

    Without a method all tokens are kept, and they take the same path through Tango as with a method, so stages are
    measured alike. The answers then equal those of stock generation, for all models whose videos stock code lays out as
    in training.

    Args:
        pretrained, dtype, device, attn_implementation, siglip, local_files_only: as in `tango.load`.
        method: None: all tokens are kept.
        batch_size: at most so many consecutive questions are generated together.
        num_frames: frames of each video; None: the model's usual number.
        journal: folder in which every answer is kept; after a crash the same call continues from there. An answer is
            used again for the same question about videos of the same content. A journal made with other weights,
            settings, code or library versions is refused. For this, videos and weights are read, at about 1 GB/s.
        rank: number of this process among those that share the journal.
        workers: threads that read and preprocess videos ahead of the model; 0: none.
        max_ahead: at most so many prepared questions wait in memory.
        min_pixels, max_pixels: limits of a frame's size for Qwen-VL.
        time_instruction, vision_marks: as in `tango.prepare`.
        static_cache: decode with a cache of fixed length; transformers then compiles the step on a GPU, at the first
            question and perhaps at one that is longer than all before, and decodes faster after. No decision depends
            on it; a journal refuses to mix both, for it holds times, too.
    Raises:
        TangoError: what `tango.load` and `tango.prune` raise; an unknown name, or a number out of range; a journal of
            another configuration.
    Example:
        >>> from tango.evaluation import Answerer, MethodConfig, Question
        >>> method = MethodConfig(method="tango", options={"retention_ratio": 0.1})
        >>> content = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "what color is plain"}]
        >>> with Answerer("tango-mini", method=method) as answerer:
        ...     answer = answerer.answer(Question(messages=[{"role": "user", "content": content}]))
        >>> answer.text, answer.visual_tokens_before
        ('cyan', 784)
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
        vision_marks: VisionMarks | None = None,
        static_cache: bool = False,
    ):
        least = {"batch_size": (batch_size, 1), "num_frames": (num_frames, 1), "max_ahead": (max_ahead, 1)}
        _check_numbers({**least, "workers": (workers, 0)})
        check_backend(video_backend)
        _check_prompt(time_instruction, vision_marks)
        self.method = method or MethodConfig()
        self.batch_size, self.workers, self.max_ahead = batch_size, workers, max(max_ahead, batch_size)
        options: dict[str, Any] = {"siglip": siglip, "local_files_only": local_files_only, "device": device}
        self.model, self.processor = load(pretrained, dtype=dtype, attn_implementation=attn_implementation, **options)
        _fit_processor(self.processor, min_pixels, max_pixels, vision_marks)
        with ExitStack() as stack:  # undone if a later step fails
            self.pruning = stack.enter_context(prune(self.model, self.method.plan))
            self._prepare = Preparer(
                processor=self.processor,
                num_frames=num_frames or self.processor.default_num_frames,
                video_backend=video_backend,
                time_instruction=time_instruction,
                vision_marks=vision_marks,
                video_input=self.pruning.adapter.video_input,
                dtype=self.model.dtype,
                static_cache=static_cache,
                images=self.method.plan.images,
            )
            self.config: dict[str, object] = {
                "pretrained": str(pretrained),
                "method": self.method.to_record(),
                **self._details(),
                **{"siglip": siglip and str(siglip), "min_pixels": min_pixels, "max_pixels": max_pixels},
            }
            self._journal: Journal | None = None
            if journal is not None:
                behind = identity(str(pretrained), self.method, video_backend=video_backend, local_files_only=True)
                behind["content"]["pooling_head"] = getattr(pooling_head_of(self.model), "digest", None)
                self._journal = Journal(journal, {**self.config, **behind}, rank=rank)
                stack.callback(self._journal.close)
            self._stack = stack.pop_all()
        self.config |= {"batch_size": batch_size, "device": str(self.model.device), "environment": environment()}
        self._efficiency = Efficiency(device=self.model.device.type, elapsed_ms=[0.0])

    def _details(self) -> dict[str, object]:
        """The other settings that answers depend on, with defaults resolved."""
        return {
            "num_frames": self._prepare.num_frames,
            "device": self.model.device.type,  # since the journal holds times, too
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attn_implementation": self.model.config._attn_implementation,
            "video_backend": self._prepare.video_backend,
            "time_instruction": self._prepare.time_instruction or self.processor.time_instruction,
            "static_cache": self._prepare.static_cache,  # for the same reason
            "vision_marks": self._prepare.vision_marks or getattr(self.processor, "vision_marks", None),
        }

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore the model and close the journal. A second call does nothing."""
        self._stack.close()

    def answer(self, question: Question) -> Answer:
        """Answer one question."""
        [answer] = self.answers([question])
        return answer

    def answers(
        self, questions: Iterable[Question], *, progress: bool = False, total: int | None = None
    ) -> Generator[Answer, None, None]:
        """Yield the answers in order, each when it is asked for; videos are read ahead meanwhile.

        A question that cannot be answered (an unreadable video, too little memory) gets an answer with an `error`.
        Every answer is in the journal before the next question begins.

        Args:
            progress: show samples per second and the time left on stderr.
            total: number of questions, if `questions` has no length.
        Raises:
            TangoError: an error that is not the fault of a single question, such as an unknown option.
        """
        from tqdm import tqdm

        if total is None and isinstance(questions, Sized):
            total = len(questions)
        found = read_ahead(questions, self._look_up, workers=self.workers, max_ahead=self.max_ahead)
        with closing(found), tqdm(total=total, unit="sample", disable=not progress, file=sys.stderr) as bar:
            last = time.perf_counter()
            for group in self._groups(_raised(pair) for _, pair in found):
                answers = self._answer_group([outcome for _, outcome in group])
                now = time.perf_counter()
                share_ms, last = 1e3 * (now - last) / len(group), now
                for i, (key, _) in enumerate(group):
                    if not answers[i].cached:
                        answers[i] = replace(answers[i], elapsed_ms=share_ms, peak_bytes=peak_bytes(self.model.device))
                        if self._journal is not None and key is not None:
                            self._journal.add(key, answers[i])
                for answer in answers:
                    self._efficiency.add(answer)
                    bar.update()
                    yield answer

    def efficiency(self) -> Efficiency:
        """The efficiency over all answers given so far."""
        return self._efficiency

    def _look_up(self, question: Question) -> _Pair:
        key = None
        try:
            if self._journal is None:
                return None, self._prepare(question)
            key = question.key
            if (recorded := self._journal.get(key)) is not None:
                return key, recorded
            prepared = self._prepare(question)
            if question.key != key:  # the journal would keep the answer under the video's former content
                raise OSError("a video of this question changed while it was read; ask again once it is complete")
            return key, prepared
        except Exception as error:
            return key, error

    def _groups(self, outcomes: Iterable[_Pair]) -> Iterator[list[_Pair]]:
        """Group neighbours that are generated together; answers from the journal and errors stand alone."""
        group: list[_Pair] = []
        for pair in outcomes:
            if group and not can_batch(group[0][1], pair[1]):
                yield group
                group = []
            group.append(pair)
            if len(group) == self.batch_size or not isinstance(pair[1], PreparedQuestion):
                yield group
                group = []
        if group:
            yield group

    def _answer_group(self, outcomes: Sequence[_Outcome]) -> list[Answer]:
        first = outcomes[0]
        if isinstance(first, Answer):
            return [first]
        if isinstance(first, Exception):
            return [failure(first)]
        prepared = [outcome for outcome in outcomes if isinstance(outcome, PreparedQuestion)]
        return answers_of(self.pruning, self.processor, prepared)


def _raised(pair: _Pair | Exception) -> _Pair:
    if isinstance(pair, Exception):
        raise pair
    return pair


def _fit_processor(
    processor: ChatProtocol, min_pixels: int | None, max_pixels: int | None, vision_marks: VisionMarks | None
) -> None:
    if vision_marks is not None and not hasattr(processor, "vision_marks"):
        raise OptionError(f"vision_marks={vision_marks!r} is for Qwen3-VL; leave it out for this model")
    given: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if limits := {name: value for name, value in given.items() if value is not None}:
        if not isinstance(processor, QwenProcessor):
            raise OptionError(f"{' and '.join(limits)} are for Qwen-VL; frames of this model have one size")
        processor.patches = replace(processor.patches, **limits)


def _check_numbers(least: dict[str, tuple[int | None, int]]) -> None:
    for name, (got, low) in least.items():
        if got is not None and got < low:
            raise OptionError(f"{name} must be at least {low}, got {got}")


def _check_prompt(time_instruction: str | None, vision_marks: str | None) -> None:
    if time_instruction not in (None, *get_args(TimeInstruction)):
        raise UnknownNameError("time instruction", str(time_instruction), get_args(TimeInstruction))
    check_marks(vision_marks)
