"""The models as lmms-eval sees them. All the work is done by `tango.evaluation.Answerer`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, NoReturn

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from tango import TangoError
from tango.evaluation import Answer, Answerer, Efficiency, Question
from tango_lmms_eval.output import Output
from tango_lmms_eval.questions import build, chat_messages, simple_messages
from tango_lmms_eval.settings import read_settings

# Scored as wrong, also by MVBench, whose mean leaves empty answers out. (LongVideoBench draws a letter for either.)
NO_ANSWER = "[no answer]"
MOST_FAILED = 0.5  # with more questions than this share without an answer a run has failed


class TangoModel(lmms):
    """A video LLM under a pruning method, or with all its tokens.

    Settings are checked when it is made; the checkpoint is loaded when the first answers are wanted, and freed after.
    An error ends the process with an exit code other than 0: lmms-eval itself would print it and exit with 0, and other
    processes would wait for this one for hours.
    """

    default_max_new_tokens: ClassVar[int] = 1024  # for tasks that say nothing; what lmms-eval's own class has
    describes: ClassVar[dict[str, tuple[Any, ...]]] = {}  # arguments of lmms-eval's class, with what holds here

    def __init__(self, **model_args: Any):
        super().__init__()
        # Accelerator joins the processes; their timeout must cover the slowest one's whole share of the questions.
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=1))])
        self._together = dist.is_available() and dist.is_initialized()
        if self._together:
            self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        with self._fatal(same_everywhere=True):
            self.settings = read_settings(model_args, os.environ, describes=self.describes)
        if self._together or "device" not in self.settings.arguments:
            self.settings.arguments["device"] = str(self.accelerator.device)
        self.batch_size_per_gpu = self.settings.arguments.get("batch_size", 1)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.settings.arguments["device"])

    @property
    def batch_size(self) -> int:
        """Questions answered at once."""
        return self.batch_size_per_gpu

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer this process's share of the questions, in order, and report what it took."""
        real = [request for request in requests if not _is_padding(request)]
        with self._fatal():
            output = Output.of(requests, self.settings)
            if self.rank == 0:
                logger.info(f"Tango: {self.settings.method.label}, journal: {output.journal or 'none'}")
            arguments = {**self.settings.arguments, "method": self.settings.method, "journal": output.journal}
            with Answerer(rank=self.rank, **arguments) as answerer:
                questions = map(self.question, real)
                answers = list(answerer.answers(questions, progress=self.rank == 0, total=len(real)))
                found = {"efficiency": answerer.efficiency().to_dict(), "answers": _described(real, answers)}
                parts = self._gather(found)
                efficiency = Efficiency.merge([part["efficiency"] for part in parts])
                described = [one for part in parts for one in part["answers"]]
                failed = [one for one in described if "error" in one]
                if self.rank == 0:
                    output.write(answerer.config, efficiency, described)
                if len(failed) > efficiency.samples * MOST_FAILED:
                    self._give_up(efficiency.samples, failed)
        results = map(_result, answers)
        return [GenerationResult("") if _is_padding(request) else next(results) for request in requests]

    def question(self, request: Instance) -> Question:
        """What a request asks.

        A task that ends the whole run because a file is missing gets that one question unanswered instead.
        """
        context, generation, messages_of, (doc_id, task, split) = self._parts(request)
        try:
            messages = messages_of(self.task_dict[task][split][doc_id])
        except (SystemExit, OSError) as error:
            messages = simple_messages(context, [str(error)])
        return build(messages, generation, self.default_max_new_tokens)

    def _give_up(self, asked: int, failed: list[dict[str, Any]]) -> NoReturn:
        """End all processes: scores of such a run would say nothing. The answers that there are stay in the journal."""
        if self.rank == 0:
            why = f"{len(failed)} of {asked} questions failed, more than half; the first: {failed[0]['error']}"
            print(f"error: {' '.join(why.split())}", file=sys.stderr, flush=True)
        if self._together:
            dist.barrier()  # the first process to exit takes the others with it
        raise SystemExit(1)

    def _parts(self, request: Instance) -> tuple[str, dict[str, Any], Callable[[Any], list[Any]], tuple[Any, ...]]:
        """Text, generation settings, how a document becomes messages, and which document it is."""
        context, generation, doc_to_visual, *where = request.args
        return context, generation, lambda document: simple_messages(context, doc_to_visual(document)), tuple(where)

    def _unsupported(self, requests: list[Instance]) -> NoReturn:
        """Not for these models."""
        print(f"error: cannot do {requests[0].request_type} tasks, only generate_until", file=sys.stderr, flush=True)
        raise SystemExit(2)

    loglikelihood = generate_until_multi_round = _unsupported

    def _gather(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """What every process has, by rank."""
        if not self._together:
            return [mine]
        everybodys: list[Any] = [None] * self.world_size
        dist.all_gather_object(everybodys, mine)
        return everybodys

    @contextmanager
    def _fatal(self, *, same_everywhere: bool = False) -> Iterator[None]:
        """Turn errors into exit codes: 2 and one message for a user's mistake, 1 and a traceback for all else."""
        try:
            yield
        except TangoError as error:
            if self.rank == 0 or not same_everywhere:
                print(f"error: {error}", file=sys.stderr, flush=True)
            if same_everywhere and self._together:
                dist.barrier()  # the first process to exit takes the others with it, before they have said why
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; the same command again goes on from here", file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None


class ChatModel(TangoModel):
    """The same, for tasks that are asked as chats."""

    is_simple = False

    def _parts(self, request: Instance) -> tuple[str, dict[str, Any], Callable[[Any], list[Any]], tuple[Any, ...]]:
        context, doc_to_messages, generation, *where = request.args
        return context, generation, lambda document: chat_messages(doc_to_messages(document)), tuple(where)


class LlavaOneVision(TangoModel):
    """`--model llava_onevision`."""

    describes: ClassVar = {"mm_spatial_pool_mode": ("bilinear",)}


class LlavaVideo(TangoModel):
    """`--model llava_vid`."""

    describes: ClassVar = {"mm_spatial_pool_mode": ("average",), "mm_newline_position": ("grid",)}


class Qwen25VL(TangoModel):
    """`--model qwen2_5_vl --force_simple`."""

    default_max_new_tokens = 128


class Qwen25VLChat(ChatModel):
    """`--model qwen2_5_vl`."""

    default_max_new_tokens = 128


def _is_padding(request: Instance) -> bool:
    """A process with less to do than the others is given requests whose answers nobody looks at."""
    return bool((request.metadata or {}).get("__padding_only__"))


def _described(requests: list[Instance], answers: list[Answer]) -> list[dict[str, Any]]:
    """Of each question, what it was and how many tokens it took, or why it got no answer."""
    found = []
    for request, answer in zip(requests, answers, strict=True):
        doc_id, task, _split = request.args[-3:]
        counts = {"tokens_before": answer.visual_tokens_before, "tokens_after": answer.mean_visual_tokens}
        found.append({"task": task, "doc_id": doc_id, **(counts if answer.error is None else {"error": answer.error})})
    return found


def _result(answer: Answer) -> GenerationResult:
    counts = TokenCounts(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)
    return GenerationResult(answer.text or NO_ANSWER, counts)
