"""R6 and R7: the same input gives the same tokens, also in a batch; odd inputs work or are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

import tango
from tango import mini
from tango.containers import PrunedTokens, Video, VisualTokens
from tango.evaluation.preparation import collate
from tango.lab.bench import random_model
from tango.lab.bench.common import threads
from tango.lab.reliability.corpus import draw_frame
from tango.lab.reliability.workers import Bench, Outcome, Row, attempt, counted, run_all
from tango.methods import Pruner, ready_pruners
from tango.runtime.answering import generate_output, prepare_chat
from tango.video.sources import frames_video

_T = TypeVar("_T")
MODELS = (mini.NAME, "llava-onevision-tiny", "llava-video-tiny", "qwen2.5-vl-tiny")
_QUESTIONS = {
    True: ("which color is first", "how many objects", "where is red", "what letter"),
    False: ("What?", "Why is that so?", "Who?", "How?"),
}
_RATIO = 0.3


class Seen(NamedTuple):
    """The outcome of a call: tokens kept of every video, new ids and first logits of every row."""

    kept: tuple[tuple[int, ...], ...]
    ids: tuple[tuple[int, ...], ...]
    logits: torch.Tensor  # (B, vocabulary)


class _Spy:
    """A pruner that notes what it keeps."""

    def __init__(self, pruner: Pruner):
        self.pruner = pruner
        self.kept: list[tuple[int, ...]] = []

    def __call__(self, tokens: VisualTokens) -> PrunedTokens:
        pruned = self.pruner(tokens)
        self.kept.append(tuple(pruned.indices.tolist()))
        return pruned

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pruner, name)


@cache
def model_of(name: str, dtype: str = "float32") -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor, loaded once per process."""
    if name == mini.NAME:
        return tango.load(name, dtype=dtype, device="cpu", local_files_only=True)
    return random_model.build(name, device=torch.device("cpu"), dtype=getattr(torch, dtype))


def clip(num_frames: int, seed: int = 0, *, constant: bool = False) -> Video:
    """A short synthetic video, 96 x 96."""
    frames = np.stack([draw_frame(seed * 31 + (0 if constant else 3 * i), (96, 96)) for i in range(num_frames)])
    return frames_video(torch.from_numpy(frames), range(num_frames), num_frames, 2.0, "synthetic")


def prompt(name: str, videos: Sequence[Video], number: int = 0, dtype: str = "float32") -> BatchFeature:
    """Inputs of one prompt: these videos and a question."""
    model, processor = model_of(name, dtype)
    text = _QUESTIONS[name == mini.NAME][number]
    content = [*({"type": "video", "video": video} for video in videos), {"type": "text", "text": text}]
    inputs = prepare_chat(processor, [{"role": "user", "content": content}])
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and "pixel" in key:
            inputs[key] = value.to(model.dtype)
    return inputs


