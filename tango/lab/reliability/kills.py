"""R3 and R4: evaluations that are killed at random moments, resumed with more or fewer processes, or fill the disk."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tango.lab.reliability.workers import Bench, Outcome, Row, alone, counted, question_about, silence, start
from tango.mini import NAME, benchmark_questions, clip_file, is_right

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

Asked: TypeAlias = dict[str, Any]  # a question of tango-mini's benchmark, with its "id" and the "video" file
_NUM_FRAMES = 8
_METHOD = ("--method", "tango", "--retention-ratio", "0.2", "--num-frames", str(_NUM_FRAMES))


def questions_of(clips: Path, count: int) -> list[Asked]:
    """The first questions of tango-mini's benchmark; missing clips are written."""
    clips.mkdir(exist_ok=True)
    return [
        {"id": number, **question, "video": str(clip_file(clips, question["clip"]))}
        for number, question in enumerate(islice(benchmark_questions(count), count))
    ]


def evaluate(
    questions: Sequence[Asked], run: Path, rank: int = 0, of: int = 1, file_limit: int | None = None
) -> list[dict[str, Any]]:
    """Answer every `of`-th question with tango-mini and pruning, through the journal of a run; the records.

    Args:
        file_limit: largest size of a file in bytes, in place of a full disk.
    """
    import resource

    from tango.evaluation import Answerer, MethodConfig

    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    own = questions[rank::of]
    asked = [question_about(q["video"], q["text"], max_new_tokens=4) for q in own]
    method = MethodConfig(method="tango", options={"retention_ratio": 0.2})
    with Answerer(
        NAME, method=method, num_frames=_NUM_FRAMES, dtype="float32", device="cpu", journal=run / "journal", rank=rank,
        local_files_only=True,
    ) as answerer:  # fmt: skip
        answers = list(answerer.answers(asked))
    counts = ("input_tokens", "output_tokens", "visual_tokens_before", "visual_tokens_after")
    return [
        {"id": q["id"], "text": a.text, "error": a.error, "right": is_right(a.text, q["answer"])}
        | {name: getattr(a, name) for name in counts}
        for q, a in zip(own, answers, strict=True)
    ]


def _evaluate_alone(questions: Sequence[Asked], run: Path, rank: int, of: int) -> None:
    import torch

    torch.set_num_threads(1)
    silence()
    evaluate(questions, run, rank, of)


def finish(questions: Sequence[Asked], run: Path, bench: Bench) -> bytes:
    """Complete a run in one process; return its records as JSON lines, then its metrics.

    Raises:
        RuntimeError: the process failed.
    """
    outcome = alone(partial(evaluate, questions, run), bench)
    if outcome.kind != "ok":
        raise RuntimeError(f"{outcome.kind}: {outcome.message}")
    records = outcome.value
    metrics = {"questions": len(records), "accuracy": sum(r["right"] for r in records) / len(records)}
    return "".join(json.dumps(line) + "\n" for line in (*records, metrics)).encode()


def answered(run: Path) -> list[str]:
    """Keys of the complete lines in a run's journal."""
    lines = [
        line for p in sorted((run / "journal").glob("answers-*.jsonl")) for line in p.read_bytes().split(b"\n")[:-1]
    ]
    keys = []
    for line in lines:
        try:
            keys.append(json.loads(line)["key"])
        except ValueError:  # the line was cut off by a kill, and ended by the next process
            continue
    return keys


def kill_after(processes: Sequence[ForkServerProcess], run: Path, count: int, pause_s: float) -> bool:
    """Kill -9 after `count` answers in the journal and a pause; False if the processes had ended by then."""
    while any(p.is_alive() for p in processes) and len(answered(run)) < count:
        time.sleep(0.01)
    time.sleep(pause_s)
    was_running = any(p.is_alive() for p in processes)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return was_running and all(p.exitcode in (-signal.SIGKILL, 0) for p in processes)


def check_kills(bench: Bench) -> Iterator[Row]:
    """R3: every run that is killed and resumed equals the uninterrupted one, and computes no answer twice."""
    kills, count = (50, 300) if bench.full else (10, 60)
    bench = replace(bench, limit_s=1800)
    questions = questions_of(bench.folder / "clips", count)
    expected = finish(questions, bench.folder / "uninterrupted", bench)
    with ThreadPoolExecutor(bench.processes) as pool:
        faults = list(pool.map(partial(_killed_once, questions, expected, bench), range(kills)))
    what = f"kill -9 at random, {count} questions, resumed: records and metrics byte-identical"
    yield counted("R3", what, kills, [fault for fault in faults if fault])
    yield counted("R3", "the same for tango mini evaluate", *_cli_kills(bench, 5 if bench.full else 1))


