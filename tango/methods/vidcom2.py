"""VidCom2: unusual frames get a larger budget, and unusual tokens are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.errors import OptionError
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.budget import exact_count, round_to_total
from tango.ops.checks import check_finite
from tango.ops.device import chunks, to_device

_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # variances of the Gaussian kernels


@register("vidcom2")
@dataclass(frozen=True, kw_only=True)
class VidCom2Pruner(Pruner):
    """Keep the tokens that differ most from the mean of video and frame, more of them in unusual frames; drop the rest.

    Tokens are compared on the channels that vary least over the video. A frame's share of the budget grows with the
    distance of its tokens from the video's mean token.

    Source: section 3 of arXiv:2505.14454 and the authors' code.
    Deviation: computes in float32 whatever the model's dtype. The release computes in the model's, which decides
    otherwise: on the same inputs it shares 70-96 % of its own float32 choice in float16, and 12-82 % in bfloat16
    (intersection over union). Ratio 1 keeps all tokens (the release drops some). On LLaVA-Video the release keeps the
    newlines of all rows, as `keep_newlines` does, but puts those of a frame after its tokens; here they end their rows.
    Example:
        >>> len(tango.VidCom2Pruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    temperature: float = 0.01  # of the softmax over frames (release)
    channel_ratio: float = 0.5  # share of the channels that are compared, those of least variance (release)

    budget_rule: ClassVar[str] = "r T N, up to rounding per frame; less where a frame is full"
    paper: ClassVar[Paper] = Paper(
        title="Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
        venue="EMNLP 2025",
        url="https://arxiv.org/abs/2505.14454",
        licence="Apache-2.0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise OptionError(f"temperature must be positive, got {self.temperature!r}")
        if not 0 < self.channel_ratio <= 1:
            raise OptionError(f"channel_ratio must lie in (0, 1], got {self.channel_ratio!r}")

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x = tokens.features
        T, N, D = x.shape
        with torch.no_grad():
            variance = _channel_variance(x)
            channels = variance.sort(stable=True).indices[: max(1, int(D * self.channel_ratio))].sort().values
            to_video, to_frame = _similarity(x, channels)
            table = torch.cat([to_video.mean(1), variance.sum()[None]]).cpu()  # the only synchronisation
            check_finite(table, "features")
            counts = self._counts(-table[:T].double().numpy(), N)
            order = (to_video + to_frame).sort(dim=1, stable=True).indices  # the least similar first
            flat = order + torch.arange(T, device=x.device)[:, None] * N  # (T, N): frame * N + position
            best = np.concatenate([t * N + np.arange(count) for t, count in enumerate(counts)])
            indices = flat.flatten().index_select(0, to_device(best, x.device)).sort().values
        return PrunedTokens(features=x.flatten(0, 1).index_select(0, indices), indices=indices)

    def _counts(self, importance: NDArray[np.float64], N: int) -> list[int]:
        """The number of tokens to keep of each frame."""
        T = len(importance)
        weight = np.exp((importance - importance.max()) / self.temperature)
        scale = np.minimum(1.0, self.retention_ratio * (1 + (weight / weight.sum() - 1 / T)))
        shares = (scale * N).tolist()
        if self.exact_budget:
            return round_to_total(shares, exact_count(T * N, self.retention_ratio), N)
        return [max(1, round(share)) for share in shares]


def _channel_variance(x: Float[Tensor, "T N D"]) -> Float[Tensor, "D"]:
    """Variance of each channel over all tokens, in float32."""
    T, N, D = x.shape
    mean, variance = torch.zeros(D, device=x.device), torch.zeros(D, device=x.device)
    for chunk in chunks(T, N * D * 4, x.device):
        mean += x[chunk].float().sum(dim=(0, 1))
    mean /= T * N
    for chunk in chunks(T, N * D * 4, x.device):
        variance += (x[chunk].float() - mean).square_().sum(dim=(0, 1))
    return variance / (T * N)


def _similarity(
    x: Float[Tensor, "T N D"], channels: Int[Tensor, "channels"]
) -> tuple[Float[Tensor, "T N"], Float[Tensor, "T N"]]:
    """Similarity of every token, at unit length, to the mean token of the video and to the mean token of its frame."""
    T, N, _ = x.shape
    cuts = list(chunks(T, N * len(channels) * 4, x.device))

    def unit(chunk: slice) -> Tensor:
        return F.normalize(x[chunk].index_select(2, channels).float(), dim=-1)

    frame_means = torch.cat([unit(chunk).mean(1) for chunk in cuts])
    video_mean = frame_means.mean(0)
    to_video, to_frame = [], []
    for chunk in cuts:
        rows = unit(chunk)
        to_video.append(_gaussians((rows - video_mean).square_().sum(-1)))
        to_frame.append(_gaussians((rows - frame_means[chunk, None]).square_().sum(-1)))
    return torch.cat(to_video), torch.cat(to_frame)


def _gaussians(squared_distance: Float[Tensor, "T N"]) -> Float[Tensor, "T N"]:
    """Sum of Gaussian kernels of several widths."""
    return torch.stack([(squared_distance / (-2 * width)).exp() for width in _WIDTHS]).sum(0)
