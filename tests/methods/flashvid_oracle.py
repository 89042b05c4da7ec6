"""FlashVID written out in loops, in double precision: the rules, and nothing of the implementation."""

from __future__ import annotations

import math

from numpy.typing import NDArray

from tango.containers import VisualTokens
from tango.methods import FlashVidPruner


def dot(a: NDArray, b: NDArray) -> float:
    return float(sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)))


def cosine(a: NDArray, b: NDArray) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def oracle_cuts(x: NDArray, tau: float, c: int) -> list[list[int]]:
    """The frames of each segment."""
    T = len(x)
    near = [cosine(x[t].mean(0), x[t + 1].mean(0)) for t in range(T - 1)]
    cuts = {t for t in range(T - 1) if near[t] < tau} | set(sorted(range(T - 1), key=lambda t: near[t])[: c - 1])
    segments: list[list[int]] = [[0]]
    for t in range(1, T):
        if t - 1 in cuts:
            segments.append([])
        segments[-1].append(t)
    return segments


def oracle_picks(frame: NDArray, weight: list[float], k: int, again: bool) -> list[int]:
    N = len(frame)
    far = [[(1 - cosine(frame[i], frame[j])) * weight[j] if i != j else 0.0 for j in range(N)] for i in range(N)]
    picks: list[int] = []
    while len(picks) < k:
        if picks:
            worth = [min(far[i][j] for i in picks) for j in range(N)]
        else:
            worth = [sorted(far[i][j] for i in range(N))[1] for j in range(N)]
        open_ = [j for j in range(N) if again or j not in picks]
        picks.append(max(open_, key=lambda j: worth[j]))
    return picks


def oracle_clusters(rows: list[NDArray], c: int) -> list[int]:
    """For each row the row of its centre."""
    n, k = len(rows), min(c, 7)
    far = [[math.sqrt(dot(a - b, a - b) / len(a)) for b in rows] for a in rows]
    density = [math.exp(-sum(d * d for d in sorted(line)[:k]) / k) for line in far]
    denser = [[j for j in range(n) if (density[j], -j) > (density[i], -i)] for i in range(n)]
    delta = [min((far[i][j] for j in denser[i]), default=math.inf) for i in range(n)]
    centres = sorted(sorted(range(n), key=lambda i: (-density[i] * delta[i], i))[:c])
    return [i if i in centres else min(centres, key=lambda j: far[i][j]) for i in range(n)]


def oracle_links(
    x: NDArray, frames: list[int], free: list[list[int]], threshold: float, budget: int
) -> dict[tuple[int, int], tuple[int, int]]:
    """Token (t, n) -> its parent (t - 1, n')."""
    links: dict[tuple[int, int], tuple[tuple[int, int], float]] = {}
    for t in frames[1:]:
        for n in free[t]:
            found = [(cosine(x[t, n], x[t - 1, p]), p) for p in free[t - 1]]
            if found:
                best = max(found, key=lambda pair: pair[0])
                links[t, n] = ((t - 1, best[1]), best[0])
    kept = {token: link for token, link in links.items() if link[1] > threshold}
    most = len(frames) * x.shape[1] - budget
    if len(kept) > most:
        limit = sorted((value for _, value in links.values()), reverse=True)[most - 1] if most else math.inf
        kept = {token: link for token, link in links.items() if link[1] > limit}
    return {token: parent for token, (parent, _) in kept.items()}


def oracle(tokens: VisualTokens, pruner: FlashVidPruner) -> list[tuple[int, NDArray, list[int]]]:
    """Kept rows in the release's order: position, features, and the tokens that are averaged in it."""
    x = tokens.features.double().numpy()
    saliency = tokens.saliency.double().numpy()
    T, N, _ = x.shape
    b = [math.ceil(N * pruner.retention_ratio - 1e-6)] * T
    if pruner.exact_budget:
        total = round(T * N * pruner.retention_ratio)
        b = [total // T + (t < total % T) for t in range(T)]
    A = [math.ceil(pruner.alpha * count - 1e-6) for count in b]
    kept: list[tuple[int, NDArray, list[int]]] = []
    for frames in oracle_cuts(x, pruner.segment_threshold, pruner.min_segments):
        mean = x[frames].mean((0, 1))
        free = [list(range(N)) for _ in range(T)]
        for t in frames:
            weight = [
                float(s) * (dot(x[t, n], mean) if pruner.event_relevance else 1) for n, s in enumerate(saliency[t])
            ]
            picks = oracle_picks(x[t], weight, A[t], pruner.released and pruner.event_relevance)
            kept += [(t * N + n, x[t, n], [t * N + n]) for n in picks]
            if not (pruner.released and len(frames) == 1):
                free[t] = [n for n in range(N) if n not in picks]
        parent = oracle_links(x, frames, free, pruner.merge_threshold, sum(b[t] for t in frames))
        trees: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for t in frames:
            for n in free[t]:
                root = (t, n)
                while root in parent:
                    root = parent[root]
                trees.setdefault(root, []).append((t, n))
        sizes = [sum(root[0] == t for root in trees) for t in frames]
        room = sum(b[t] - A[t] for t in frames)
        counts = [min(size, -(-size * room // max(1, sum(sizes)))) for size in sizes]
        if pruner.exact_budget:
            shares = [room * size / max(1, sum(sizes)) for size in sizes]
            counts = [math.floor(share) for share in shares]
            by_rest = sorted(range(len(sizes)), key=lambda i: (-round(shares[i] - counts[i], 9), i))
            for i in by_rest[: room - sum(counts)]:
                counts[i] += 1
        for t, count in zip(frames, counts, strict=True):
            roots = sorted(root for root in trees if root[0] == t)
            if not count:
                continue
            divisors = {root: len(trees[root]) for root in roots}
            if pruner.released:
                divisors = {root: 1 + sum(p == root for p in parent.values()) for root in roots}
            rows = [sum(x[token] for token in trees[root]) / divisors[root] for root in roots]
            centre = oracle_clusters(rows, count)
            for i in sorted(set(centre)):
                members = [j for j in range(len(roots)) if centre[j] == i]
                inside = [a * N + c for j in members for a, c in trees[roots[j]]]
                kept.append((t * N + roots[i][1], sum(rows[j] for j in members) / len(members), inside))
    return sorted(kept, key=lambda row: row[0])
