"""Makes entries of the leaderboard of recorded runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

from tango.errors import TangoError
from tango.report.curves import measured_share
from tango.report.intervals import accuracies
from tango.report.leaderboard import (
    ELSEWHERE,
    HERE,
    SCHEMA,
    SETS,
    WHOLE,
    check_entry,
    is_control,
    nominal_ratio,
)
from tango.report.records import read_run, run_file
from tango.report.results import Json, Run


def entry_of_run(
    run: Run, label: Callable[[Json], str], *, who: str, link: str | None = None, elsewhere: bool = False, seed: int = 0
) -> dict[str, object]:  # fmt: skip
    """Make the entry of a recorded run.

    Args:
        label: names a method's configuration without its ratio.
        who: who ran it.
        link: address of the records.
        elsewhere: the answers come from other code than Tango's.
        seed: seeds the draws behind the interval.
    Raises:
        TangoError: the records do not say what an entry needs.
    """
    right, asked = sum(question.correct for question in run.questions), len(run.questions)
    estimate = accuracies(run.questions, run.benchmark, seed=seed)[None]
    interval = estimate.interval()
    name, own_set = SETS.get(run.benchmark.name, (run.benchmark.name, WHOLE))
    environment, ratio = _environment(run), nominal_ratio(run.method)
    if ratio is None:
        raise TangoError(f"{run.source}: its method names no retention ratio; expected one in its options")
    entry: dict[str, object] = {
        "schema": SCHEMA,
        "kind": ELSEWHERE if elsewhere else HERE,
        "source": {"who": who, "link": link},
        "model": run.model,
        "num_frames": run.num_frames,
        "benchmark": name,
        "set": own_set,
        "part": _part(run),
        "name": label(run.method),
        "method": run.method,
        "control": is_control(run.method, run.benchmark.name),
        "nominal_ratio": ratio,
        "kept_share": _kept(run),
        "accuracy": round(estimate.value, 4),
        "interval": None if interval is None else [round(end, 4) for end in interval],
        "num_questions": run.num_expected,
        "num_asked": asked,
        "num_correct": right,
        "num_failed": run.num_failed,
        "num_clips": None if any(q.video_id is None for q in run.questions) else estimate.num_clips,
        "versions": environment["versions"],
        "hardware": _hardware(environment),
        "date": run.date[:10] or None,
        "notes": None,
    }
    for mistake in check_entry(entry):
        raise TangoError(f"{run.source} ({run.benchmark.name}): {mistake}")
    return entry


def file_name(entry: Json) -> str:
    """The name of an entry's file: what tells it apart, and a hash of what does not fit there.

    Example:
        >>> from tango.report.leaderboard_paper import paper_entries
        >>> file_name(next(paper_entries()))
        'llava-onevision-7b_video-mme_full_r1_....json'
    """
    told = [entry[name] for name in ("set", "part", "num_frames", "method", "source", "date")]
    parts = [entry["model"], entry["benchmark"], entry["name"], f"r{entry['nominal_ratio']:g}"]
    words = [re.sub(r"[^a-z0-9.]+", "-", str(part).lower()).strip("-.")[:60] or "x" for part in parts]
    return f"{'_'.join(words)}_{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]}.json"


def _environment(run: Run) -> Json:
    """The machine and the versions that the run's file tells of."""
    records = run.source / "records.jsonl" if run.source.is_dir() else run.source
    found = read_run(records).get("environment") or {}
    if missing := [name for name in ("versions", "cpu") if not found.get(name)]:
        raise TangoError(
            f"{run_file(records)}: its environment has no {' and no '.join(missing)}; expected both, as Tango's "
            "commands write them; add what is known of the machine that the run was made on"
        )
    return found


def _hardware(environment: Json) -> str:
    """GPUs if there are any, else the CPU."""
    gpus = list(environment.get("gpus") or [])
    if gpus:
        return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    cpus = environment.get("num_cpus")
    return f"{environment['cpu']}" + (f", {cpus} CPUs" if cpus else "")


def _part(run: Run) -> str | None:
    """Which questions a partial run asked, so that only runs of the same ones stand in one table."""
    if not run.partial or len(run.questions) == run.num_expected:  # a limit may be as large as the whole
        return None
    asked = sorted(question.question_id for question in run.questions)
    held = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:12]
    whole = "" if run.num_expected is None else f" of {run.num_expected}"
    return f"{len(asked)}{whole} questions, SHA-256 of their ids {held}"


def _kept(run: Run) -> float | None:
    """The share of tokens that was left as it was counted; the ratio that was asked for never stands for it."""
    if run.method["method"] == "none":
        return 1.0
    share = measured_share(run)
    return None if share is None else round(share, 6)
