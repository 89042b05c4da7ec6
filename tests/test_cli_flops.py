"""`tango flops` as a user meets it."""

from __future__ import annotations

import json

import pytest

from tango.cli import main
from tango.ops.llm_shapes import PUBLISHED_SHAPES
from tango.toy import write_checkpoint
from tests import tiny


def flops(capsys, *arguments: str) -> dict:
    assert main(["flops", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_papers_model(capsys):
    record = flops(capsys, "--shape", "llava-onevision-7b", "--frames", "32", "--retention-ratio", "0.1")
    assert record["all"]["visual_tokens"] == 6272
    assert record["all"]["newline_tokens"] == record["pruned"]["newline_tokens"] == 1
    assert record["pruned"]["visual_tokens"] == 627
    assert record["pruned"]["prompt_tokens"] == 627 + 1 + 120
    assert record["all"]["kv_cache_bytes"] == 6393 * 28 * 2 * 4 * 128 * 2
    assert 0.09 < record["flops_ratio"] < 0.11


def test_pruning_at_a_layer(capsys):
    options = ["--shape", "llava-onevision-7b", "--layer", "18", "--layer-retention-ratio", "0.5"]
    record = flops(capsys, *options, "--mean-retention-ratio", "0.1")
    assert record["retention_ratio"] == pytest.approx(0.121739, abs=1e-6)
    assert record["mean_retention_ratio"] == pytest.approx(0.1)
    visual = round(6272 * record["retention_ratio"])
    assert record["pruned"]["last_layer_tokens"] == 120 + round((visual + 1) / 2)


@pytest.mark.parametrize("shape", PUBLISHED_SHAPES)
def test_keeping_all_saves_nothing(capsys, shape):
    record = flops(capsys, "--shape", shape, "--retention-ratio", "1")
    assert record["all"] == record["pruned"]
    assert record["flops_ratio"] == 1


def test_experts_and_linear_attention_are_named(capsys):
    assert main(["flops", "--shape", "qwen3.5-35b-a3b", "--frames", "32"]) == 0
    out = capsys.readouterr().out
    assert (
        "counted: 8 of 256 experts a token, and the 512 channels that all tokens share; linear attention in 30" in out
    )
    record = flops(capsys, "--shape", "qwen3.5-35b-a3b", "--frames", "32")
    assert record["all"]["kv_cache_bytes"] == 10 * (16 * 196 + 120) * 2 * 2 * 256 * 2  # of 10 layers
    assert flops(capsys, "--shape", "qwen3-vl-8b")["counted"] is None
    # Active weights of Qwen3-30B-A3B are 3.3 billion, 0.3 of them the embedding; attention comes on top.
    record = flops(capsys, "--shape", "qwen3-vl-30b-a3b", "--frames", "2", "--text-tokens", "0")
    assert 2 * 196 * 2.6e9 < record["all"]["prefill_flops"] < 2 * 196 * 3.1e9


def test_newlines_of_rows_without_tokens_go(capsys):
    record = flops(capsys, "--shape", "llava-video-7b", "--retention-ratio", "0.1")
    assert record["all"]["prompt_tokens"] == 64 * 13 * 14 + 120
    assert record["pruned"]["newline_tokens"] == pytest.approx(9.9 * 64, rel=0.01)  # random places touch 9.9 of 13 rows


def test_a_checkpoint_and_its_table(capsys, tmp_path):
    write_checkpoint(tmp_path, image_size=tiny.IMAGE_SIZE, width=32)
    record = flops(capsys, "--model", str(tmp_path), "--frames", "6")
    assert record["all"]["visual_tokens"] == 96
    assert record["pruned"]["visual_tokens"] == 10
    assert main(["flops", "--model", str(tmp_path), "--frames", "6", "--layer", "2"]) == 0
    out = capsys.readouterr().out
    assert "visual tokens" in out
    assert "0.0750" in out  # 0.1 * (2 + 2 * 0.5) / 4


MISTAKES = {
    "layer": (["--shape", "llava-onevision-7b", "--layer", "28"], "1..27"),
    "ratio": (["--shape", "llava-onevision-7b", "--retention-ratio", "0"], "must lie in (0, 1]"),
    "layer ratio alone": (["--shape", "llava-onevision-7b", "--layer-retention-ratio", "0.5"], "needs --layer"),
    "linear attention": (["--shape", "qwen3.5-9b", "--layer", "8"], "--layer is for models without linear attention"),
    "mean": (["--shape", "llava-onevision-7b", "--layer", "1", "--mean-retention-ratio", "0.9"], "out of reach"),
    "frames": (["--shape", "llava-onevision-7b", "--frames", "0"], "at least 1"),
    "model": (["--model", "nowhere"], "no checkpoint at 'nowhere'"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(["flops", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
