"""Time a model from the video to the last token, with several methods in alternating runs: `tango profile`."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from tango.containers import Video
from tango.evaluation import Answer, Efficiency, MethodConfig
from tango.evaluation.records import peak_bytes
from tango.lab.bench import roofline, stock
from tango.lab.bench.common import Record, synchronize
from tango.models import adapter_class
from tango.ops.llm_shapes import llm_of
from tango.runtime.answering import generate_ids
from tango.runtime.decoding import decoding_options
from tango.runtime.pruning import prune
from tango.runtime.stats import PruningStats
from tango.toy import draw_frames
from tango.video.sources import frames_video

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel

_RATE = "Avg_Decoding_Throughput (token/s)"  # a row of `Efficiency`
_Runs: TypeAlias = list[dict[str, float | None]]
# Model inputs on their device, and the milliseconds spent on reading and preprocessing.
Inputs: TypeAlias = "tuple[BatchFeature, dict[str, float]]"


@dataclass(kw_only=True)
class Candidate:
    """A method in one setting, with its measured runs. `error` says why there are no more of them."""

    method: MethodConfig
    stock: bool = False  # transformers without Tango; `method` then keeps all tokens
    tower_attention: str | None = None  # None: the tower's own
    compiled: str | None = None  # a mode of torch.compile for the tower; None: as the model is
    static_cache: bool = False
    alone: bool = False  # measured after the others, not in turn with them
    against: str | None = None  # label of the candidate that speed-ups compare with; None: all tokens, same setting
    answers: list[Answer] = field(default_factory=list)
    stats: PruningStats | None = None  # of the last run
    error: str | None = None
    first_ms: float | None = None  # of the first run, which compiles what there is to compile
    work: dict[str, roofline.Work] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name for tables, such as "tango-r0.1" or "tango-r0.1, eager tower"."""
        tower = "" if self.tower_attention is None else f", {self.tower_attention} tower"
        compiled = "" if self.compiled is None else ", compiled tower"
        cache = ", static cache" if self.static_cache else ""
        return f"{'stock' if self.stock else self.method.label}{tower}{compiled}{cache}"

    @property
    def setting(self) -> tuple[object, ...]:
        """What candidates must share for their times to be compared."""
        return self.tower_attention, self.compiled, self.static_cache


def measure(
    model: PreTrainedModel,
    candidates: Sequence[Candidate],
    make_inputs: Callable[[], Inputs],
    *,
    repeats: int,
    max_new_tokens: int,
    after_run: Callable[[], object] = lambda: None,
    after_round: Callable[[], object] = lambda: None,
) -> None:
    """Run all candidates in turn, round after round, so that a busy machine slows all of them alike.

    The first round warms up and is not recorded. Inputs are made anew in every round; the time that this takes does not
    depend on the method and counts for each run of the round. A candidate that fails is left out from then on.
    """
    for i in range(1 + repeats):
        if all(candidate.error is not None for candidate in candidates):
            return
        inputs = make_inputs()
        for candidate in candidates:
            if candidate.error is None:
                _attempt(model, candidate, inputs, max_new_tokens, record=i > 0)
            after_run()
        after_round()


def _attempt(
    model: PreTrainedModel, candidate: Candidate, inputs: Inputs, max_new_tokens: int, *, record: bool
) -> None:
    try:
        answer, candidate.stats = run_once(model, candidate, inputs, max_new_tokens)
        candidate.first_ms = candidate.first_ms or answer.elapsed_ms
        if record:
            candidate.answers.append(answer)
    except Exception as error:  # whatever it is, the others can still be measured
        candidate.error = f"{type(error).__name__}: {first_line(error)}"
    if candidate.error is not None:  # inside `except`, the traceback still holds the failed run's memory
        gc.collect()
        if model.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # the GPU may be lost
                torch.cuda.empty_cache()


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a table."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def run_once(
    model: PreTrainedModel, candidate: Candidate, inputs: Inputs, max_new_tokens: int
) -> tuple[Answer, PruningStats]:
    """Generate exactly `max_new_tokens` tokens; the end of the answer is suppressed, so that there is decoding."""
    device, (features, before_ms) = model.device, inputs
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens}
    options |= decoding_options(static_cache=candidate.static_cache)
    with (
        attention_of_tower(model, candidate.tower_attention),
        contextlib.nullcontext() if candidate.stock else prune(model, candidate.method.plan) as pruning,
    ):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        start = time.perf_counter()
        if pruning is None:
            new, stats = stock.generate(model, features, **options)
        else:
            new = generate_ids(model, features, **options)
            assert pruning.stats is not None
            stats = pruning.stats
        synchronize(device)
        elapsed_ms = 1e3 * (time.perf_counter() - start)
    candidate.work = _work(model, features, stats, new.shape[1])
    stages = stats.timer.ms()
    if new.shape[1] == 1:  # the prefill produced the only token
        stages.pop("decoding", None)
    inside = stats.layer
    answer = Answer(
        text="",
        input_tokens=stats.prompt_after[0],
        output_tokens=new.shape[1],
        visual_tokens_before=stats.tokens_before,
        visual_tokens_after=stats.tokens_after,
        mean_visual_tokens=stats.tokens_after if inside is None else stats.tokens_before * inside.mean_retention_ratio,
        stages_ms={**before_ms, **stages},
        elapsed_ms=elapsed_ms,
        peak_bytes=peak_bytes(device),
    )
    return answer, stats


