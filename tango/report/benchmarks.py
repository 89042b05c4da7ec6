"""The benchmarks of the paper's tables: what toolkits call them, how many questions they have, how they are scored."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A set of questions. `num_questions` is None where it is not known here."""

    name: str
    num_questions: int | None = None
    mean_of_groups: bool = False  # the accuracy is the mean over the groups' accuracies, not over all questions
    aliases: tuple[str, ...] = ()


# Source: the numbers of questions are those of the benchmarks' papers (the multiple-choice part of MLVU's dev set, the
# validation set of LongVideoBench). MLVU defines its accuracy (M-Avg) as the mean over its tasks.
BENCHMARKS = (
    Benchmark(name="Video-MME", num_questions=2700, aliases=("videomme",)),
    Benchmark(name="MVBench", num_questions=4000),
    Benchmark(name="LongVideoBench", num_questions=1337, aliases=("longvideobench_val_v",)),
    Benchmark(name="MLVU", num_questions=2174, mean_of_groups=True, aliases=("mlvu_mcq", "mlvu_dev")),
)
# tango-mini's own: all questions about its 200 clips, and the same about grey videos or the clip after.
OWN = (
    Benchmark(name="TangoMini", num_questions=1903, aliases=("tango_mini",)),
    Benchmark(name="TangoMini-blank", num_questions=1903, aliases=("tango_mini_blank",)),
    Benchmark(name="TangoMini-other", num_questions=1903),
)


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name that a toolkit uses; a frame count at its end does not matter ("Video-MME_32frame")."""
    name = re.sub(r"_\d+frame$", "", name)
    if name.lower().startswith("mvbench_"):
        name = "MVBench"  # lmms-eval has a task for each of its parts
    for known in (*BENCHMARKS, *OWN):
        if name.lower() in (known.name.lower(), *known.aliases):
            return known
    return Benchmark(name=name)
