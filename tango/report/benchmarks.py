"""The benchmarks of the paper's tables: their names in the toolkits, their numbers of questions, and their scoring."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A set of questions. `num_questions` is None where it is not known here.

    Example:
        >>> Benchmark(name="Mine", num_questions=200).mean_of_groups
        False
    """

    name: str
    num_questions: int | None = None
    mean_of_groups: bool = False  # the accuracy is the mean of the groups' accuracies, not that over all questions
    aliases: tuple[str, ...] = ()


# Source: the numbers of questions are those of the benchmarks' papers (the multiple-choice part of MLVU's dev set, the
# validation set of LongVideoBench). MLVU defines its accuracy (M-Avg) as the mean over its tasks.
BENCHMARKS = (
    Benchmark(name="Video-MME", num_questions=2700, aliases=("videomme",)),
    Benchmark(name="MVBench", num_questions=4000),
    Benchmark(name="LongVideoBench", num_questions=1337, aliases=("longvideobench_val_v",)),
    Benchmark(name="MLVU", num_questions=2174, mean_of_groups=True, aliases=("mlvu_mcq", "mlvu_dev")),
)
# The benchmark of tango-mini: all questions about its 200 clips, and the same questions about grey or other videos.
OWN = (
    Benchmark(name="TangoMini", num_questions=1903, aliases=("tango_mini",)),
    Benchmark(name="TangoMini-blank", num_questions=1903, aliases=("tango_mini_blank",)),
    Benchmark(name="TangoMini-other", num_questions=1903),
)


def benchmark(name: str) -> Benchmark:
    """Find a benchmark by a name that a toolkit uses; a frame count at the end does not matter.

    A name that is not known here gives a benchmark of that name.

    Example:
        >>> benchmark("Video-MME_32frame").num_questions
        2700
    """
    name = re.sub(r"_\d+frame$", "", name)
    if name.lower().startswith("mvbench_"):
        name = "MVBench"  # lmms-eval has a task for each of its parts
    for known in (*BENCHMARKS, *OWN):
        if name.lower() in (known.name.lower(), *known.aliases):
            return known
    return Benchmark(name=name)
