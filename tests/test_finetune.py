"""Fine-tuning with the Hugging Face Trainer while pruning is on, as the README runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_loss_falls_and_unseen_clips_are_named():
    command = [sys.executable, str(ROOT / "examples" / "finetune.py"), "--steps", "12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    losses = {int(step): float(loss) for step, loss in re.findall(r"step +(\d+)  loss ([\d.]+)", done.stdout)}
    assert list(losses) == [0, 5, 10, 11]
    assert max(losses[10], losses[11]) < 0.25 * losses[0]
    (right,) = re.findall(r"unseen clips: (\d+) %", done.stdout)
    assert int(right) >= 75  # a guess is right in a quarter of the cases
    assert "64 -> 16 visual tokens" in done.stdout