def _killed_once(questions: Sequence[Asked], expected: bytes, bench: Bench, number: int) -> str:
    rng = random.Random(bench.seed * 1009 + number)
    run = bench.folder / f"killed_{number}"
    process = start(_evaluate_alone, questions, run, 0, 1)
    if not kill_after([process], run, rng.randrange(len(questions) - 5), rng.uniform(0, 0.1)):
        return f"kill {number}: the evaluation ended by itself, with {process.exitcode}"
    return judge(run, questions, expected, bench, f"kill {number}")


def judge(run: Path, questions: Sequence[Asked], expected: bytes, bench: Bench, name: str) -> str:
    """Resume a run and compare it with the expected bytes; "" or what is wrong."""
    before = answered(run)
    try:
        got = finish(questions, run, bench)
    except RuntimeError as error:
        return f"{name}: does not resume, {error}"
    if got != expected:
        wrong = [a for a, b in zip(got.splitlines(), expected.splitlines(), strict=False) if a != b]
        return f"{name}: {len(wrong)} records differ, e.g. {wrong[0].decode()[:80] if wrong else 'in number'}"
    twice = [key for key, times in Counter(answered(run)).items() if times > 1]
    if twice or len(answered(run)) != len(questions):
        return f"{name}: {len(twice)} answers computed twice, {len(answered(run))} on record; {len(before)} at the kill"
    return ""


def check_workers(bench: Bench) -> Iterator[Row]:
    """R4: 1 process, then 2, then 1; and a disk that fills up once."""
    trials, count = (10, 300) if bench.full else (2, 60)
    bench = replace(bench, limit_s=1800)
    questions = questions_of(bench.folder / "clips", count)
    expected = finish(questions, bench.folder / "uninterrupted", bench)  # R3's, if that was run
    faults = []
    for number in range(trials):
        rng, run = random.Random(bench.seed * 2003 + number), bench.folder / f"workers_{number}"
        for of in (1, 2):
            left = len(questions) - (len(answered(run)) if (run / "journal").is_dir() else 0)
            processes = [start(_evaluate_alone, questions, run, rank, of) for rank in range(of)]
            kill_after(processes, run, len(questions) - left + rng.randrange(max(1, left // 2)), rng.uniform(0, 0.1))
        faults.append(judge(run, questions, expected, bench, f"trial {number}"))
    yield counted("R4", "1, 2, 1 processes with kills between: byte-identical", trials, [f for f in faults if f])
    yield from _full_disk(bench, questions, expected)


def _full_disk(bench: Bench, questions: Sequence[Asked], expected: bytes) -> Iterator[Row]:
    run = bench.folder / "full_disk"
    outcome = alone(partial(evaluate, questions, run, file_limit=8000), bench)
    fault = "" if names_file(outcome, "answers-00000.jsonl") else f"{outcome.kind}: {outcome.message or 'no error'}"
    yield counted("R4", "full disk: a clean error that names the file", 1, [fault] if fault else [])
    fault = judge(run, questions, expected, bench, "after a full disk")
    yield counted("R4", "full disk, resumed: byte-identical", 1, [fault] if fault else [])


def names_file(outcome: Outcome, name: str) -> bool:
    """Whether a job ended with an error that names this file."""
    return outcome.kind in ("refused", "crash") and name in outcome.message


def _cli_kills(bench: Bench, kills: int) -> tuple[int, list[str]]:
    """Tries and faults of `tango mini evaluate --output`, killed after some lines of output, and run again."""
    rng, clips = random.Random(bench.seed), str(bench.folder / "clips")
    command = [sys.executable, "-m", "tango.cli", "mini", "evaluate", "--offline", *_METHOD, "--clips", clips]
    command += ["--num-clips", "6", "--output"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    whole = bench.folder / "uninterrupted.jsonl"
    subprocess.run([*command, str(whole)], check=True, **quiet)
    faults = []
    for number in range(kills):
        output = bench.folder / f"killed_{number}.jsonl"
        with subprocess.Popen([*command, str(output)], **quiet) as process:
            lines = rng.randrange(1, 50)  # of about ten a clip
            while process.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < lines):
                time.sleep(0.01)
            process.kill()
        code = subprocess.run([*command, str(output)], **quiet).returncode
        if code != 0 or output.read_bytes() != whole.read_bytes():
            faults.append(f"kill {number}: exit code {code}, the file differs")
    return kills, faults
