"""The leaderboard's files: one JSON object for each run and benchmark, see docs/leaderboard.md.

`data/leaderboard.schema.json` says what each field must be; what fields must be to each other stands here. Only the
standard library is imported, so that contributed files can be checked before anything is installed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from tango.errors import TangoError
from tango.report.benchmarks import OWN, benchmark
from tango.report.leaderboard_form import mistakes, parsed
from tango.report.results import Json, identity

SCHEMA = 1
HERE, ELSEWHERE, REPORTED = "measured here", "measured elsewhere", "reported by the authors of "
# Methods that any other must beat. Videos that show nothing of what is asked are controls, too, as benchmarks.
CONTROLS = frozenset({"random", "uniform", "downsample", "fewer-frames"})
# Benchmarks that have several sets, which are never to be compared: by the name in records, the benchmark and the set.
SETS = {
    "Video-MME": ("Video-MME", "without subtitles"),
    "Video-MME with subtitles": ("Video-MME", "with subtitles"),
    "LongVideoBench": ("LongVideoBench", "validation, without subtitles"),
    "LongVideoBench with subtitles": ("LongVideoBench", "validation, with subtitles"),
    "LongVideoBench test": ("LongVideoBench", "test, without subtitles"),
    "LongVideoBench test with subtitles": ("LongVideoBench", "test, with subtitles"),
    "MLVU": ("MLVU", "dev"),
    "MLVU test": ("MLVU", "test"),
}
WHOLE = "all"  # the only set of other benchmarks
_MOST_BYTES = 100_000
_HOW = "docs/leaderboard.md describes every field"


class Group(NamedTuple):
    """What rows must have in common to stand in one table. A part of a set is a group of its own."""

    benchmark: str
    set: str | None
    part: str | None
    model: str
    num_frames: int | None


class Checked(NamedTuple):
    """Files that were read: the good ones, each with its path, and one line for each mistake in the others."""

    entries: list[tuple[Path, Json]]
    mistakes: list[str]


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a file."""
    text = (resources.files("tango.report") / "data" / "leaderboard.schema.json").read_text(encoding="utf-8")
    return json.loads(text)


def group_of(entry: Json) -> Group:
    """The group that a row stands in.

    Example:
        >>> row = {"benchmark": "MLVU", "part": None, "model": "LLaVA-Video-7B", "num_frames": 64}
        >>> group_of({**row, "set": "dev"}) == group_of({**row, "set": "test"})
        False
    """
    return Group(*(entry[name] for name in Group._fields))


def is_control(method: Json, name_of_benchmark: str) -> bool:
    """Whether a row is a control: a method that looks at nothing, or a video that shows nothing of what is asked.

    Example:
        >>> is_control({"method": "random"}, "MVBench"), is_control({"method": "none"}, "TangoMini-blank")
        (True, True)
    """
    shown_another_video = name_of_benchmark in {own.name for own in OWN if "-" in own.name}
    return method["method"] in CONTROLS or shown_another_video


def nominal_ratio(method: Json) -> float | None:
    """The share of tokens that a configuration asks for; None if it does not say.

    Example:
        >>> nominal_ratio({"method": "none"}), nominal_ratio({"method": "tango", "options": {"retention_ratio": 0.1}})
        (1.0, 0.1)
    """
    if method["method"] == "none":
        return 1.0
    mean, own = method.get("mean_retention_ratio"), (method.get("options") or {}).get("retention_ratio")
    return own if mean is None else mean


