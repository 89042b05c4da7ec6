"""From prepared questions to answers: how a batch is answered, and what a question that fails gets instead."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import torch

from tango.errors import PromptError, TangoError, VideoReadError
from tango.evaluation.preparation import PreparedQuestion, collate
from tango.evaluation.questions import Answer
from tango.runtime.answering import generate_ids
from tango.runtime.pruning import Pruning

if TYPE_CHECKING:
    from tango.models.processors.protocol import ChatProtocol

log = logging.getLogger(__name__)

# What a single question may cause, by its video, its size or its memory. Other errors are defects and stop the run.
_OF_A_QUESTION = (RuntimeError, ValueError, OSError, MemoryError)


def can_batch(first: object, second: object) -> bool:
    """Whether two outcomes are questions that fit in one batch. Sampled ones do not: each has its own seed."""
    if not (isinstance(first, PreparedQuestion) and isinstance(second, PreparedQuestion)):
        return False
    alike = first.generate_options == second.generate_options and first.inputs.keys() == second.inputs.keys()
    return alike and not first.generate_options["do_sample"]


def answers_of(pruning: Pruning, processor: ChatProtocol, batch: Sequence[PreparedQuestion]) -> list[Answer]:
    """Answer a batch. If it fails as a whole (for lack of memory, say), its questions are tried one by one.

    Raises:
        Exception: an error that other questions would meet, too; see `failure`.
    """
    try:
        return _generate(pruning, processor, batch)
    except Exception as error:
        failed = failure(error, quiet=len(batch) > 1)
    if len(batch) == 1:
        return [failed]
    if pruning.model.device.type == "cuda":
        torch.cuda.empty_cache()
    return [answer for one in batch for answer in answers_of(pruning, processor, [one])]


def failure(error: Exception, *, quiet: bool = False) -> Answer:
    """Make the answer of a question that alone caused the error, and log it.

    Raises:
        Exception: the error itself if other questions would meet it, too: a wrong configuration, a lost GPU, a defect.
    """
    is_configuration = isinstance(error, TangoError) and not isinstance(error, (VideoReadError, PromptError))
    is_lost = isinstance(error, getattr(torch, "AcceleratorError", ()))
    if is_configuration or is_lost or not isinstance(error, _OF_A_QUESTION):
        raise error
    message = f"{type(error).__name__}: {error}"
    if not quiet:
        log.warning("no answer, %s", message)
    return Answer(text="", error=message)


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """Cut the text at the first of the stop strings."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.split(stop)[0]
    return text.strip()


def _generate(pruning: Pruning, processor: ChatProtocol, batch: Sequence[PreparedQuestion]) -> list[Answer]:
    model, tokenizer = pruning.model, processor.tokenizer
    inputs = collate([one.inputs for one in batch], tokenizer.pad_token_id or 0)
    prompts = inputs["attention_mask"].sum(1).tolist()
    before = pruning.stats
    with _seeded(batch[0], model.device):
        ids = generate_ids(model, inputs, **batch[0].generate_options).tolist()
    stats = None if pruning.stats is before else pruning.stats  # a batch without a video has none
    lengths = [_num_new(row, model.generation_config.eos_token_id) for row in ids]
    stages = {} if stats is None else stats.timer.ms()
    if max(lengths) == 1:  # the prefill gave the only token
        stages.pop("decoding", None)
    share = {stage: ms / len(batch) for stage, ms in stages.items()}
    videos, images = (iter(()), iter(())) if stats is None else (iter(stats.videos), iter(stats.images))
    answers = []
    for row, one in enumerate(batch):
        text = tokenizer.decode(ids[row], skip_special_tokens=True)
        own = [*islice(videos, one.num_videos), *islice(images, one.num_images)]
        entire, kept = sum(video.tokens_before for video in own), sum(video.tokens_after for video in own)
        inside = None if stats is None else stats.layer
        answers.append(
            Answer(
                text=cut_at(text, one.question.generate_options.get("until")),
                input_tokens=prompts[row] if stats is None else stats.prompt_after[row],
                output_tokens=lengths[row],
                visual_tokens_before=entire,
                visual_tokens_after=kept,
                mean_visual_tokens=kept if inside is None else entire * inside.mean_retention_ratio,
                stages_ms={**one.stages_ms, **share},
            )
        )
    return answers


@contextmanager
def _seeded(one: PreparedQuestion, device: torch.device) -> Iterator[None]:
    """Let sampling draw random numbers that depend on the question alone; restore the global generators afterwards."""
    if not one.generate_options["do_sample"]:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(one.question.key[:15], 16))
        yield


def _num_new(ids: list[int], eos: int | list[int] | None) -> int:
    """Number of new tokens of a row, up to the one that ends it."""
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
