"""`tango mini train`: trains the small model from nothing."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tango.errors import OptionError
from tango.lab.bench.common import positive, thread_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini train`."""
    parser.add_argument("output", type=Path, help="folder of the checkpoint; it must not exist yet")
    parser.add_argument("--work", type=Path, help="folder of the training's state (OUTPUT.work)")
    parser.add_argument("--seed", type=int, default=0, help="decides weights and training clips (0)")
    parser.add_argument(
        "--vision-steps", type=positive, help="steps of the first stage (those of the published weights)"
    )
    parser.add_argument("--language-steps", type=positive, help="steps of the second stage (likewise)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (cpu)")
    parser.add_argument("--threads", type=thread_count, help="CPU threads (torch's choice)")
    parser.add_argument("--workers", type=int, default=1, help="processes that render clips (1)")


def run(args: argparse.Namespace) -> int:
    """Train. Started again after an interruption, the training goes on where it was."""
    import torch

    from tango.commands.common import quiet
    from tango.lab.training.recipe import Recipe
    from tango.lab.training.train import train as run_training
    from tango.models.loading import choose_device

    quiet()
    device = choose_device(args.device)
    if not 0 <= args.seed < 2**63 or args.workers < 0:
        raise OptionError(f"--seed and --workers must be at least 0, got {args.seed} and {args.workers}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    given = {"vision_steps": args.vision_steps, "language_steps": args.language_steps}
    recipe = Recipe(seed=args.seed, **{name: value for name, value in given.items() if value is not None})
    work = args.work or args.output.with_name(f"{args.output.name}.work")

    def log(line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, flush=True)

    run_training(args.output, work, recipe, device=str(device), workers=args.workers, log=log)
    return 0
