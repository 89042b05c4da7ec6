"""Whether clusters of similar tokens lie in one piece (Figure 2)."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

_AFTER = [shift for shift in product((-1, 0, 1), repeat=3) if shift > (0, 0, 0)]  # in time, row and column


def connected_parts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the connected parts of equal labels (T, H, W): each token gets the lowest index of its part.

    Tokens are neighbours if they differ by at most one in time, row and column.

    Example:
        >>> connected_parts(np.array([[[7, 7, 4, 7]]])).tolist()
        [[[0, 0, 2, 3]]]
    """
    index = np.arange(labels.size).reshape(labels.shape)
    pairs = []
    for shift in _AFTER:
        here = tuple(slice(max(0, -step), min(n, n - step)) for step, n in zip(shift, labels.shape, strict=True))
        there = tuple(slice(max(0, step), min(n, n + step)) for step, n in zip(shift, labels.shape, strict=True))
        alike = labels[here] == labels[there]
        pairs.append(np.stack([index[here][alike], index[there][alike]]))
    a, b = np.concatenate(pairs, axis=1)
    root = index.ravel().copy()
    while (root[a] != root[b]).any():
        low = np.minimum(root[a], root[b])
        np.minimum.at(root, root[a], low)
        np.minimum.at(root, root[b], low)
        while (root != root[root]).any():
            root = root[root]
    return root.reshape(labels.shape)


def fragmentation(labels: NDArray[np.int64]) -> tuple[float, float]:
    """How a video's clusters (T, H, W) lie, on average over those of two tokens and more.

    Returns:
        The share of a cluster that is in its largest connected part, and its number of parts; without clusters, 1.

    Example:
        >>> fragmentation(np.array([[[7, 7, 4, 7, 5]]]))
        (0.666..., 2.0)
    """
    parts, sizes = np.unique(connected_parts(labels), return_counts=True)
    owner = labels.ravel()[parts]  # a part is numbered by one of its tokens
    names, which = np.unique(owner, return_inverse=True)
    total = np.bincount(which, weights=sizes)
    largest = np.zeros(len(names))
    np.maximum.at(largest, which, sizes)
    several = total >= 2
    if not several.any():
        return 1.0, 1.0
    return float((largest / total)[several].mean()), float(np.bincount(which)[several].mean())
