"""What every stage must compute and move, over what the machine can do: the least time that the stage could take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tango.lab.bench.common import Record, time_ms
from tango.models import adapter_class
from tango.models.fixed_grid import FixedGridAdapter
from tango.ops.llm_shapes import llm_of
from tango.profiling import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Grid = tuple[int, int, int]  # temporal steps, rows and columns of patches
_SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied
_COPIED = {"cpu": 128 << 20, "cuda": 1 << 30}  # bytes
_POOLED_FIRST = ("internvl", "llava_next_video")  # families whose projector follows the pooling
_RUNS = 7  # of which the median counts, after one that warms up


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What a device reaches in one dtype: operations a second in a product, bytes a second in a copy."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of a stage (a multiplication with its addition counts as two), and bytes it cannot do without moving."""

    flops: int
    bytes: int

    def floor_ms(self, ceilings: Ceilings) -> float:
        """The least time on such a device: whichever takes longer, computing or moving."""
        return 1e3 * max(self.flops / ceilings.flops_per_s, self.bytes / ceilings.bytes_per_s)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """One large square product and one large copy on this device, medians of seven; about a second on a CPU.

    On a GPU they need 2.5 GB for that moment.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    side = _SIDES[kind]
    a = torch.ones(side, side, dtype=dtype, device=device)
    b = torch.ones_like(a)
    product = torch.empty_like(a)
    multiplied = _median_s(lambda: torch.mm(a, b, out=product), device)
    source = torch.ones(_COPIED[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = _median_s(lambda: target.copy_(source), device)
    return Ceilings(flops_per_s=2 * side**3 / multiplied, bytes_per_s=2 * len(source) / copied)


def _median_s(function: Callable[[], object], device: torch.device) -> float:
    function()
    return statistics.median(time_ms(function, device) for _ in range(_RUNS)) / 1e3


def stage_work(
    model: PreTrainedModel,
    grids: Sequence[Grid],
    *,
    visual: int,
    kept: int,
    tokens_per_layer: Sequence[int],
    new_tokens: int,
) -> dict[str, Work]:
    """The work of every stage of one call with videos and one prompt, from shapes alone.

    FLOPs are those of products: with weights, and between tokens (queries by keys, weights by values; in the LLM's
    prefill masked ones too). Norms, activations, positions and whatever a method computes count nothing. Bytes are a
    stage's weights, once, and what enters and leaves it, the LLM's cache included; what passes between its layers is
    left out, as if it never left the chip. So the floors are rather too low than too high; but all frames count, also
    those that need not pass through the tower because another has the same pixels. Of an LLM's experts a prompt reads
    all, and a generated token those that it passes. Pruning and splicing count as bytes alone: all features read and
    the kept ones written, and these read and written again.

    Args:
        grids: of the videos, by `patch_grids`.
        visual, kept: visual tokens before pruning, and those that enter the LLM.
        tokens_per_layer: tokens of the prompt that enter each layer of the LLM.
        new_tokens: generated ones. The first belongs to the prefill; each other reads all weights and the cache.
    """
    itemsize, D = model.dtype.itemsize, model.config.get_text_config().hidden_size
    row = D * itemsize
    return {
        **_vision_work(model, grids, visual),
        "prune": Work(flops=0, bytes=(visual + kept) * row),
        "splice": Work(flops=0, bytes=2 * kept * row),
        **_llm_work(model, tokens_per_layer, new_tokens),
    }


def _vision_work(model: PreTrainedModel, grids: Sequence[Grid], visual: int) -> dict[str, Work]:
    """Tower and projector, whose last layer may follow the pooling. A tower that merges patches has no such stage."""
    adapter, itemsize = adapter_class(model.config), model.dtype.itemsize
    tower, vision = adapter.tower(model), model.config.vision_config
    width = getattr(vision, "embed_dim", vision.hidden_size)
    blocks = list(adapter.tower_blocks(model))
    layer = getattr(model.config, "vision_feature_layer", -1)
    blocks = blocks[: len(blocks) + 1 + layer if layer < 0 else layer]
    prefix = int(adapter.pooling_query_of(model.config) == "cls")  # the CLS token
    frames = [rows * columns + prefix for steps, rows, columns in grids for _ in range(steps)]
    patches = sum(frames)
    kernels = [m.weight.numel() for m in tower.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    flops = 2 * sum(kernels) * (patches - prefix * len(frames))
    for i, block in enumerate(blocks):
        whole = i in getattr(vision, "fullatt_block_indexes", range(len(blocks)))
        pairs = sum(n * n for n in frames) if whole else sum(map(partial(_pairs_in_windows, vision), grids))
        flops += 2 * _num_weights(block) * patches + 4 * pairs * width
    mergers = [m for name in ("merger", "deepstack_merger_list") if (m := getattr(tower, name, None)) is not None]
    flops += 2 * sum(map(_num_weights, mergers)) * visual
    weights = sum(kernels) + sum(map(_num_weights, [*blocks, *mergers]))
    pixels = sum(kernels) // width * (patches - prefix * len(frames))
    D = model.config.get_text_config().hidden_size
    out = visual * D if mergers else patches * width
    work = {"tower": Work(flops=flops, bytes=(weights + pixels + out) * itemsize)}
    if not mergers:
        projector = getattr(model.model, "connector", None) or model.model.multi_modal_projector
        rows = visual if model.config.model_type in _POOLED_FIRST else patches - prefix * len(frames)
        *others, last = (m.weight.numel() for m in projector.modules() if isinstance(m, nn.Linear))
        first = sum(others)
        moved = first + last + patches * width + visual * D
        work["project"] = Work(flops=2 * (first * rows + last * visual), bytes=moved * itemsize)
    return work


def _pairs_in_windows(vision: Any, grid: Grid) -> int:
    """Pairs of patches that see each other in windows of `window_size` pixels; at the edges they are smaller."""
    side = vision.window_size // vision.patch_size  # patches
    steps, *lengths = grid
    rows, columns = (sum(min(side, n - start) ** 2 for start in range(0, n, side)) for n in lengths)
    return steps * rows * columns


def _llm_work(model: PreTrainedModel, tokens_per_layer: Sequence[int], new_tokens: int) -> dict[str, Work]:
    llm, itemsize, text = llm_of(model.config), model.dtype.itemsize, model.config.get_text_config()
    head = _num_weights(model.get_output_embeddings())
    # Experts and routers are no `nn.Linear`. Norms and biases have one axis.
    weights = sum(p.numel() for p in model.get_decoder().layers.parameters() if p.dim() > 1) + head
    cache = llm.kv_cache_bytes(tokens_per_layer, bytes_per_number=itemsize)
    moved = weights + tokens_per_layer[0] * text.hidden_size + text.vocab_size
    flops = llm.prefill_flops(tokens_per_layer) + 2 * head
    work = {"prefill": Work(flops=flops, bytes=moved * itemsize + cache)}
    if new_tokens > 1:
        step = llm.step_flops(tokens_per_layer) + 2 * head
        moved = (weights - llm.idle_weights) * itemsize + cache
        work["decoding"] = Work(flops=(new_tokens - 1) * step, bytes=(new_tokens - 1) * moved)
    return work


def _num_weights(module: nn.Module) -> int:
    """Numbers in the matrices of a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def patch_grids(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[Grid]:
    """Steps, rows and columns of patches of every video in a model's inputs."""
    if inputs.get("video_grid_thw") is not None:
        return [(t, h, w) for t, h, w in torch.as_tensor(inputs["video_grid_thw"]).tolist()]
    adapter = adapter_class(model.config)(model)
    if isinstance(adapter, FixedGridAdapter):
        return [(len(video), adapter.patches, adapter.patches) for video in adapter.videos(inputs)]
    size = model.config.vision_config.patch_size
    shapes = [video.shape for video in inputs[adapter.video_input]]  # (T, C, h, w) of each
    return [(T, h // size, w // size) for T, _, h, w in shapes]


def describe(work: Mapping[str, Work]) -> dict[str, dict[str, int]]:
    """The work of every stage as plain numbers."""
    return {stage: asdict(one) for stage, one in work.items()}


def floors(row: Record, ceilings: Ceilings) -> dict[str, tuple[float, float | None]]:
    """Of every stage of a row with `work`: the floor in ms, and its share of the measured median."""
    found = {}
    for stage, one in row["work"].items():
        floor = Work(**one).floor_ms(ceilings)
        spent = row["stages_ms"].get(stage)
        found[stage] = floor, None if spent is None or not spent["median"] else floor / spent["median"]
    return found


def table(record: Mapping[str, Any]) -> tuple[str, list[Sequence[str]]] | None:
    """A line about a record's ceilings, and a table of every stage's floor; None if it has no ceilings."""
    if not (given := record["config"].get("ceilings")):
        return None
    ceilings = Ceilings(**given)
    rows = [(row["label"], floors(row, ceilings)) for row in record["rows"] if row["runs"]]
    stages = [stage for stage in STAGES if any(stage in found for _, found in rows)]
    cells: list[Sequence[str]] = [("floor ms (share reached)", *stages)]
    cells += [[label, *(_cell(stages_of.get(stage)) for stage in stages)] for label, stages_of in rows]
    says = (
        f"ceilings measured here: {ceilings.flops_per_s / 1e12:.3g} TFLOP/s in a product, "
        f"{ceilings.bytes_per_s / 1e9:.3g} GB/s in a copy; a stage's floor is its products or its bytes over these"
    )
    return says, cells


def _cell(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "-"
    floor, share = found
    return f"{floor:.3g}" + ("" if share is None else f" ({100 * share:.0f} %)")
