"""A stranger's package in both toolkits, launched as a user would: two methods, one learned, a saliency, a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tango import TangoError
from tests import lmms_checkpoint
from tests.clips import write_clip
from tests.foreign import EXAMPLE, install_example, write_coarse, write_scorer
from tests.toolkits import lmms
from tests.toolkits.checkpoints import answer_with_letters
from tests.toolkits.datasets import write_mlvu

ROOT = Path(__file__).parents[2]
KIT = ROOT / "VLMEvalKit"
DIM = 128  # of the model's features


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the example's family, which answers A to D."""
    model, tokenizer = lmms_checkpoint.twin(), lmms_checkpoint.tiny_tokenizer()
    answer_with_letters(model, tokenizer, seed=3)
    return write_coarse(tmp_path_factory.mktemp("coarse"), model, tokenizer)


def launch(command: list[object], environ: dict[str, str]) -> str:
    words = list(map(str, command))
    done = subprocess.run(words, env=environ, cwd=KIT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_vlmevalkit_runs_a_learned_method_on_a_model_of_the_package(coarse: Path, tmp_path: Path) -> None:
    """The package is installed, so nothing names it."""
    installed = install_example(tmp_path / "site")
    write_mlvu(tmp_path, [write_clip(tmp_path / f"{k}.mp4", num_frames=16).read_bytes() for k in range(2)])
    (tmp_path / "frames").mkdir()
    weights, outputs = write_scorer(tmp_path / "scorer.safetensors", DIM), tmp_path / "outputs"
    environ = lmms.environ(
        tmp_path, HF_HOME=str(tmp_path), LMUData=str(tmp_path / "frames"), CUDA_VISIBLE_DEVICES="",
        PYTHON=sys.executable, PYTHONPATH=os.pathsep.join(map(str, (ROOT, KIT, installed))), MODEL=str(coarse),
        METHODS="scorer", RATIOS="0.5", DATASETS="MLVU_MCQ", LIMIT="3", OUTPUT=str(outputs),
        EXTRA=f"--option weights={weights} --option saliency=key-norm",
    )  # fmt: skip
    launch([sys.executable, "-m", "tango_vlmeval.data", "MLVU_MCQ"], environ)
    launch(["bash", "run_eval_ov.sh"], environ)
    (folder,) = outputs.glob("LLaVA-OneVision-7B-scorer-r0.5-weights*-key-norm-limit3")
    journal = json.loads((folder / "journal" / "config.json").read_text())
    assert set(journal["content"]["weights"]) == {"scorer"}
    assert set(journal["content"]["packages"]) == {"tango_example"}
    found = json.loads((folder / "tango_summary.json").read_text())["datasets"]["MLVU_MCQ_32frame"]
    assert (found["num_questions"], found["num_failures"]) == (3, 0)
    means = found["efficiency"]["means"]
    assert (means["visual_tokens_before"], means["visual_tokens_after"]) == (32 * 4, 32 * 2)
    row = json.loads(launch([sys.executable, "-m", "tango.cli", "runs", "--results", outputs, "--json"], environ))
    assert "scorer" in json.dumps(row)


def test_lmms_eval_runs_a_method_that_the_environment_names(
    coarse: Path, clips: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The package is not installed; TANGO_IMPORT names its modules."""
    root = lmms.write_videomme(tmp_path_factory.mktemp("lmms"), clips)
    command = lmms.command(["accelerate", "launch", "--num_processes=1"], "llava_onevision", coarse, tmp_path)
    named = "tango_example.centre,tango_example.coarse_onevision"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "lmms-eval", EXAMPLE)))
    changes = {"WRAPPER": "centre", "TANGO_IMPORT": named, "TANGO_RETENTION_RATIO": "0.5", "PYTHONPATH": path}
    done = lmms.run([*command, "--limit", "2"], root, tmp_path, **changes)
    assert done.code == 0, done.err
    written = done.efficiency()
    assert written["config"]["method"]["method"] == "centre"
    assert (written["sums"]["samples"], written["sums"]["failures"]) == (2, 0)
    assert (written["means"]["visual_tokens_before"], written["means"]["visual_tokens_after"]) == (8 * 4, 8 * 2)


def test_packages_that_cannot_be_imported_are_refused_by_both() -> None:
    from tango_lmms_eval.settings import read_settings

    with pytest.raises(TangoError, match="cannot import 'not_there': ModuleNotFoundError"):
        read_settings({"pretrained": "x"}, {"TANGO_IMPORT": "not_there", "WRAPPER": "none"})
    command = [sys.executable, "run.py", "--config", "run_config/llava_onevision_7b.json", "--import", "not_there"]
    done = subprocess.run(command, cwd=KIT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("run.py: error: cannot import 'not_there': ModuleNotFoundError")
    assert done.stderr.count("\n") == 1
