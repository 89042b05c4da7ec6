"""`tango small train`: trains the projector."""

from __future__ import annotations

import argparse
from pathlib import Path

from tango.errors import OptionError
from tango.lab.bench.common import positive, thread_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango small train`."""
    parser.add_argument("output", type=Path, help="folder of the trained checkpoint; it must not exist yet")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint that scripts/train_small.sh put together")
    parser.add_argument("--data", type=Path, required=True, help="folder of the clips that it cut into shots")
    parser.add_argument("--work", type=Path, help="folder of the training's state (OUTPUT.work)")
    parser.add_argument("--steps", type=positive, help="steps of training (1250)")
    parser.add_argument("--batch", type=positive, help="scenes per step (16)")
    parser.add_argument("--seed", type=int, default=0, help="decides first weights and scenes (0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (CUDA if there is one)")
    parser.add_argument("--threads", type=thread_count, help="CPU threads (torch's choice)")
    parser.add_argument("--workers", type=int, default=4, help="processes that render scenes; 0: none (4)")


def run(args: argparse.Namespace) -> int:
    """Train. Started again after an interruption, the training goes on where it was."""
    import torch

    from tango.commands.common import quiet
    from tango.lab.small.train import Recipe, train
    from tango.models.loading import choose_device

    quiet()
    if not 0 <= args.seed < 2**31 or args.workers < 0:
        raise OptionError(f"--seed and --workers must be at least 0, got {args.seed} and {args.workers}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    given = {name: getattr(args, name) for name in ("steps", "batch")}
    recipe = Recipe(seed=args.seed, **{name: value for name, value in given.items() if value is not None})
    work = args.work or args.output.with_name(f"{args.output.name}.work")
    device = str(choose_device(args.device))
    train(args.base, args.data, args.output, work, recipe, device=device, workers=args.workers)
    print(args.output)
    return 0
