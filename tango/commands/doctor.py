"""`tango doctor`: checks what this installation can do, and what is wrong with it."""

from __future__ import annotations

import argparse
import json

import tango
from tango.doctor import examine, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line per check")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds that a check may take (120)")


def run(args: argparse.Namespace) -> int:
    """Run all checks and print the findings. Exit codes: 0 nothing failed, 1 a check failed."""
    if not 0 < args.timeout <= 86400:
        raise ValueError(f"--timeout must be a number of seconds above 0, got {args.timeout:g}")
    findings = examine(timeout_s=args.timeout)
    found = summary(findings)
    if args.json:
        print(json.dumps({"tango": tango.__version__, **found}, ensure_ascii=False))
    else:
        for finding in findings:
            way_out = f"; way out: {finding.way_out}" if finding.way_out else ""
            print(f"{finding.status:<8}{finding.name:<17}{finding.detail}{way_out}")
        failed = sum(finding.status == "failed" for finding in findings)
        print(f"{failed} of {len(findings)} checks failed" if failed else "nothing failed")
    return 1 if found["status"] == "failed" else 0
