"""The benchmarks of the paper's tables: their names in the toolkits, their numbers of questions, and their scoring."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tango.errors import TangoError


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A set of questions. `num_questions` is None where it is not known here.

    Other sets of one benchmark, such as its test split, or the same questions with subtitles, are benchmarks with names
    of their own, and `family` says whose they are. Results of two of them are neither averaged nor compared.

    Example:
        >>> Benchmark(name="Mine", num_questions=200).mean_of_groups
        False
        >>> benchmark("mlvu_test").name, benchmark("mlvu_test").family
        ('MLVU test', 'MLVU')
    """

    name: str
    num_questions: int | None = None
    mean_of_groups: bool = False  # the accuracy is the mean of the groups' accuracies, not that over all questions
    aliases: tuple[str, ...] = ()
    set_of: str = ""  # the benchmark that this is another set of

    @property
    def family(self) -> str:
        """The name that all sets of a benchmark share."""
        return self.set_of or self.name


# Source: the numbers of questions are those of the benchmarks' papers (the multiple-choice part of MLVU's dev set, the
# validation set of LongVideoBench). MLVU defines its accuracy (M-Avg) as the mean over its tasks.
BENCHMARKS = (
    Benchmark(name="Video-MME", num_questions=2700, aliases=("videomme",)),
    Benchmark(name="MVBench", num_questions=4000),
    Benchmark(name="LongVideoBench", num_questions=1337, aliases=("longvideobench_val_v",)),
    Benchmark(name="MLVU", num_questions=2174, mean_of_groups=True, aliases=("mlvu_mcq", "mlvu_dev")),
)
# Other sets of these. LongVideoBench's `val_i` has subtitles between the frames.
OTHER_SETS = (
    Benchmark(name="MLVU test", mean_of_groups=True, aliases=("mlvu_test",), set_of="MLVU"),
    Benchmark(name="LongVideoBench test", aliases=("longvideobench_test_v",), set_of="LongVideoBench"),
)
_SUBTITLES = " with subtitles"
_SUBTITLED = {
    "videomme_w_subtitle": "Video-MME",
    "longvideobench_val_i": "LongVideoBench",
    "longvideobench_test_i": "LongVideoBench test",
}
# The benchmark of tango-mini: all questions about its 200 clips, and the same questions about grey or other videos; and
# that of tango-small, as many scenes as one asks for.
OWN = (
    Benchmark(name="TangoMini", num_questions=1903, aliases=("tango_mini",)),
    Benchmark(name="TangoMini-blank", num_questions=1903, aliases=("tango_mini_blank",), set_of="TangoMini"),
    Benchmark(name="TangoMini-other", num_questions=1903, set_of="TangoMini"),
    Benchmark(name="TangoSmall"),
    Benchmark(name="TangoSmall-blank", set_of="TangoSmall"),
    Benchmark(name="TangoSmall-other", set_of="TangoSmall"),
)


def benchmark(name: str) -> Benchmark:
    """Find a benchmark by a name that a toolkit uses; a frame count at the end does not matter.

    A name that is not known here gives a benchmark of that name.

    Example:
        >>> benchmark("Video-MME_32frame").num_questions
        2700
        >>> benchmark("Video-MME_32frame_subs").name
        'Video-MME with subtitles'
    """
    name, subtitles = re.subn(r"(_\d+frame)?_subs$", "", name)
    name = re.sub(r"_\d+frame$", "", name)
    if name.lower().startswith("mvbench_"):
        name = "MVBench"  # lmms-eval has a task for each of its parts
    if name.lower().endswith(_SUBTITLES) or name.lower() in _SUBTITLED:
        plain = _SUBTITLED.get(name.lower(), name[: len(name) - len(_SUBTITLES)])
        return with_subtitles(benchmark(plain))
    known = (
        known for known in (*BENCHMARKS, *OTHER_SETS, *OWN) if name.lower() in (known.name.lower(), *known.aliases)
    )
    found = next(known, None) or Benchmark(name=name)
    return with_subtitles(found) if subtitles else found


def with_subtitles(plain: Benchmark) -> Benchmark:
    """The same questions, asked with the video's subtitles: another set.

    Example:
        >>> with_subtitles(benchmark("videomme")).name
        'Video-MME with subtitles'
    """
    return replace(plain, name=plain.name + _SUBTITLES, aliases=(), set_of=plain.family)


def refuse_two_sets(names: Iterable[str]) -> None:
    """Refuse to put several sets of one benchmark together.

    Raises:
        TangoError: two names are of one benchmark; the message names both.
    Example:
        >>> refuse_two_sets(["Video-MME", "MLVU", "MVBench"])
    """
    first: dict[str, str] = {}
    for own in map(benchmark, names):
        if (other := first.setdefault(own.family, own.name)) != own.name:
            raise TangoError(
                f"{other} and {own.name} are two sets of questions, so their results are not averaged or compared; "
                "choose one of them with --benchmarks"
            )
