"""What the shell scripts of VLMEvalKit/ start, seen by a stand-in for the interpreter."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

KIT = Path(__file__).parents[2] / "VLMEvalKit"
OV = "--config run_config/llava_onevision_7b.json --work-dir outputs"


def start(folder: Path, script: str, *flags: str, code: int = 0, **variables: str) -> tuple[int, list[str], str]:
    """Exit code, command lines of the interpreter (its GPUs in front), and stderr."""
    log, python = folder / "log", folder / "python"
    python.write_text(f'#!/bin/sh\necho "${{CUDA_VISIBLE_DEVICES-all}}: $*" >>{log}\n[ "$1" = -m ] || exit {code}\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run(["bash", KIT / script, *flags], env=environment, cwd=folder, capture_output=True, text=True)
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


def test_every_method_at_every_ratio_by_default(tmp_path: Path) -> None:
    code, lines, _ = start(tmp_path, "run_eval_ov.sh")
    assert code == 0
    ratios = [f": run.py {OV} --method tango --retain-ratio {ratio}" for ratio in ("0.1", "0.15", "0.2")]
    assert lines == [f": run.py {OV} --method none", *ratios, ": -m tango_vlmeval.summary outputs"]


def test_llava_video_is_pruned_again_at_layer_18(tmp_path: Path) -> None:
    _, lines, _ = start(tmp_path, "run_eval_video.sh", RATIOS="0.1")
    shared = "--config run_config/llava_video_7b.json --work-dir outputs"
    assert lines[:2] == [
        f": run.py {shared} --method none",
        f": run.py {shared} --method tango --retain-ratio 0.1 --pruned-layer 18",
    ]
    (tmp_path / "log").unlink()
    _, lines, _ = start(tmp_path, "run_eval_video.sh", RATIOS="0.1", METHODS="tango", PRUNED_LAYER="")
    assert lines[0] == f": run.py {shared} --method tango --retain-ratio 0.1"


def test_all_settings_reach_the_runner(tmp_path: Path) -> None:
    variables = {
        "METHODS": "uniform", "RATIOS": "0.3", "MODEL": "/m", "OUTPUT": "o", "LIMIT": "5",
        "DATASETS": "MVBench Video-MME", "EXTRA": "--batch-size 4",
    }  # fmt: skip
    _, lines, _ = start(tmp_path, "run_eval_qwen.sh", "--reuse", **variables)
    assert lines == [
        ": run.py --config run_config/qwen2_5_vl_7b.json --work-dir o --pretrained /m --limit 5"
        " --datasets MVBench Video-MME --batch-size 4 --reuse --method uniform --retain-ratio 0.3",
        ": -m tango_vlmeval.summary o",
    ]


@pytest.mark.parametrize(
    ("variables", "start_of_line"),
    [
        ({"GPUS": ""}, ": run.py"),
        ({"GPUS": "3"}, "3: run.py"),
        ({"GPUS": "0,2,5"}, "0,2,5: -m torch.distributed.run --standalone --nproc-per-node 3 run.py"),
        ({"CUDA_VISIBLE_DEVICES": "1,4"}, "1,4: -m torch.distributed.run --standalone --nproc-per-node 2 run.py"),
        ({"PROCESSES": "2"}, ": -m torch.distributed.run --standalone --nproc-per-node 2 run.py"),
        (
            {"GPUS": "0,1", "NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "first"},
            "0,1: -m torch.distributed.run --nnodes 4 --node-rank 2 --master-addr first --master-port 29500"
            " --nproc-per-node 2 run.py",
        ),
    ],
)
def test_one_process_per_gpu(tmp_path: Path, variables: dict[str, str], start_of_line: str) -> None:
    _, lines, _ = start(tmp_path, "run_eval_ov.sh", METHODS="none", **variables)
    assert lines[0] == f"{start_of_line} {OV} --method none"
    assert len(lines) == (1 if "NNODES" in variables else 2), "the first node prints the table"


def test_a_failed_run_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    code, lines, errors = start(tmp_path, "run_eval_ov.sh", code=1, RATIOS="0.1 0.2")
    assert (code, len(lines)) == (1, 4)
    assert errors.splitlines()[-3:] == [
        "failed: --method none",
        "failed: --method tango --retain-ratio 0.1",
        "failed: --method tango --retain-ratio 0.2",
    ]


def test_a_mistake_ends_it_at_once(tmp_path: Path) -> None:
    code, lines, _ = start(tmp_path, "run_eval_ov.sh", code=2)
    assert (code, len(lines)) == (2, 1)


def test_the_shared_part_alone_says_what_to_start(tmp_path: Path) -> None:
    code, lines, errors = start(tmp_path, "run_eval.sh")
    assert code != 0
    assert not lines
    assert "start one of run_eval_ov.sh, run_eval_video.sh and run_eval_qwen.sh" in errors
