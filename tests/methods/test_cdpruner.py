"""CDPruner against its authors' numbers, and against determinants. Files: tests/data/golden-cdpruner/README.md."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.containers import VisualTokens
from tango.errors import MissingSignalError, NotFiniteError, OptionError
from tango.methods import CdPruner
from tango.methods.cdpruner import diverse_picks, text_relevance
from tests.synthetic import video_tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden-cdpruner"
FRAMES = ("cd01_scene_frames", "cd02_iid_two_segments", "cd03_one_frame")


@cache
def load(name: str) -> dict[str, NDArray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def floats(case: dict[str, NDArray], *names: str) -> list[Tensor]:
    return [torch.from_numpy(case[name]).float() for name in names]


class ByImageEmbeds(CdPruner):
    """Relevance as the release has it: from embeddings of image and text in a space of their own."""

    name = "by-image-embeds"

    def __init__(self, case: dict[str, NDArray], **options: Any):
        super().__init__(**options)
        image, text = floats(case, "image_embeds", "text_embeds")
        object.__setattr__(self, "given", text_relevance(image, text, sign=-1))

    def relevance(self, tokens: VisualTokens) -> Tensor:
        return self.given.view(tokens.features.shape[:2])


def tokens_of(features: Tensor, text: Tensor | None = None) -> VisualTokens:
    T, N, D = features.shape
    text = torch.ones(1, D) if text is None else text
    return VisualTokens(features=features, grid=(1, N), timestamps_s=torch.arange(T) / 1.0, text=text)


def kept(tokens: VisualTokens, ratio: float, **options: Any) -> list[int]:
    pruned = CdPruner(retention_ratio=ratio, **options)(tokens)
    assert torch.equal(pruned.features, tokens.features.flatten(0, 1)[pruned.indices])
    return pruned.indices.tolist()


def cosine(a: NDArray, b: NDArray) -> float:
    return float(a @ b) / (float(np.linalg.norm(a)) * float(np.linalg.norm(b)))


def relevance_oracle(features: Tensor, text: Tensor, sign: int) -> NDArray:
    """Relevance as it is written down, token by token: (T, N)."""
    x, words = features.double().numpy(), text.double().numpy()
    means = np.array([[sign * np.mean([cosine(token, word) for word in words]) for token in frame] for frame in x])
    return (means - means.min() + 1e-6) / (means.max() - means.min())


def picks_oracle(x: NDArray, relevance: NDArray, k: int) -> list[int]:
    """Picks that maximise the determinant of the kernel, one after the other; then by relevance."""
    kernel = np.array([[q * cosine(a, b) * p for b, p in zip(x, relevance, strict=True)]
                       for a, q in zip(x, relevance, strict=True)])  # fmt: skip
    picks: list[int] = []
    so_far = 1.0
    while len(picks) < k:
        free = [j for j in range(len(x)) if j not in picks]
        dets = {j: float(np.linalg.det(kernel[np.ix_([*picks, j], [*picks, j])])) for j in free}
        gains = {j: round(det / so_far, 9) for j, det in dets.items()}  # so that ties are ties
        best = max(free, key=gains.__getitem__)
        if gains[best] < 2e-5:
            return picks + sorted(free, key=lambda j: -relevance[j])[: k - len(picks)]
        picks.append(best)
        so_far *= gains[best]
    return picks


def oracle(tokens: VisualTokens, ratio: float, sign: int = 1) -> list[int]:
    assert tokens.text is not None
    relevance, x = relevance_oracle(tokens.features, tokens.text, sign), tokens.features.double().numpy()
    N = x.shape[1]
    picks = [picks_oracle(frame, q, max(1, round(ratio * N))) for frame, q in zip(x, relevance, strict=True)]
    return [t * N + n for t, own in enumerate(picks) for n in sorted(own)]


@pytest.mark.parametrize("name", [*FRAMES, "cd04_whole_video"])
def test_picks_are_those_of_the_release(name: str) -> None:
    case = load(name)
    features, image, text, relevance = floats(case, "features", "image_embeds", "text_embeds", "relevance")
    torch.testing.assert_close(text_relevance(image, text, sign=-1), relevance, rtol=0, atol=1e-4)
    unit = features / features.norm(dim=-1, keepdim=True)
    order = torch.from_numpy(case["pick_order"]).long()
    assert torch.equal(diverse_picks(unit, text_relevance(image, text, sign=-1), order.shape[1]), order)


@pytest.mark.parametrize("name", FRAMES)
def test_tokens_of_every_frame_are_those_of_the_release(name: str) -> None:
    case = load(name)
    (features,) = floats(case, "features")
    T, N, _ = features.shape
    for k in case["ks"].tolist():
        pruned = ByImageEmbeds(case, retention_ratio=k / N)(tokens_of(features))
        assert pruned.indices.view(T, k).remainder(N).tolist() == case[f"k{k}_indices"].tolist()
        assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])


def test_tokens_of_a_whole_video_are_those_of_the_release() -> None:
    case = load("cd04_whole_video")
    (features,) = floats(case, "features")
    H, W = case["grid"].tolist()
    video = tokens_of(features.view(-1, H * W, features.shape[-1]))
    for k in case["ks"].tolist():
        pruned = ByImageEmbeds(case, retention_ratio=k / features.shape[1], scope="video")(video)
        assert pruned.indices.tolist() == case[f"k{k}_indices"][0].tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("sign", ["negative", "positive"])
def test_against_determinants(seed: int, ratio: float, sign: str) -> None:
    tokens = video_tokens(seed, frames=4, grid=(4, 5), dim=24, scenes=1 + seed % 2)
    assert kept(tokens, ratio, sign=sign) == oracle(tokens, ratio, sign=-1 if sign == "negative" else 1)


def test_the_whole_video_as_one_set() -> None:
    tokens = video_tokens(1, frames=3, grid=(3, 4), dim=24)
    one = replace(tokens, features=tokens.features.reshape(1, 36, 24), grid=(1, 36), timestamps_s=torch.zeros(1),
                  saliency=None, keys=None, frame_embeds=None)  # fmt: skip
    assert kept(tokens, 0.25, scope="video") == oracle(one, 0.25)
    assert kept(tokens, 0.25, scope="video") != kept(tokens, 0.25)


def test_repeats_in_time_are_kept_once_in_the_scope_of_the_video() -> None:
    frame = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    tokens = tokens_of(frame.expand(4, -1, -1), torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    indices = kept(tokens, 0.2, scope="video")
    assert len(indices) == 13
    assert len({i % 16 for i in indices}) == 13
    assert max(indices) < 16  # ties go to the earlier token
    per_frame = torch.tensor(kept(tokens, 0.2)).view(4, 3)
    assert torch.equal(per_frame % 16, per_frame[:1].expand(4, -1))


@pytest.mark.parametrize("scope", ["frame", "video"])
def test_more_tokens_are_the_same_and_further_ones(scope: str) -> None:
    tokens = video_tokens(2, frames=4, grid=(4, 5), dim=24)
    sets = [set(kept(tokens, ratio, scope=scope)) for ratio in (0.05, 0.1, 0.25, 0.5, 0.8)]
    assert all(small < large for small, large in pairwise(sets))


def test_exact_budgets_share_out_what_rounding_leaves() -> None:
    """round(0.12 * 20) is 2 of each of 7 frames; the budget is 17."""
    tokens = video_tokens(3, frames=7, grid=(4, 5), dim=24)
    nominal, exact = (kept(tokens, 0.12, exact_budget=exact) for exact in (False, True))
    assert (len(nominal), len(exact)) == (14, 17)
    assert set(nominal) < set(exact)
    assert max(torch.tensor(exact).div(20, rounding_mode="floor").bincount(minlength=7).tolist()) == 3
    assert len(kept(tokens, 0.02, exact_budget=True)) == 3


@pytest.mark.parametrize("scope", ["frame", "video"])
def test_a_text_that_is_equally_near_to_all_leaves_diversity_alone(scope: str) -> None:
    """A channel of its own, the same for all tokens of one length, is all that the text has."""
    x = torch.randn(3, 15, 24, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x / x.norm(dim=-1, keepdim=True), torch.ones(3, 15, 1)], dim=-1)
    text = torch.zeros(1, 25)
    text[0, 24] = 1
    for sign in ("negative", "positive"):
        pruner = CdPruner(sign=sign, scope=scope, retention_ratio=0.4)
        assert torch.equal(pruner.relevance(tokens_of(x, text)), torch.ones(3, 15))
    found = kept(tokens_of(x, text), 0.4, scope=scope)
    sets = x.double().numpy().reshape((3, 15, 25) if scope == "frame" else (1, 45, 25))
    size = sets.shape[1]
    expected = [t * size + n for t, own in enumerate(sets)
                for n in sorted(picks_oracle(own, np.ones(size), round(0.4 * size)))]  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_beyond_the_rank_the_most_relevant_follow(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(2, 30, rank, generator=generator) @ torch.randn(rank, 24, generator=generator)
    tokens = tokens_of(x, torch.randn(3, 24, generator=generator))
    relevance = CdPruner().relevance(tokens)
    unit = x / x.norm(dim=-1, keepdim=True)
    picks = diverse_picks(unit, relevance, 20)
    assert [len(set(own)) for own in picks.tolist()] == [20, 20]
    for own, q in zip(picks.tolist(), relevance.tolist(), strict=True):
        rest = sorted(set(range(30)) - set(own[:rank]), key=lambda j: -q[j])
        assert own[rank:] == rest[: 20 - rank]


@pytest.mark.parametrize("factor", [1.0, 0.03, 1e-4])
def test_a_frame_that_is_far_from_the_question_is_picked_from_in_the_same_way(factor: float) -> None:
    """Its relevance is low beside that of other frames, and its tokens are much alike."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 24, generator=generator, dtype=torch.float64) + 10
    relevance = torch.rand(40, generator=generator, dtype=torch.float64) + 0.2
    expected = picks_oracle(x.numpy(), relevance.numpy(), 10)
    unit = (x / x.norm(dim=-1, keepdim=True)).float()
    assert diverse_picks(unit[None], factor * relevance.float()[None], 10).tolist() == [expected]


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_tokens_are_kept_in_order(value: float) -> None:
    tokens = tokens_of(torch.full((2, 10, 8), value), torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    assert kept(tokens, 0.3) == [0, 1, 2, 10, 11, 12]
    assert kept(tokens, 0.3, scope="video") == [0, 1, 2, 3, 4, 5]


def test_the_negated_text_reverses_relevance() -> None:
    tokens = video_tokens(4, frames=3, grid=(4, 4), dim=24)
    assert tokens.text is not None
    negated = replace(tokens, text=-tokens.text)
    q, reverse = (CdPruner().relevance(each) for each in (tokens, negated))
    torch.testing.assert_close(q + reverse, torch.ones_like(q), atol=1e-4, rtol=0)
    assert torch.equal(CdPruner(sign="negative").relevance(negated), q)
    assert kept(negated, 0.2, sign="negative") == kept(tokens, 0.2)
    assert kept(negated, 0.2) != kept(tokens, 0.2)


def test_the_weight_of_relevance() -> None:
    """0: diversity alone; near 1: the most relevant; between, as the formula has it."""
    tokens = video_tokens(5, frames=1, scenes=1, grid=(4, 5), dim=24)
    assert tokens.text is not None
    x, q = tokens.features[0].double().numpy(), relevance_oracle(tokens.features, tokens.text, 1)[0]
    for weight in (0.0, 0.3, 0.6):
        strength = weight / (2 * (1 - weight))
        expected = picks_oracle(x, np.exp(strength * (q - q.max())), 6)
        assert kept(tokens, 0.3, relevance_weight=weight) == sorted(expected)
    most_relevant = sorted(range(20), key=lambda j: -q[j])[:6]
    assert kept(tokens, 0.3, relevance_weight=0.99) == sorted(most_relevant)


def test_the_question_decides() -> None:
    tokens = video_tokens(6, frames=4, grid=(4, 5), dim=24)
    assert tokens.text is not None
    other = replace(tokens, text=torch.randn(7, 24, generator=torch.Generator().manual_seed(9)))
    assert kept(tokens, 0.2) != kept(other, 0.2)
    assert kept(replace(tokens, text=tokens.text * 3), 0.2) == kept(tokens, 0.2)
    assert kept(replace(tokens, text=tokens.text[[4, 2, 0, 1, 3]]), 0.2) == kept(tokens, 0.2)  # a mean over the text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_as_its_own_values_in_float32(dtype: torch.dtype) -> None:
    tokens = video_tokens(7, frames=3, grid=(4, 4), dim=32, dtype=dtype)
    assert tokens.text is not None
    assert kept(tokens, 0.25) == oracle(tokens_of(tokens.features.float(), tokens.text.float()), 0.25)


def test_frames_are_picked_from_together() -> None:
    """As many steps as tokens of one frame, however many frames there are."""
    tokens = video_tokens(8, frames=12, grid=(4, 5), dim=24)
    with mock.patch("tango.methods.cdpruner.products", wraps=torch.matmul) as steps:
        steps.side_effect = lambda a, b: a @ b.mT
        kept(tokens, 0.2)
    assert steps.call_count == 4


@pytest.mark.parametrize("where", ["features", "text"])
def test_values_that_are_not_finite_are_refused(where: str) -> None:
    tokens = video_tokens(0, frames=3, grid=(3, 3), dim=8)
    broken = getattr(tokens, where).clone()
    broken.flatten()[5] = math.nan
    with pytest.raises(NotFiniteError, match="features or text contain NaN"):
        kept(replace(tokens, **{where: broken}), 0.3)


def test_a_text_is_asked_for_by_name() -> None:
    with pytest.raises(MissingSignalError, match=r"cdpruner needs text \(Q, D\); these tokens carry none"):
        kept(replace(video_tokens(0), text=None), 0.3)


@pytest.mark.parametrize("options", [{"relevance_weight": 1.0}, {"relevance_weight": -0.1}, {"sign": "plus"},
                                     {"scope": "clip"}], ids=str)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        CdPruner(**options)
