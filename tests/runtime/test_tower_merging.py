"""Frames that are merged in the tower: budget, numbering, families, and how plans are written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tango
from tango.containers import TowerFrames
from tango.errors import OptionError, UnsupportedModelError
from tango.evaluation import MethodConfig
from tango.methods import TowerMerger
from tests import tiny, tiny_qwen

FRAMES, N = 9, 16


class Nothing(TowerMerger):
    """Leaves all frames."""

    name = "nothing"

    def merge(self, frames: TowerFrames) -> TowerFrames:
        return frames


class EveryThird(TowerMerger):
    """Leaves every third frame, and calls them one run."""

    name = "every-third"

    def merge(self, frames: TowerFrames) -> TowerFrames:
        return TowerFrames(hidden=frames.hidden[::3], sources=frames.sources[::3])

    def groups(self, hidden: torch.Tensor) -> tuple[int, ...]:
        return (len(hidden),)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llava_onevision()


def inputs() -> dict[str, Any]:
    row = tiny.prompt("Look: ", FRAMES, " What?")
    times = [[1.5 * t for t in range(FRAMES)]]
    return {**tiny.batch(row), "pixel_values_videos": tiny.clip(1, FRAMES)[None], "video_timestamps_s": times}


def run(model: Any, tower: Any, given: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    given = given or inputs()
    options = {"method": "tango", "retention_ratio": 0.3, **options}
    with tango.prune(model, tower=tower, **options) as pruning, torch.inference_mode():
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    return short, pruning.stats


def test_merging_nothing_changes_nothing(model: Any) -> None:
    expected, stats = run(model, None)
    got, same = run(model, Nothing(blocks="0"))
    assert torch.equal(got.input_ids, expected.input_ids)
    torch.testing.assert_close(got.inputs_embeds, expected.inputs_embeds, rtol=1e-4, atol=1e-5)
    assert same.videos == stats.videos


@pytest.mark.parametrize("method", ["uniform", "tango", "earlytom", "holitom"])
def test_the_ratio_is_that_of_all_frames(model: Any, method: str) -> None:
    _, stats = run(model, EveryThird(blocks="0"), method=method, saliency="attn", exact_budget=True)
    (video,) = stats.videos
    assert (video.frames, video.frames_encoded) == (FRAMES, 3)
    assert video.tokens_before == FRAMES * N
    assert video.tokens_after == round(0.3 * FRAMES * N)
    assert f", 3 of {FRAMES} frames encoded" in str(stats)


def test_a_ratio_that_the_frames_left_cannot_reach_keeps_all_of_them(model: Any) -> None:
    _, stats = run(model, EveryThird(blocks="0"), retention_ratio=0.9)
    assert stats.tokens_after == 3 * N


def test_kept_tokens_stand_where_their_frames_do(model: Any) -> None:
    """With all tokens of the frames that are left, the prompt is that of a video of these frames alone."""
    given = inputs()
    got, _ = run(model, EveryThird(blocks="0"), given, method="uniform", retention_ratio=0.9, positions="kept")
    alone = {**given, "pixel_values_videos": given["pixel_values_videos"][:, ::3]}
    alone |= {**tiny.batch(tiny.prompt("Look: ", 3, " What?")), "video_timestamps_s": [[0.0, 4.5, 9.0]]}
    expected, _ = run(model, None, alone, method="uniform", retention_ratio=1.0)
    torch.testing.assert_close(got.inputs_embeds, expected.inputs_embeds, rtol=1e-4, atol=1e-5)
    before = len(tiny.prompt("Look: "))
    at = [before + t * N + n for t in (0, 3, 6) for n in range(N)]
    assert got.position_ids[0, before : before + 3 * N].tolist() == at


def test_options_that_follow_from_the_ratio_stay_those_of_all_frames(model: Any) -> None:
    seen = []

    class Spy(tango.TangoPruner):
        def prune(self, tokens: Any) -> Any:
            seen.append((self.retention_ratio, self.segment_threshold, len(tokens.features), tokens.groups))
            return super().prune(tokens)

    Spy.name = "spy"
    with tango.prune(model, Spy(retention_ratio=0.1), tower=EveryThird(blocks="0")) as pruning:
        given = inputs()
        pruning.encode(given["input_ids"], given["attention_mask"], given)
    ((ratio, threshold, frames, groups),) = seen
    assert ratio == pytest.approx(0.3)
    assert threshold == tango.TangoPruner.by_ratio["segment_threshold"](0.1)
    assert (frames, groups) == (3, (3,))


def test_earlytom_answers_and_videos_of_a_batch_stay_apart(model: Any) -> None:
    given = tiny.three_videos()
    options = {"method": "earlytom", "saliency": "attn", "tower_blocks": "0"}
    plan = tango.Plan.parse({**options, "tower": "earlytom-frames"})
    with tango.prune(model, plan) as pruning:
        output = model.generate(**given, do_sample=False, max_new_tokens=3)
        together = pruning.stats.videos
        alone = []
        for i in range(3):
            one = {**tiny.batch(tiny.prompt("A ", 6, " why?")), "video_timestamps_s": tiny.TIMES}
            one["pixel_values_videos"] = given["pixel_values_videos"][i : i + 1]
            pruning.encode(one["input_ids"], one["attention_mask"], one)
            alone += pruning.stats.videos
    assert output.shape[0] == 2
    assert together == tuple(alone)
    assert together[1].frames_encoded < 6  # the calm one


@pytest.mark.parametrize("family", ["llava_video", "llava_next_video", *tiny_qwen.FAMILIES])
def test_towers_without_a_place_for_it_refuse_it_by_name(family: str) -> None:
    other = tiny_qwen.model(family) if family in tiny_qwen.FAMILIES else getattr(tiny, family)()
    with pytest.raises(UnsupportedModelError, match=r"earlytom-frames merges frames in the tower, .* llava_onevision"):
        tango.prune(other, "uniform", tower="earlytom-frames")


def test_blocks_that_the_tower_does_not_have_are_refused(model: Any) -> None:
    with pytest.raises(OptionError, match=r"after blocks 6, 14, 20, but of this tower's 2 blocks .* number 0"):
        tango.prune(model, "uniform", tower="earlytom-frames")


def test_what_does_not_go_together_is_refused(model: Any) -> None:
    tower = Nothing(blocks="0")
    with pytest.raises(OptionError, match="does not go with reuse"):
        tango.prune(model, "uniform", tower=tower, reuse=True)
    with pytest.raises(OptionError, match="all tokens kept before the LLM"):
        tango.prune(model, "fastv", tower=tower)
    with pytest.raises(OptionError, match=r"none.* tower"):
        tango.prune(model, "none", tower="earlytom-frames")
    with pytest.raises(OptionError, match="but no tower: blocks"):
        MethodConfig.from_settings({"method": "uniform", "tower_blocks": "0"})
    with tango.compile_tower(model, backend="eager"), pytest.raises(UnsupportedModelError, match="remove\\(\\)"):
        run(model, tower)


def test_it_is_written_down() -> None:
    given = {"method": "tango", "tower": "earlytom-frames", "tower_blocks": "4,14", "tower_threshold": "0.8"}
    config = MethodConfig.from_settings(given)
    assert config.plan.tower == tango.EarlyTomFramesMerger(blocks="4,14", threshold=0.8)
    assert config.label == "tango-r0.1-earlytom-frames-blocks4_14-threshold0.8"
    assert MethodConfig(**config.to_dict()).plan == config.plan
    assert "tower" not in MethodConfig.from_settings({"method": "tango"}).to_dict()
