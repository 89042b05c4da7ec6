"""Attention sinks: positions that attract attention whatever the video shows (appendix B.3 of arXiv:2604.09547)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tango.annotations import Bool, Float
from tango.errors import OptionError

TOP = 0.05  # share of a frame's tokens among which a sink is ...
FRAMES = 0.8  # ... in this share of a video's frames ...
VIDEOS = 0.8  # ... and of the videos,
LEAST = 3  # of which there are so many
HEIGHT = 2.0  # in the median frame, a sink has this many times the mean attention
CHANCE = 0.01  # most positions that may be expected to pass by chance


@dataclass(frozen=True, kw_only=True)
class Sink:
    """A position, with how often it is among the highest and how high it is then."""

    position: int  # in [0, N), row-major
    videos: int  # in how many videos it is one of the highest
    frames: float  # share of all frames in which it is, every video counting alike
    height: float  # attention in the median frame, in means of its frame; the median over the videos


@dataclass(frozen=True, kw_only=True)
class SinkSearch:
    """What was found in several videos, and on which evidence."""

    sinks: tuple[Sink, ...]  # most frequent first
    nearest: Sink  # the most frequent position, a sink or not
    num_videos: int
    top: int  # a sink is among so many tokens of a frame
    least_videos: int  # and that in so many videos; more than there are: these videos are too few to tell
    chance: float  # positions that would be expected to pass by chance

    @property
    def decides(self) -> bool:
        """Whether so many videos can tell a sink from chance."""
        return self.least_videos <= self.num_videos


def find_sinks(saliencies: Sequence[Float[Tensor, "T N"]]) -> SinkSearch:
    """Find the positions that are among the highest of nearly every frame, in nearly every video.

    Frames of one video look alike, so videos count, not frames. Where every video has c positions of its own that stay
    among the highest, a position is among them in so many videos by chance with a probability that follows from c / N.
    The least number of videos is three, or more until fewer than 0.01 such positions are expected. Videos that share a
    scene, or that all keep their subject in one place, are no evidence.

    Args:
        saliencies: of each video, with the same grid of N tokens; not yet masked.
    Raises:
        OptionError: no video, or videos of different grids.
    Example:
        >>> planted = [torch.rand(8, 100, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        >>> for saliency in planted:
        ...     saliency[:, 42] += 9
        >>> [sink.position for sink in find_sinks(planted).sinks]
        [42]
    """
    widths = {saliency.shape[1] for saliency in saliencies}
    if len(widths) != 1:
        raise OptionError(f"sinks are looked for in videos of one grid, got tokens per frame {sorted(widths)}")
    (N,) = widths
    top, num_videos = max(2, round(TOP * N)), len(saliencies)
    frames, height = (torch.stack(part).cpu() for part in zip(*(_evidence(s, top) for s in saliencies), strict=True))
    stays: Bool[Tensor, "videos N"] = (frames >= FRAMES) & (height >= HEIGHT)
    votes, rate = stays.sum(0), float(stays.sum(1).max()) / N
    least = max(LEAST, math.ceil(VIDEOS * num_videos))
    while (chance := N * _tail(num_videos, least, rate)) > CHANCE and least <= num_videos:
        least += 1
    found = [
        Sink(position=n, videos=int(votes[n]), frames=float(frames[:, n].mean()), height=float(height[:, n].median()))
        for n in frames.mean(0).sort(descending=True, stable=True).indices.tolist()
    ]
    return SinkSearch(
        sinks=tuple(sink for sink in found if sink.videos >= least),
        nearest=found[0],
        num_videos=num_videos,
        top=top,
        least_videos=least,
        chance=chance,
    )


def _evidence(saliency: Float[Tensor, "T N"], top: int) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Of each position: in which share of the frames it is among the `top` highest; its attention in the median frame,
    in means of the frame."""
    saliency = saliency.float()
    mean = saliency.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    among = torch.zeros_like(saliency).scatter_(1, saliency.topk(top, dim=1).indices, 1.0)
    return among.mean(0), (saliency / mean).median(0).values


def _tail(tries: int, least: int, rate: float) -> float:
    """The probability of at least `least` successes."""
    return sum(math.comb(tries, k) * rate**k * (1 - rate) ** (tries - k) for k in range(least, tries + 1))
