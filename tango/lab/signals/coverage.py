"""How much of a video's content is left, and whether it is left near its time: a diagnostic, not a score.

Coverage hardly tells methods from random choice, and low coverage in time is not known to cost accuracy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tango.annotations import Float
from tango.containers import PrunedTokens, VisualTokens
from tango.ops.similarity import products, unit_rows

_MOST_FRAMES = 64  # whose tokens are looked up among all that is kept, so that the work grows with the frames alone


def coverage(tokens: VisualTokens, pruned: PrunedTokens, *, within: int | None = None) -> float:
    """The cosine of a token to the most similar of the kept ones, on average; 0 where there is none or it is negative.

    It is measured on up to 64 frames, evenly spaced.

    Args:
        within: look only at what is kept in frames at most so far away; None: anywhere in the video.
    Example:
        >>> round(coverage(tokens, tango.TangoPruner(retention_ratio=1)(tokens)), 3)
        1.0
    """
    T, N, _ = tokens.features.shape
    kept, frame = unit_rows(pruned.features), pruned.indices.cpu() // N
    picked = torch.linspace(0, T - 1, min(T, _MOST_FRAMES)).round().long().tolist()
    found: list[Float[Tensor, "N"]] = []
    for t in picked:
        first, last = (0, T - 1) if within is None else (t - within, t + within)
        bounds = torch.searchsorted(frame, torch.tensor([first, last + 1])).tolist()
        rows = kept[bounds[0] : bounds[1]]
        best = products(unit_rows(tokens.features[t]), rows).amax(1) if len(rows) else kept.new_zeros(N)
        found.append(best.clamp_min(0))
    return float(torch.cat(found).mean())
