"""Cutting a video into runs of similar frames.

The decisions are scalar and sequential, so they run in numpy on the host, on the small (T-1, N) table of similarities.
On a GPU the same scan would synchronise once per pair of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tango.annotations import Float, Int
from tango.ops.device import chunks


def default_threshold(retention_ratio: float) -> float:
    """Similarity above which frames belong to one segment.

    Source: section 5.1 of arXiv:2604.09547, and HoliTom's release.
    """
    return 0.65 if retention_ratio <= 0.1 else 0.8


def adjacent_similarity(x: Float[Tensor, "T N D"]) -> tuple[Float[Tensor, "T-1 N"], Float[Tensor, "T N"]]:
    """Compare every token with the token at the same position of the next frame.

    Returns:
        The cosine similarities, and 1 / L2 norm of every token; both float32.
    """
    T, N, D = x.shape
    dots = torch.empty(T - 1, N, device=x.device)
    norms = torch.empty(T, N, device=x.device)
    space = None  # where products are written; the float32 copy of a chunk may be overwritten
    for chunk in chunks(T, N * D * 4, x.device):
        a, b = x[chunk].float(), x[chunk.start + 1 : chunk.stop + 1]
        torch.linalg.vector_norm(a, dim=-1, out=norms[chunk])
        if x.dtype != torch.float32:
            space = a
        elif space is None:
            space = torch.empty_like(a)
        torch.sum(torch.mul(a[: len(b)], b, out=space[: len(b)]), dim=-1, out=dots[chunk][: len(b)])
    inverse_norms = norms.clamp_min_(1e-12).reciprocal_()
    return dots.mul_(inverse_norms[:-1]).mul_(inverse_norms[1:]), inverse_norms


def segment_by_static_tokens(similarity: NDArray[np.float32], threshold: float, *, max_frames: int = 1024) -> list[int]:
    """Cut a video so that the most static tokens can be merged.

    `similarity` is (T-1, N). A token is static in a segment if its similarities between adjacent frames there all
    exceed `threshold`; c static tokens in n frames save c * (n - 1) tokens. Ties: the shorter last segment.

    Returns:
        Frames per segment, in order; they add up to T.
    Source: section 4.1, eq. 2-3 of arXiv:2604.09547, after HoliTom (arXiv:2505.21334).
    """
    static = similarity > threshold
    num_edges, _ = static.shape
    counts = _static_counts(static)
    best = np.zeros(num_edges + 2, dtype=np.int64)  # best[e]: most tokens saved within the first e frames
    last = np.ones(num_edges + 2, dtype=np.int64)  # frames in the last segment of that optimum
    lengths = np.arange(num_edges + 1)  # a segment of length + 1 frames spans `length` edges
    for end in range(2, num_edges + 2):
        span = min(end, max_frames)
        gains = counts[end - 2, :span] * lengths[:span]
        total = best[end - span : end][::-1] + gains
        choice = int(total.argmax())  # the first maximum: the shortest segment
        best[end], last[end] = total[choice], choice + 1
    sizes = []
    end = num_edges + 1
    while end > 0:
        sizes.append(int(last[end]))
        end -= sizes[-1]
    return sizes[::-1]


def _static_counts(static: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`counts[e, w]`: how many tokens are static on all of the last w edges up to and including edge e."""
    num_edges, _ = static.shape
    edge = np.arange(num_edges)[:, None]
    run = edge - np.maximum.accumulate(np.where(static, -1, edge), axis=0)  # static edges in a row, ending here
    width = num_edges + 1
    histogram = np.bincount((run + edge * width).ravel(), minlength=num_edges * width).reshape(num_edges, width)
    return histogram[:, ::-1].cumsum(axis=1)[:, ::-1]


def segment_by_cuts(similarity: NDArray[np.float32], threshold: float, *, min_segments: int = 8) -> list[int]:
    """Cut a video at its weakest frame-to-frame similarities.

    Cuts fall where one of the (T-1,) similarities is below `threshold`, and always at the `min_segments - 1` smallest
    ones. Ties: the earlier frame.

    Returns:
        Frames per segment, in order; they add up to T.
    Source: DySeg of FastVID (arXiv:2503.11187), the alternative that the Tango release offers.
    Deviation: videos shorter than `min_segments` frames are cut into single frames instead of failing.
    """
    cut = similarity < threshold
    cut[np.argsort(similarity, kind="stable")[: min_segments - 1]] = True
    bounds = np.concatenate([[0], np.flatnonzero(cut) + 1, [len(similarity) + 1]])
    return np.diff(bounds).tolist()


def segment_numbers(similarity: Float[Tensor, "pairs"], threshold: float, *, min_segments: int = 8) -> Int[Tensor, "T"]:
    """The number of each frame's segment, as `segment_by_cuts` cuts them, without a look at the similarities."""
    weakest = similarity.argsort(stable=True)[: min_segments - 1]
    cut = (similarity < threshold).index_fill(0, weakest, True)
    return F.pad(cut.cumsum(0), (1, 0))


def static_positions(lengths: Sequence[int], static: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """For every segment, which positions never change between its adjacent frames, (N,); none in a single frame.

    Args:
        lengths: frames per segment.
        static: which positions do not change from each frame to the next, (T-1, N).
    """
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    return [
        np.logical_and(static[start : start + length - 1].all(axis=0), length > 1)
        for start, length in zip(starts, lengths, strict=True)
    ]


def segment_by_labels(labels: Sequence[float]) -> list[int]:
    """Cut a video into runs of frames with the same label, after mending scattered labels.

    The longest run of a label holds (all its longest runs if several tie), provided that it has more than one frame.
    From left to right, what lies between such runs joins the longer of its neighbours as they are by then; the left one
    if they are equally long. Without any run of two frames, the whole video is one segment.

    Returns:
        Frames per segment, in order; they add up to T.
    Source: refinement of clusters of frames in PruneVid's release (arXiv:2412.16117).
    """
    runs = [(label, len(list(frames))) for label, frames in groupby(labels)]
    longest: dict[float, int] = {}
    for label, length in runs:
        longest[label] = max(length, longest.get(label, 0))
    held = [label if length == longest[label] > 1 else None for label, length in runs]
    joined = groupby(zip(held, runs, strict=True), key=itemgetter(0))
    stretches = [(label, sum(length for _, (_, length) in group)) for label, group in joined]
    segments: list[tuple[float | None, int]] = []
    for (own_label, length), right in zip(stretches, [*stretches[1:], (None, 0)], strict=True):
        left = segments[-1] if segments else (None, 0)
        neighbour = left[0] if left[1] >= right[1] else right[0]
        chosen = neighbour if own_label is None else own_label
        if segments and chosen == left[0]:
            segments[-1] = (chosen, left[1] + length)
        else:
            segments.append((chosen, length))
    return [length for _, length in segments]
