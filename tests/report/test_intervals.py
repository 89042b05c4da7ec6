"""tango.report.intervals, against resampling written out question by question."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from tango.errors import TangoError
from tango.report.benchmarks import Benchmark
from tango.report.intervals import NUM_DRAWS, Estimate, accuracies, average, paired_difference, ratio, wilson
from tango.report.results import Scored

POOLED = Benchmark(name="pooled")
BY_GROUP = Benchmark(name="by group", mean_of_groups=True)


def questions(seed: int, num_clips: int = 60, hard: float = 0.0) -> list[Scored]:
    """One to five questions per clip; clips differ in difficulty, so that answers about one clip go together."""
    rng = random.Random(seed)
    found = []
    for clip in range(num_clips):
        ease = rng.betavariate(1, 1)
        for k in range(rng.randint(1, 5)):
            right = rng.random() < ease * (1 - hard)
            found.append(Scored(f"{clip}-{k}", right, f"clip{clip}", rng.choice(["a", "a", "b"])))
    return found


def percent(judged: list[Scored]) -> float:
    return 100 * statistics.mean(question.correct for question in judged)


def of_groups(judged: list[Scored]) -> float:
    groups = {question.group for question in judged}
    return statistics.mean(percent([q for q in judged if q.group == group]) for group in groups)


def written_out(judged: list[Scored], statistic, draws: int = 4000) -> tuple[float, float]:
    """The percentile bootstrap over clips, without any array."""
    clips: dict[str | None, list[Scored]] = {}
    for question in judged:
        clips.setdefault(question.video_id, []).append(question)
    rng = random.Random(5)
    values = sorted(
        statistic([q for clip in rng.choices(list(clips.values()), k=len(clips)) for q in clip]) for _ in range(draws)
    )
    return values[round(0.025 * draws)], values[round(0.975 * draws)]


class TestAccuracies:
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_interval_is_that_of_resampled_clips(self, seed: int) -> None:
        judged = questions(seed)
        found = accuracies(judged, POOLED)[None]
        assert found.value == pytest.approx(percent(judged))
        assert (found.num_questions, found.num_clips) == (len(judged), 60)
        assert found.interval() == pytest.approx(written_out(judged, percent), abs=1.5)

    def test_interval_is_that_of_a_ratio_of_sums(self) -> None:
        """In closed form, for many clips: the variance of right - share * asked over clips."""
        judged = questions(4, num_clips=800)
        found = accuracies(judged, POOLED)[None]
        clips: dict[str | None, list[bool]] = {}
        for question in judged:
            clips.setdefault(question.video_id, []).append(question.correct)
        rest = [sum(right) - found.value / 100 * len(right) for right in clips.values()]
        margin = 196 * math.sqrt(len(clips) * statistics.variance(rest)) / len(judged)
        low, high = found.interval() or (0, 0)
        assert (high - low) / 2 == pytest.approx(margin, rel=0.08)
        assert (high + low) / 2 == pytest.approx(found.value, abs=0.3)

    def test_clips_count_not_questions(self) -> None:
        """Every clip asked four times over is no more evidence."""
        once = [Scored(f"{i}", i % 3 == 0, f"clip{i}") for i in range(60)]
        often = [Scored(f"{i}-{k}", i % 3 == 0, f"clip{i}") for i in range(60) for k in range(4)]
        apart = [Scored(f"{i}-{k}", i % 3 == 0) for i in range(60) for k in range(4)]  # no clip is recorded
        expected = accuracies(once, POOLED)[None].interval()
        assert accuracies(often, POOLED)[None].interval() == pytest.approx(expected)
        width = np.ptp(accuracies(apart, POOLED)[None].interval() or ())
        assert width == pytest.approx(np.ptp(expected or ()) / 2, rel=0.1)

    def test_groups(self) -> None:
        judged = questions(6)
        found = accuracies(judged, POOLED)
        for group in ("a", "b"):
            members = [question for question in judged if question.group == group]
            assert found[group].value == pytest.approx(percent(members))
            assert found[group].num_questions == len(members)
            assert found[group].num_clips == len({question.video_id for question in members})
            assert found[group].interval() == pytest.approx(written_out(members, percent), abs=2.5)

    def test_mean_of_groups(self) -> None:
        judged = questions(7)
        found = accuracies(judged, BY_GROUP)[None]
        assert found.value == pytest.approx(of_groups(judged))
        assert found.value != pytest.approx(percent(judged), abs=0.1)
        assert found.interval() == pytest.approx(written_out(judged, of_groups), abs=1.5)

    def test_the_same_draws_every_time_and_others_with_another_seed(self) -> None:
        first, again, other = (accuracies(questions(8), POOLED, seed=seed)[None].draws for seed in (0, 0, 1))
        assert len(first) == NUM_DRAWS
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_no_global_generator_is_touched(self) -> None:
        before = np.random.get_state()[1].tolist(), random.getstate()
        accuracies(questions(8), POOLED)
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before

    def test_all_right_has_wilsons_interval_over_clips(self) -> None:
        judged = [Scored(f"{i}-{k}", True, f"clip{i}") for i in range(10) for k in range(3)]
        assert accuracies(judged, POOLED)[None].interval() == wilson(100.0, 10)

    def test_one_clip_has_none(self) -> None:
        judged = [Scored("0", True, "clip"), Scored("1", False, "clip")]
        assert accuracies(judged, POOLED)[None].interval() is None


@pytest.mark.parametrize(("right", "trials"), [(0, 10), (3, 10), (50, 100), (100, 100)])
def test_wilsons_bounds_are_1_96_standard_errors_of_their_own_from_the_share(right: int, trials: int) -> None:
    share = right / trials
    for bound in wilson(100 * share, trials):
        assert 0 <= bound <= 100
        p = bound / 100
        assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(max(p * (1 - p), 0) / trials), abs=1e-9)


class TestCombinations:
    def test_difference_is_that_of_resampled_clips(self) -> None:
        ours, theirs = questions(9), questions(9, hard=0.3)
        answers = {question.question_id: question for question in theirs}

        def difference(drawn: list[Scored]) -> float:
            return percent(drawn) - percent([answers[question.question_id] for question in drawn])

        found = paired_difference(ours, theirs, POOLED)[None]
        assert found.value == pytest.approx(percent(ours) - percent(theirs))
        assert found.interval() == pytest.approx(written_out(ours, difference), abs=1.5)

    def test_pairing_narrows_the_interval(self) -> None:
        """The same hard clips are hard for both."""
        ours = questions(10, num_clips=200)
        rng = random.Random(0)
        theirs = [Scored(q.question_id, q.correct != (rng.random() < 0.05), q.video_id, q.group) for q in ours]
        paired = paired_difference(ours, theirs, POOLED)[None]
        alone = accuracies(ours, POOLED)[None]
        assert np.ptp(paired.interval() or ()) < 0.5 * np.ptp(alone.interval() or ())

    def test_difference_of_a_run_to_itself_is_nothing(self) -> None:
        judged = questions(11)
        found = paired_difference(judged, list(reversed(judged)), POOLED)
        assert {group: (e.value, e.interval()) for group, e in found.items()} == dict.fromkeys(
            (None, "a", "b"), (0.0, (0.0, 0.0))
        )

    def test_only_common_questions_count(self) -> None:
        judged = questions(12)
        found = paired_difference(judged, judged[:40], POOLED)[None]
        assert (found.num_questions, found.value) == (40, 0.0)
        with pytest.raises(TangoError, match="no question in common"):
            paired_difference(judged[:10], judged[10:], POOLED)

    def test_average_weighs_benchmarks_alike(self) -> None:
        many, few = accuracies(questions(13, 100), POOLED)[None], accuracies(questions(14, 50), BY_GROUP)[None]
        found = average([many, few])
        assert found.value == pytest.approx((many.value + few.value) / 2)
        assert found.num_questions == many.num_questions + few.num_questions
        variances = [float(np.var(estimate.draws)) for estimate in (many, few)]
        assert float(np.var(found.draws)) == pytest.approx(sum(variances) / 4, rel=0.1)  # independent draws

    def test_ratio(self) -> None:
        ours, full = (accuracies(judged, POOLED)[None] for judged in (questions(15, hard=0.2), questions(15)))
        found = ratio(ours, full)
        assert found.value == pytest.approx(100 * ours.value / full.value)
        assert ratio(full, full).interval() == pytest.approx((100, 100))

    def test_ratio_to_nothing(self) -> None:
        nothing = Estimate(0.0, np.zeros(NUM_DRAWS), 4, 2)
        assert math.isnan(ratio(nothing, nothing).value)
        assert ratio(nothing, nothing).interval() is None