def read_folder(folder: Path) -> list[Json]:
    """Read all files of a folder.

    Raises:
        TangoError: it holds none, or one has a mistake.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise TangoError(f"no results in {folder}: expected JSON files, which `tango leaderboard add` makes of a run")
    checked = check_files(paths)
    if checked.mistakes:
        more = f" (and {len(checked.mistakes) - 1} more)" if len(checked.mistakes) > 1 else ""
        raise TangoError(f"{checked.mistakes[0]}{more}; `tango leaderboard check {folder}/*.json` lists all mistakes")
    return [entry for _, entry in checked.entries]


def check_files(paths: Iterable[Path]) -> Checked:
    """Read files, and find every mistake in them. The same run in two of them is one."""
    checked, seen = Checked([], []), dict[str, Path]()
    for path in paths:
        try:
            entry = _read(path)
            found = list(check_entry(entry))
        except (OSError, ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
            found = [f"cannot be read: {reason}; expected one JSON object as in docs/leaderboard.md"]
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*\.json", path.name):
            found.append("got this name, expected lower-case letters, digits and ._- before .json; rename it")
        if not found and (other := seen.setdefault(_same(entry), path)) is not path:
            found.append(f"got the run that {other} has, expected each run once; remove one of them")
        checked.mistakes.extend(f"{path}: {one}" for one in found)
        if not found:
            checked.entries.append((path, entry))
    return checked


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
    entry = parsed(data.decode())
    json.dumps(entry, ensure_ascii=False).encode()  # half a surrogate pair would be found when the page is written
    return entry


def _same(entry: Json) -> str:
    """A text that is equal for two files of one run."""
    told = [entry[name] for name in ("kind", "source", "date")]
    return json.dumps([group_of(entry), identity(entry["method"]), told], sort_keys=True)


def check_entry(entry: Any) -> Iterator[str]:
    """Yield one line for each mistake in what a file holds: what was got, what was expected, and the way out.

    Example:
        >>> next(check_entry([]))
        'the file: got [], expected an object; docs/leaderboard.md describes every field'
    """
    wrong = [f"{one}; {_HOW}" for one in mistakes(entry, schema())]
    yield from wrong or (*_of_kind(entry), *_of_method(entry), *_of_questions(entry), *_of_accuracy(entry))


def _of_kind(entry: Json) -> Iterator[str]:
    """Whoever measured knows more than who read a table in a paper."""
    if entry["date"] is not None:
        try:
            date.fromisoformat(entry["date"])
        except ValueError:
            yield f"date: got {entry['date']!r}, expected a day that there is; correct it"
    if entry["kind"].startswith(REPORTED):
        return
    for name in ("set", "num_asked", "num_correct", "versions", "hardware", "date"):
        if entry[name] in (None, "", {}):
            what = schema()["properties"][name]["description"].removesuffix(", or null")
            yield f"{name}: got {entry[name]!r}, expected of what was {entry['kind'].partition(' ')[0]} {what}; {_HOW}"
    if entry["interval"] is None and entry["num_clips"] != 1:
        yield "interval: got None, expected two numbers, unless num_clips is 1; `tango leaderboard add` computes them"


def _of_method(entry: Json) -> Iterator[str]:
    method, nominal, kept = entry["method"], entry["nominal_ratio"], entry["kept_share"]
    asked = nominal_ratio(method)
    if asked is not None and asked != nominal:
        yield f"nominal_ratio: got {nominal}, expected {asked}, as its method says; correct either"
    if method["method"] == "none" and kept not in (None, 1):
        yield f"kept_share: got {kept}, expected 1 without a method; correct either"
    control = is_control(method, entry["benchmark"])
    if control and not entry["control"]:
        yield f"control: got False, expected True for {method['method']} on {entry['benchmark']}; correct it"
    if not entry["kind"].startswith(REPORTED) and method["method"] != "none" and "options" not in method:
        yield "method.options: got nothing, expected all options with their values; `tango leaderboard add` writes them"


def _of_questions(entry: Json) -> Iterator[str]:
    """The benchmark, its set, and which of its questions were asked."""
    known = benchmark(entry["benchmark"])
    name, _ = SETS.get(known.name, (known.name, WHOLE))
    if name != entry["benchmark"]:
        yield f"benchmark: got {entry['benchmark']!r}, expected {name!r}, as it is called here; rename it"
        return
    whole, part = entry["num_questions"], entry["part"]
    sets = [own for of, own in SETS.values() if of == name] or ([WHOLE] if known.num_questions else [])
    if sets and entry["set"] not in (None, *sets):
        yield f"set: got {entry['set']!r}, expected one of {', '.join(map(repr, sets))}; name the set that was asked"
    if None not in (known.num_questions, whole) and whole != known.num_questions and "test" not in (entry["set"] or ""):
        yield f"num_questions: got {whole}, expected {known.num_questions} of {known.name}; what was asked is num_asked"
    asked = entry["num_asked"]
    if asked is None:
        return
    if whole is not None and asked > whole:
        yield f"num_asked: got {asked}, expected at most num_questions, {whole}; correct either"
    if whole is not None and asked < whole and part is None:
        yield f"part: got None, expected which {asked} of the {whole} questions were asked; name them in words"
    if asked == whole and part is not None:
        yield f"part: got {part!r}, expected null where all {whole} questions were asked; correct either"
    if (entry["num_clips"] or 1) > asked:
        yield f"num_clips: got {entry['num_clips']}, expected at most num_asked, {asked}; correct either"


def _of_accuracy(entry: Json) -> Iterator[str]:
    accuracy, asked, correct = entry["accuracy"], entry["num_asked"], entry["num_correct"]
    of_groups = benchmark(entry["benchmark"]).mean_of_groups  # draws may lack a group, so their mean may be another
    if asked is not None and correct is not None:
        answered = asked - (entry["num_failed"] or 0)
        if correct > answered:
            yield f"num_correct: got {correct}, expected at most {answered} of num_asked that did not fail; correct it"
        elif not of_groups and abs(accuracy - 100 * correct / asked) > 0.051:
            expected = f"{100 * correct / asked:.4f}, {correct} of {asked} right"
            yield f"accuracy: got {accuracy}, expected {expected}; correct either"
    if entry["interval"] is not None:
        low, high = entry["interval"]
        if low > high or not (of_groups or low - 0.051 <= accuracy <= high + 0.051):  # all may be rounded
            yield f"interval: got {low} to {high}, expected two numbers around the accuracy, {accuracy}; correct either"