def _work(
    model: PreTrainedModel, inputs: BatchFeature, stats: PruningStats, new_tokens: int
) -> dict[str, roofline.Work]:
    left = layer_tokens(stats, model.config.get_text_config().num_hidden_layers)
    counts = {"visual": stats.tokens_before, "kept": stats.entering_after, "new_tokens": new_tokens}
    return roofline.stage_work(model, roofline.patch_grids(model, inputs), tokens_per_layer=left, **counts)


@contextlib.contextmanager
def attention_of_tower(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """While entered, the vision tower uses this attention implementation; None: its own.

    Raises:
        ValueError, ImportError: the tower cannot use it.
    """
    tower = adapter_class(model.config).tower(model)
    before = tower.config._attn_implementation
    try:
        if name is not None:
            tower.set_attn_implementation(name)
        yield
    finally:
        tower.config._attn_implementation = before


def synthetic_video(num_frames: int, *, size: int = 448) -> Video:
    """A video without a file: frames of `draw_frames`, a second apart."""
    frames = torch.stack([torch.from_numpy(frame) for frame in draw_frames(num_frames=num_frames, size=size)])
    return frames_video(frames, range(num_frames), num_frames, 1.0, "synthetic")


def layer_tokens(stats: PruningStats, num_layers: int) -> list[int]:
    """Number of prompt tokens that enter each layer of the LLM, in a call with one prompt."""
    tokens = [stats.prompt_after[0]] * num_layers
    if stats.layer is not None:
        entered, *left = stats.layer.tokens
        for layer, visual in zip(stats.layer.layers, left, strict=True):
            tokens[layer:] = [stats.prompt_after[0] - entered + visual] * (num_layers - layer)
    return tokens


def summarise(model: PreTrainedModel, candidates: Sequence[Candidate]) -> list[Record]:
    """One record per candidate: token counts, medians and extremes, and speed-ups over all tokens in the same setting.

    All tokens are those of stock transformers where these were measured, else those on Tango's path.

    `ttft_ms` is the time from the start of the tower to the end of the prefill; the row of that name in `release_table`
    leaves out the time between the stages. Speed-ups are taken run by run. `ttft_over_eager` compares with all tokens
    and an eager tower, as the paper's release runs it, if that is among the candidates. `prefill_by_flops` is what the
    FLOP model predicts from the token counts alone.
    """
    device = model.device.type
    all_tokens = sorted((c for c in candidates if c.method.method == "none"), key=lambda c: c.stock and bool(c.answers))
    plain = {c.setting: _runs(c, device) for c in all_tokens}  # stock comes last and wins
    named = {c.label: _runs(c, device) for c in candidates}
    eager = plain.get(("eager", None, False), [])
    of_plain = [plain.get(c.setting, []) if c.against is None else named[c.against] for c in candidates]
    return [_summary(model, c, slow, eager, device) for c, slow in zip(candidates, of_plain, strict=True)]


def _summary(model: PreTrainedModel, candidate: Candidate, of_plain: _Runs, of_eager: _Runs, device: str) -> Record:
    row: Record = {
        "label": candidate.label,
        "method": candidate.method.to_dict(),
        "stock": candidate.stock,
        "tower_attention": candidate.tower_attention,
        "compiled": candidate.compiled,
        "static_cache": candidate.static_cache,
        "error": candidate.error,
        "runs": len(candidate.answers),
    }
    answers, stats = candidate.answers, candidate.stats
    if stats is None or not answers:
        return row
    runs, counts = _runs(candidate, device), stats.to_dict()
    counted = ("tokens_before", "tokens_after", "entering_after", "prompt_before", "prompt_after", "layer")
    num_layers = model.config.get_text_config().num_hidden_layers
    all_tokens, left = [stats.prompt_before[0]] * num_layers, layer_tokens(stats, num_layers)
    all_flops, flops = map(llm_of(model.config).prefill_flops, (all_tokens, left))
    return row | {
        "tokens": {**{key: counts[key] for key in counted}, "mean": answers[-1].mean_visual_tokens},
        "new_tokens": answers[-1].output_tokens,
        "first_run_ms": candidate.first_ms,
        "work": roofline.describe(candidate.work),
        "stages_ms": {stage: _spread([run[stage] for run in runs]) for stage in answers[0].stages_ms},
        "ttft_ms": _spread([run["ttft"] for run in runs]),
        "decoding_tokens_per_s": _spread([run[_RATE] for run in runs]),
        "elapsed_ms": _spread([answer.elapsed_ms for answer in answers]),
        "peak_bytes": max(answer.peak_bytes for answer in answers),
        "prefill_flops": flops,
        "speedup": {
            "ttft": _ratios(of_plain, runs, "ttft"),
            "ttft_over_eager": _ratios(of_eager, runs, "ttft"),
            "prefill": _ratios(of_plain, runs, "prefill"),
            "prefill_by_flops": all_flops / flops,
        },
        "release_table": Efficiency.of(answers, device=device).rows(),
    }


def _runs(candidate: Candidate, device: str) -> _Runs:
    """For every run: its stages, its time to the first token as "ttft", and its rows of the efficiency table."""
    runs: _Runs = []
    for answer in candidate.answers:
        one = Efficiency.of([answer], device=device)
        runs.append({**answer.stages_ms, "ttft": one.means().get("ttft_ms"), **one.rows()})
    return runs


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median, minimum and maximum; None if nothing was measured."""
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "min": min(known), "max": max(known)} if known else None


def _ratios(of_plain: _Runs, own: _Runs, key: str) -> dict[str, float] | None:
    """How many times longer all tokens take, round by round; a candidate that failed has fewer rounds."""
    pairs = ((slow[key], run[key]) for slow, run in zip(of_plain, own, strict=False))
    return _spread([slow / fast for slow, fast in pairs if slow is not None and fast is not None])
