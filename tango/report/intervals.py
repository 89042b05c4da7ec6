"""Accuracies with confidence intervals. Questions about one clip are not independent, so whole clips are resampled.

All runs of a benchmark that cover the same clips are resampled with the same draws. A difference or a ratio of two runs
is computed draw by draw, so its interval is that of paired measurements.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tango.errors import TangoError
from tango.report.benchmarks import Benchmark
from tango.report.results import Scored

NUM_DRAWS = 2000
_DRAWS_AT_ONCE = 250


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number in percent, its values in other draws of clips, and the counts behind it."""

    value: float
    draws: NDArray[np.float64]
    num_questions: int
    num_clips: int
    is_share: bool = False  # the share of right answers; else a mean, a ratio or a difference

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval by the percentile bootstrap; None if there is only one clip.

        Draws that all agree, as when all answers are right, say nothing about clips that were not drawn. A share of
        right answers then gets Wilson's interval, with clips in place of independent trials.
        """
        draws = self.draws[np.isfinite(self.draws)]
        if self.num_clips < 2 or not len(draws):
            return None
        if self.is_share and np.ptp(draws) == 0:
            return wilson(self.value, self.num_clips)
        return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def wilson(percent: float, num_trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of independent trials, in percent.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Example:
        >>> low, high = wilson(100.0, 10)
        >>> f"{low:.1f} to {high:.1f}"
        '72.2 to 100.0'
    """
    share, z = percent / 100, 1.959964
    shrink = 1 + z * z / num_trials
    middle = share + z * z / (2 * num_trials)
    margin = z * math.sqrt(share * (1 - share) / num_trials + (z / (2 * num_trials)) ** 2)
    return max(0.0, 100 * (middle - margin) / shrink), min(100.0, 100 * (middle + margin) / shrink)


def accuracies(questions: Sequence[Scored], benchmark: Benchmark, *, seed: int = 0) -> dict[str | None, Estimate]:
    """The accuracy over all questions, under the key None, and that of each group, under its name.

    A question whose clip is not recorded counts as a clip of its own.
    """
    clips, clip = np.unique([_clip(question) for question in questions], return_inverse=True)
    groups = sorted({question.group for question in questions if question.group is not None})
    column = {group: g for g, group in enumerate(groups)}
    # Questions and right answers: a row for each clip, a column for each group, the last for questions without a group.
    asked, right = np.zeros((2, len(clips), len(groups) + 1))
    for c, question in zip(clip, questions, strict=True):
        g = len(groups) if question.group is None else column[question.group]
        asked[c, g] += 1
        right[c, g] += question.correct
    rng = np.random.default_rng([seed, zlib.crc32(benchmark.name.encode())])
    drawn = [_draw(rng, asked, right) for _ in range(0, NUM_DRAWS, _DRAWS_AT_ONCE)]
    drawn_asked, drawn_right = (np.concatenate(parts) for parts in zip(*drawn, strict=True))

    of_groups = _share(right.sum(0), asked.sum(0)), _share(drawn_right, drawn_asked)
    if benchmark.mean_of_groups and groups:
        value, draws = (_mean(share[..., : len(groups)]) for share in of_groups)
    else:
        value, draws = _share(right.sum(), asked.sum()), _share(drawn_right.sum(1), drawn_asked.sum(1))
    found: dict[str | None, Estimate] = {None: Estimate(float(value), draws, len(questions), len(clips), is_share=True)}
    for group, g in column.items():
        counts = int(asked[:, g].sum()), int((asked[:, g] > 0).sum())
        found[group] = Estimate(float(of_groups[0][g]), of_groups[1][:, g], *counts, is_share=True)
    return found


def _clip(question: Scored) -> str:
    return f"question {question.question_id}" if question.video_id is None else question.video_id


def _draw(
    rng: np.random.Generator, asked: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum over as many clips as there are, drawn with replacement; one row for each of `_DRAWS_AT_ONCE` draws."""
    num_clips = len(asked)
    chosen = rng.integers(num_clips, size=(_DRAWS_AT_ONCE, num_clips))
    times = np.stack([np.bincount(row, minlength=num_clips) for row in chosen]).astype(np.float64)
    return times @ asked, times @ right


def _share(right: NDArray[np.float64] | float, asked: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The share of right answers in percent; NaN where nothing was asked."""
    with np.errstate(invalid="ignore"):
        return 100 * np.divide(right, asked)


def _mean(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the groups that were drawn; a draw of few clips may leave a group out."""
    present = np.isfinite(shares)
    return np.where(present, shares, 0).sum(-1) / present.sum(-1)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over benchmarks, all with the same weight."""
    if len(estimates) == 1:
        return estimates[0]
    return Estimate(
        math.fsum(estimate.value for estimate in estimates) / len(estimates),
        np.mean([estimate.draws for estimate in estimates], axis=0),
        sum(estimate.num_questions for estimate in estimates),
        sum(estimate.num_clips for estimate in estimates),
    )


def ratio(ours: Estimate, full: Estimate) -> Estimate:
    """`ours` in percent of `full`; both must come from the same questions."""
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = 100 * ours.draws / full.draws
    value = 100 * ours.value / full.value if full.value else math.nan
    return Estimate(value, draws, ours.num_questions, ours.num_clips)


def paired_difference(
    ours: Sequence[Scored], theirs: Sequence[Scored], benchmark: Benchmark, *, seed: int = 0
) -> dict[str | None, Estimate]:
    """The accuracy of `ours` minus that of `theirs` on the questions that both were asked, overall and by group.

    Raises:
        TangoError: they have no question in common.
    """
    other = {question.question_id: question for question in theirs}
    common = sorted((q for q in ours if q.question_id in other), key=lambda question: question.question_id)
    if not common:
        raise TangoError(
            f"two runs of {benchmark.name} have no question in common; questions have other ids in other toolkits, so "
            "compare methods within one"
        )
    sides = [accuracies(side, benchmark, seed=seed) for side in (common, [other[q.question_id] for q in common])]
    return {
        group: Estimate(mine.value - sides[1][group].value, mine.draws - sides[1][group].draws, mine.num_questions,
                        mine.num_clips)
        for group, mine in sides[0].items()
    }  # fmt: skip
