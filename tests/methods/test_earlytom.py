"""EarlyTom against its authors' numbers, and by hand. Files: tests/data/golden-earlytom/README.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

import tango
from tango.containers import TowerFrames, VisualTokens
from tango.errors import OptionError, UnknownNameError
from tango.methods import EarlyTomFramesMerger, EarlyTomFramesReleaseMerger, EarlyTomPruner, TowerMerger
from tango.models.merging import merged_states
from tango.models.siglip import run_blocks
from tests.synthetic import video_tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden-earlytom"
STEPS = ("et01_cut", "et02_still", "et03_window6_last", "et04_ema5", "et05_high_tau", "et06_T1")
BOTH = pytest.mark.parametrize("merger", [EarlyTomFramesMerger, EarlyTomFramesReleaseMerger])


@cache
def load(name: str) -> dict[str, NDArray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def options(case: dict[str, NDArray]) -> dict[str, Any]:
    names = {"threshold": "tau", "smoothing": "ema"}
    return {**{own: float(case[name]) for own, name in names.items()}, "max_window": int(case["max_window"])}


def frames(hidden: Any) -> TowerFrames:
    states = torch.as_tensor(hidden, dtype=torch.float32)
    return TowerFrames(hidden=states, sources=tuple(range(len(states))))


def lengths(groups: NDArray) -> tuple[int, ...]:
    return tuple(int(last) - int(first) + 1 for first, last in groups)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_the_release(name: str) -> None:
    case = load(name)
    merger = EarlyTomFramesReleaseMerger(**options(case))
    before = frames(case["hidden"])
    assert merger.groups(before.hidden) == lengths(case["groups"])
    after, expected = merger(before), case["merged_hidden"]
    torch.testing.assert_close(
        after.hidden, torch.from_numpy(expected), rtol=1e-4, atol=1e-5 * float(np.abs(expected).max())
    )
    if case["last_layer"]:
        assert merger.groups(after.hidden) == lengths(case["returned_groups"])


@pytest.mark.parametrize("name", ["et07_select", "et08_select_r25"])
def test_the_selection_is_that_of_the_release(name: str) -> None:
    case = load(name)
    features = torch.from_numpy(case["features"]).float()
    ratio = float(case["retention_ratio"]) * int(case["frames_before"]) / len(features)
    assert ratio == pytest.approx(float(case["adjusted_ratio"]))
    tokens = VisualTokens(
        features=features, grid=tuple(case["grid"].tolist()), timestamps_s=torch.arange(len(features)) / 1.0,
        saliency=torch.from_numpy(case["saliency"]), groups=lengths(case["groups"]),
    )  # fmt: skip
    pruned = EarlyTomPruner(retention_ratio=ratio)(tokens)
    assert pruned.indices.tolist() == case["official_indices"].tolist()
    torch.testing.assert_close(pruned.features, torch.from_numpy(case["official_features"]).float())


@pytest.mark.parametrize("name", ["et09_tower", "et10_tower_two"])
@pytest.mark.parametrize("batch", [3, 100])
def test_a_whole_tower_is_that_of_the_release(name: str, batch: int) -> None:
    case = load(name)
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=10, patch_size=2
    )
    tower = SiglipVisionModel(config).eval()
    tower = getattr(tower, "vision_model", tower)
    weights = {key[2:]: torch.from_numpy(value).float() for key, value in case.items() if key.startswith("w.")}
    tower.encoder.load_state_dict(weights)
    merger = EarlyTomFramesReleaseMerger(blocks=",".join(map(str, case["prune_layers"])), **options(case))

    def run(hidden: Tensor, first: int, end: int) -> Tensor:
        return torch.cat([run_blocks(tower, part, first, end) for part in hidden.split(batch)])

    with torch.no_grad():
        left = merged_states(frames(case["embeddings"]).hidden, merger, run, last=5)
        hidden = run(left.hidden, 5, 6)
    assert left.groups == lengths(case["groups"])
    torch.testing.assert_close(hidden, torch.from_numpy(case["hidden"]), rtol=1e-3, atol=1e-4)


@BOTH
def test_still_frames(merger: type[EarlyTomFramesMerger]) -> None:
    """Groups of five frames become four, by averaging two or by dropping one."""
    hidden = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0)).expand(32, -1, -1)
    after = merger(blocks="0")(frames(hidden))
    assert len(after.sources) == 26
    torch.testing.assert_close(after.hidden, hidden[:26])
    last = merger(blocks="0").merge(frames(hidden[:5])).sources
    assert last == ((0, 1, 2, 4) if merger is EarlyTomFramesReleaseMerger else (0, 1, 3, 4))


@BOTH
@pytest.mark.parametrize("T", [1, 2, 3])
def test_few_frames_stay(merger: type[EarlyTomFramesMerger], T: int) -> None:
    hidden = torch.ones(T, 4, 8)
    after = merger(blocks="0")(frames(hidden))
    assert after.sources == tuple(range(T))
    assert torch.equal(after.hidden, hidden)


def test_the_last_frame_between_the_ends_is_not_lost() -> None:
    """The ends are the same, so nothing between them is similar enough to be merged."""
    generator = torch.Generator().manual_seed(1)
    ends, inner = torch.ones(1, 9, 8), torch.ones(1, 9, 8) + 0.1 * torch.randn(3, 9, 8, generator=generator)
    before = frames(torch.cat([ends, inner, ends]))
    assert EarlyTomFramesMerger()(before).sources == (0, 1, 2, 3, 4)
    assert EarlyTomFramesReleaseMerger()(before).sources == (0, 1, 2, 4)


@BOTH
def test_groups_are_no_longer_than_the_window_and_rows_are_averages(merger: type[EarlyTomFramesMerger]) -> None:
    generator = torch.Generator().manual_seed(2)
    walk = torch.ones(40, 9, 8) + 0.05 * torch.randn(40, 9, 8, generator=generator).cumsum(0)
    own = merger(blocks="0", max_window=8, threshold=0.3)
    assert max(own.groups(walk)) <= 7
    assert sum(own.groups(walk)) == 40
    after = own(frames(walk))
    assert len(after.sources) < 40
    for source, row in zip(after.sources, after.hidden, strict=True):
        low, high = walk[source : source + 2].amin(0), walk[source : source + 2].amax(0)
        assert bool(((row >= low - 1e-5) & (row <= high + 1e-5)).all())


def test_without_groups_the_most_salient_tokens_of_every_frame_stay() -> None:
    tokens = video_tokens(frames=4, grid=(4, 4), dim=8)
    kept = EarlyTomPruner(retention_ratio=0.2)(tokens).indices.view(4, 4) % 16  # ceil(3.2)
    expected = tokens.saliency.topk(4).indices.sort(dim=1).values
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("blocks", ["", "3,3", "5,2", "-1", "a"])
def test_blocks_must_increase(blocks: str) -> None:
    with pytest.raises(OptionError, match="blocks must be increasing numbers"):
        EarlyTomFramesMerger(blocks=blocks)


def test_names() -> None:
    assert tango.available_tower_mergers() == ["earlytom-frames", "earlytom-frames-release"]
    assert "earlytom-frames" not in tango.available_methods()
    with pytest.raises(UnknownNameError, match="tower method"):
        tango.build_tower_merger("tango")


@pytest.mark.parametrize("sources", [(1, 2), (0, 2, 1), (), (0, 9)])
def test_what_no_merger_may_return_is_noticed(sources: tuple[int, ...]) -> None:
    class Broken(TowerMerger):
        name = "broken"

        def merge(self, before: TowerFrames) -> TowerFrames:
            return TowerFrames(hidden=before.hidden[: len(sources)], sources=sources)

    with pytest.raises(AssertionError, match="broken"):
        Broken(blocks="0")(frames(torch.ones(4, 9, 8)))
