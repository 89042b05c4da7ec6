"""CDPruner: tokens that matter to the question and differ from each other, picked one by one; query-aware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.methods.base import Limits, Pruner
from tango.methods.registry import register
from tango.ops.budget import apportion, exact_count
from tango.ops.checks import check_finite
from tango.ops.device import to_device
from tango.ops.similarity import products, unit_cosines, unit_rows

_ALIKE = 1e-5  # a smaller range of mean cosines is that of their rounding
_LEAST = 1e-6  # relevance of the least relevant token, in units of the range (release)
_NOTHING_NEW = 2e-5  # of the kernel's largest entry: what a candidate adds once the picks span it, up to rounding


@register("cdpruner")
@dataclass(frozen=True, kw_only=True)
class CdPruner(Pruner):
    """Keep the tokens that are relevant to the question and differ from each other, picked one by one; drop the rest.

    What is kept depends on the question, so it cannot be reused for another one: `tango.encode` refuses this method. In
    a conversation the text beside the video in its own turn decides, and later questions see the tokens it chose. The
    picks are the greedy mode of a determinantal point process, whose kernel is relevance times cosine times relevance.

    Source: arXiv:2506.10967 and its release, which prunes images with a CLIP tower.
    Deviation: relevance is measured between features and the LLM's input embeddings of the question, as these models
    have no CLIP text tower (a subclass may override `relevance`), and near tokens are the relevant ones: in CLIP the
    cosine of patch and text is inverted, and the release negates it. No token is picked twice; once no candidate adds
    anything, the most relevant follow. A constant relevance counts as 1 everywhere. Cosines are computed in float32
    whatever the model's dtype, and rounded to multiples of 2**-18.
    Example:
        >>> len(tango.CdPruner(retention_ratio=0.25)(tokens).indices)
        72
    """

    # Pick from every frame alone, or from all tokens of the video at once, which takes T cubed times as long.
    scope: Literal["frame", "video"] = "frame"
    sign: Literal["positive", "negative"] = "positive"  # of the cosine with the text (release: negative, for CLIP)
    relevance_weight: float | None = None  # None: relevance q as it is (release); w: exp(w q / (2 (1 - w)))

    needs: ClassVar[Signal] = Signal.TEXT
    limits: ClassVar[Limits] = {"relevance_weight": (0, 0.99)}
    budget_rule: ClassVar[str] = "round(r N) per frame; of the whole video with scope=video"
    paper: ClassVar[Paper] = Paper(
        title="Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2506.10967",
        licence="Apache-2.0",
    )

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, D = tokens.features.shape
        x = tokens.features.flatten(0, 1)
        with torch.no_grad():
            unit, relevance = unit_rows(tokens.features), self._weighted(self.relevance(tokens))
            check_finite(unit.sum() + relevance.sum(), "features or text")
            if self.scope == "video":
                unit, relevance = unit.view(1, T * N, D), relevance.view(1, T * N)
            counts = self._counts(T, N)
            indices = _flat(diverse_picks(unit, relevance, max(counts)), counts, unit.shape[1])
        return PrunedTokens(features=x.index_select(0, indices), indices=indices)

    def relevance(self, tokens: VisualTokens) -> Float[Tensor, "T N"]:
        """How relevant each token is to the text, from about 0 to 1 over the whole video."""
        assert tokens.text is not None  # the caller checked `needs`
        return text_relevance(tokens.features, tokens.text, sign=-1 if self.sign == "negative" else 1)

    def _weighted(self, relevance: Float[Tensor, "T N"]) -> Float[Tensor, "T N"]:
        """Relevance as it enters the kernel; its exponential is at most 1, so that nothing overflows."""
        if self.relevance_weight is None:
            return relevance
        strength = self.relevance_weight / (2 * (1 - self.relevance_weight))
        return ((relevance - relevance.amax()) * strength).exp()

    def _counts(self, T: int, N: int) -> list[int]:
        """Tokens to keep of each set: of each frame, or of the video."""
        total = exact_count(T * N, self.retention_ratio)
        if self.scope == "video":
            return [total]
        return apportion(total, [N] * T) if self.exact_budget else [exact_count(N, self.retention_ratio)] * T


def text_relevance(x: Float[Tensor, "T N P"], text: Float[Tensor, "Q P"], *, sign: int) -> Float[Tensor, "T N"]:
    """Mean cosine of each token with the rows of the text, times `sign`, moved to the range from 0 to 1.

    The smallest is 1e-6 above 0, in the range's unit. If all are alike, all are 1.
    """
    toward = unit_rows(text).mean(0, keepdim=True)  # the mean of cosines is the product with the mean direction
    mean_cosine = sign * unit_cosines(unit_rows(x.flatten(0, 1)), toward).view(x.shape[:2])
    low, high = mean_cosine.aminmax()
    span = high - low
    return torch.where(span <= _ALIKE, 1, (mean_cosine - low + _LEAST) / span)  # NaN stays NaN


def diverse_picks(unit: Float[Tensor, "B M D"], relevance: Float[Tensor, "B M"], k: int) -> Int[Tensor, "B k"]:
    """Pick k rows of every set, in this order: the greedy mode of a determinantal point process.

    Each pick adds most to the determinant of the kernel relevance times cosine times relevance. Rows of the kernel are
    computed when they are needed, so that memory grows with k alone. The host never waits for the device.
    """
    B, M, _ = unit.shape
    # A common factor of a set changes no pick; with 1 as the largest, gains can be held against rounding errors.
    relevance = relevance / relevance.amax(dim=1, keepdim=True).clamp_min(torch.finfo(relevance.dtype).tiny)
    gain = relevance.square()  # what each candidate adds to the determinant: its kernel entry, less what picks explain
    taken = torch.zeros(B, M, dtype=torch.bool, device=unit.device)
    explained = unit.new_zeros(B, k, M)  # rows of the kernel's Cholesky factor
    picks = []
    for step in range(k):
        some_add = gain.amax(dim=1, keepdim=True) > _NOTHING_NEW
        pick = torch.where(some_add, gain, relevance.masked_fill(taken, -1)).argmax(dim=1, keepdim=True)  # (B, 1)
        row = unit_cosines(unit.gather(1, pick[..., None].expand(-1, -1, unit.shape[2])), unit)[:, 0]
        row = row * relevance * relevance.gather(1, pick)
        before = explained[:, :step]  # (B, step, M)
        row = row - products(before.gather(2, pick[:, None].expand(-1, step, -1)).mT, before.mT)[:, 0]
        row = torch.where(some_add, row / gain.gather(1, pick).clamp_min(_NOTHING_NEW).sqrt(), 0)
        explained[:, step] = row
        taken = taken.scatter(1, pick, True)
        gain = (gain - row.square()).clamp_min(0).masked_fill(taken, -1)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def _flat(picks: Int[Tensor, "B k"], counts: list[int], M: int) -> Int[Tensor, "K"]:
    """Ascending flat indices of the first `counts[b]` picks of every set of M tokens."""
    B, k = picks.shape
    flat = picks + torch.arange(B, device=picks.device)[:, None] * M
    wanted = [b * k + i for b, count in enumerate(counts) for i in range(count)]
    return flat.flatten().index_select(0, to_device(wanted, picks.device)).sort().values
