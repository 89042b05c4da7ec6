"""`run.py`: settle the settings, patch the toolkit's runner, start it, and say what came out."""

from __future__ import annotations

import os
import sys
from itertools import pairwise

from tango import TangoError
from tango.evaluation import check_journal, end_with_launcher, identity, import_packages
from tango_vlmeval.settings import Run, is_first_process, parser, resolve


def main() -> int:
    """Run an evaluation.

    Returns:
        0; 1 if a data set failed; 2 if the settings cannot be right.
    """
    end_with_launcher(os.environ)
    flags, rest = parser().parse_known_args()
    if flags.help:
        return _help()
    try:
        import_packages(os.environ.get("TANGO_IMPORT", ""), *flags.imports)
        run = resolve(flags, os.environ)
        run.store(write=is_first_process())
    except TangoError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("VLMEVALKIT_USE_MODELSCOPE", "0")  # its data come from the Hugging Face hub
    import vlmeval.run as runner  # chooses this process's GPUs, so it comes before all that uses them

    from tango_vlmeval import patches, summary

    try:
        check_journals(run)
    except TangoError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    runner.load_env()
    # Whatever is finished is taken over in any case; with --reuse the toolkit says so.
    files = ["--config", flags.config, "--work-dir", str(run.work_dir), "--reuse"]
    sys.argv = [sys.argv[0], *files, *rest, *_judge(rest)]
    patches.apply(runner, run)
    runner.main()
    if not is_first_process():
        return 0
    predictions_only = "--mode=infer" in rest or ("--mode", "infer") in pairwise(rest)
    problems = summary.summarise(run, scored=not predictions_only)
    print(summary.table([run.work_dir]), flush=True)
    for problem in problems:
        print(f"run.py: failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def check_journals(run: Run) -> None:
    """See that the weights, code and libraries are those that made the results in the folders: finished data sets are
    taken over without a look at the model.

    Raises:
        TangoError: they are others.
    """
    for name, model in run.models.items():
        journal = run.work_dir / name / "journal"
        if journal.is_dir():
            given = model.arguments
            chosen = {name: given[name] for name in ("video_backend", "local_files_only") if name in given}
            check_journal(journal, identity(given["pretrained"], model.method, **chosen))


def _judge(rest: list[str]) -> list[str]:
    """Exact matching, unless there is a judge. The toolkit comes to the same, after minutes of calls that fail."""
    chosen = {flag.partition("=")[0] for flag in rest} & {"--judge", "--judge-key", "--judge-base-url"}
    if chosen or os.environ.get("OPENAI_API_KEY"):
        return []
    return ["--judge", "exact_matching"]


def _help() -> int:
    parser().print_help()
    print("\nThe toolkit's own flags:\n", flush=True)
    import vlmeval.run as runner

    sys.argv = [sys.argv[0], "-h"]
    runner.parse_args()  # prints and exits
    return 0