def see(
    name: str, rows: Sequence[BatchFeature], method: str = "tango", dtype: str = "float32", ratio: float = _RATIO
) -> Seen:
    """Generate from a batch of prompts with pruning."""
    model, processor = model_of(name, dtype)
    inputs = collate(list(rows), processor.tokenizer.pad_token_id or 0)
    with tango.prune(model, method, retention_ratio=ratio) as pruning:
        spy = _Spy(pruning.pruner)
        pruning.pruner = spy  # type: ignore[assignment]
        output = generate_output(model, inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    new = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    ends = {end} if isinstance(end, int) else set(end or ())
    ids = tuple(tuple(itertools.takewhile(lambda token: token not in ends, row)) for row in new)
    return Seen(tuple(spy.kept), ids, output.logits[0].float())


def repeat(name: str, method: str, times: int) -> tuple[list[str], float]:
    """Run one input many times, with 1 and 2 threads and in all orders of a batch.

    Returns:
        Faults, and the largest difference of logits.
    """
    rows = [prompt(name, [clip(n, seed=n)], number) for number, n in enumerate((6, 9, 4))]
    first, faults, largest = see(name, rows[:1], method), [], 0.0

    def compare(got: Seen, row: int, what: str) -> None:
        nonlocal largest
        largest = max(largest, float((got.logits[row] - first.logits[0]).abs().max()))
        if got.kept[row] != first.kept[0]:
            faults.append(f"{name}, {method}, {what}: other tokens kept")

    for i in range(times):
        with threads(1 + i % 2):
            compare(see(name, rows[:1], method), 0, f"time {i + 1}, {1 + i % 2} threads")
    for order in itertools.permutations(range(3)):
        compare(see(name, [rows[i] for i in order], method), order.index(0), f"batch {order}")
    return faults, largest


def check_determinism(bench: Bench) -> Iterator[Row]:
    """R6: the same input 20 times, with 1 and 2 threads, and in all orders of a batch."""
    times = 200 if bench.full else 20
    pairs = [(mini.NAME, method) for method in ready_pruners()] + [(name, "tango") for name in MODELS[1:]]
    outcomes = run_all([partial(repeat, *pair, times) for pair in pairs], replace(bench, limit_s=1800))
    faults = [fault for o in outcomes if o.kind == "ok" for fault in o.value[0]]
    faults += [f"{pair}: {o.message}" for pair, o in zip(pairs, outcomes, strict=True) if o.kind != "ok"]
    tried = len(pairs) * (times + 6)
    what = f"same input {times} times, 1 and 2 threads, 6 orders of a batch: other tokens kept"
    yield counted("R6", what, tried, faults)
    largest = max((o.value[1] for o in outcomes if o.kind == "ok"), default=float("nan"))
    yield Row(
        check="R6", what="the same: largest difference of logits", tried=tried, target="stated, below 1e-3",
        got=f"{largest:.1e}", passed=largest < 1e-3,
    )  # fmt: skip


def _unlike(batch: Seen, alone: Sequence[Seen]) -> str:
    kept = tuple(kept for one in alone for kept in one.kept)
    if batch.kept != kept:
        return "other tokens kept than alone"
    return "" if batch.ids == tuple(one.ids[0] for one in alone) else "other answers than alone"


def batches(name: str, size: int, method: str, dtype: str = "float32") -> str:
    """Prompts of mixed lengths, one of them with a single frame, together and alone."""
    rows = [prompt(name, [clip(n, seed=n)], i, dtype) for i, n in enumerate((5, 1, 9, 3)[:size])]
    return _unlike(see(name, rows, method, dtype), [see(name, [row], method, dtype) for row in rows])


def two_videos(name: str, method: str) -> str:
    """Two videos in one prompt: each keeps the tokens that it keeps alone."""
    videos = [clip(4, 1), clip(7, 2)]
    both = see(name, [prompt(name, videos)], method)
    alone = [see(name, [prompt(name, [video])], method).kept[0] for video in videos]
    return "" if both.kept == tuple(alone) else "other tokens kept than alone"


def without_video(name: str, method: str) -> str:
    """A row of text only: by itself it is answered as by stock code, and beside a row with a video, too."""
    model, processor = model_of(name)
    text, video = prompt(name, []), prompt(name, [clip(5)], 1)
    stock = model.generate(**text, do_sample=False, max_new_tokens=4)
    with tango.prune(model, method, retention_ratio=_RATIO):
        if not torch.equal(model.generate(**text, do_sample=False, max_new_tokens=4), stock):
            return "text alone: another answer than stock"
    padded = collate([_plain(text), _plain(video)], processor.tokenizer.pad_token_id or 0)
    together = {**video, **padded}
    batch = see(name, [type(video)(together)], method)
    alone = see(name, [video], method)
    if batch.kept != alone.kept or batch.ids[1] != alone.ids[0]:
        return "the row with a video: not as alone"
    end = model.generation_config.eos_token_id
    expected = tuple(itertools.takewhile(lambda t: t != end, stock[0, text["input_ids"].shape[1] :].tolist()))
    return "" if batch.ids[0] == expected else "the row of text: not as alone"


def _plain(inputs: BatchFeature) -> BatchFeature:
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    return type(inputs)({k: inputs[k] for k in names if k in inputs})


def with_image(name: str, method: str) -> str:
    """An image beside a video, if the processor takes images: the video keeps the tokens that it keeps alone."""
    from PIL import Image

    _, processor = model_of(name)
    video, image = clip(5), Image.fromarray(draw_frame(3, (96, 96)))
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": _QUESTIONS[name == mini.NAME][0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    try:
        inputs = processor(text=text, images=[image], videos=[video])
    except (TypeError, ValueError) as error:
        raise tango.TangoError(f"the processor takes no images: {error}") from error
    return "" if see(name, [inputs], method).kept == see(name, [prompt(name, [video])], method).kept else "other tokens"


def keeps_all(name: str, method: str) -> str:
    """Ratio 1 keeps all tokens of a video of one frame."""
    seen = see(name, [prompt(name, [clip(1)])], method, ratio=1.0)
    return "" if seen.kept[0] == tuple(range(len(seen.kept[0]))) else "ratio 1 drops tokens"


def constant(name: str, method: str) -> str:
    """A video in which nothing changes: the same tokens, not none, twice."""
    rows = [prompt(name, [clip(8, constant=True)])]
    one, two = see(name, rows, method), see(name, rows, method)
    return "" if one.kept == two.kept and one.ids == two.ids and one.kept[0] else "not the same twice"


def not_a_number(name: str, method: str, ratio: float = _RATIO) -> str:
    """NaN in the pixels must be refused; any answer is a fault."""
    inputs = prompt(name, [clip(5)])
    key = next(key for key in inputs if "pixel" in key)
    inputs[key] = inputs[key].clone()
    inputs[key].view(-1)[7] = float("nan")
    see(name, [inputs], method, ratio=ratio)
    return f"answered at ratio {ratio}"


def check_batches(bench: Bench) -> Iterator[Row]:
    """R7: batches and odd inputs, for every method and model family."""
    methods = ready_pruners()
    pairs = [*((mini.NAME, method) for method in methods), *((name, "tango") for name in MODELS[1:])]
    if bench.full:
        pairs = list(itertools.product(MODELS, methods))
    tries: dict[str, list[partial[str]]] = {
        "batches of 1 to 4, mixed lengths": [partial(batches, n, size, m) for n, m in pairs for size in (1, 2, 3, 4)],
        "the same in bfloat16 and float16": [
            partial(batches, n, 3, "tango", dtype) for n in MODELS for dtype in ("bfloat16", "float16")
        ],
        "two videos in a prompt": [partial(two_videos, *pair) for pair in pairs],
        "text alone, and beside a video": [partial(without_video, *pair) for pair in pairs],
        "an image beside a video": [partial(with_image, name, "tango") for name in MODELS],
        "everything kept": [partial(keeps_all, *pair) for pair in pairs],
        "a constant video": [partial(constant, *pair) for pair in pairs],
        "NaN in the pixels": [partial(not_a_number, *pair, ratio) for pair in pairs for ratio in (_RATIO, 1.0)],
    }
    for what, jobs in tries.items():
        outcomes = run_all([partial(_of_group, group) for group in _chunks(jobs, 8)], replace(bench, limit_s=900))
        yield row_of(what, jobs, _flat(outcomes, jobs))


def row_of(what: str, jobs: Sequence[partial[str]], outcomes: Sequence[Outcome]) -> Row:
    """The row for jobs that return "" or what is wrong; a typed error is no fault, and counted."""
    refused = sum(o.kind == "refused" for o in outcomes)
    faults = [
        f"{', '.join(map(str, job.args))}: {o.value or o.message}"
        for job, o in zip(jobs, outcomes, strict=True)
        if o.kind != "refused" and (o.kind != "ok" or o.value)
    ]
    return counted(
        "R7", f"{what}: as alone ({len(jobs) - refused - len(faults)}), or a typed error ({refused})", len(jobs), faults
    )


def _of_group(jobs: Sequence[Callable[[], str]]) -> list[Outcome]:
    return [attempt(job) for job in jobs]


def _chunks(jobs: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def _flat(outcomes: Sequence[Outcome], jobs: Sequence[partial[str]]) -> list[Outcome]:
    """The outcome of every job; if its process hung or died, the outcome of the process."""
    flat: list[Outcome] = []
    for outcome, group in zip(outcomes, _chunks(jobs, 8), strict=True):
        flat += [Outcome(*o) for o in outcome.value] if outcome.kind == "ok" else [outcome] * len(group)
    return flat
