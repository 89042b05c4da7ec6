"""The efficiency table: definitions by hand, merging over processes."""

from __future__ import annotations

import json

import pytest

from tango.evaluation import Answer, Efficiency

STAGES = {
    "read": 1000.0, "preprocess": 500.0, "tower": 30.0, "project": 3.0, "prune": 5.0, "splice": 2.0, "between": 1.0,
    "prefill": 20.0, "decoding": 80.0,
}  # fmt: skip
FIRST = Answer(
    text="a", input_tokens=50, output_tokens=5, visual_tokens_before=100, visual_tokens_after=10,
    mean_visual_tokens=6.0, stages_ms=STAGES, elapsed_ms=400.0, peak_bytes=3 * 2**30,
)  # fmt: skip
# One token: the prefill gave it, nothing was decoded.
SHORT = Answer(
    text="b", input_tokens=30, output_tokens=1, visual_tokens_before=50, visual_tokens_after=20,
    mean_visual_tokens=20.0, cached=True,
    stages_ms={**{k: v for k, v in STAGES.items() if k != "decoding"}, "tower": 50.0}, elapsed_ms=100.0,
    peak_bytes=2**30,
)  # fmt: skip
FAILED = Answer(text="", error="VideoReadError: no", elapsed_ms=10.0)
ROWS = {
    "Total_runtime (s)": 0.51,
    "Total_GPU_runtime (s)": (30 + 10 + 20 + 80 + 50 + 10 + 20) / 1000,
    "Peak_mem (GB)": 3.0,
    "Avg_ViT_Time (ms)": 40.0,
    "Avg_Other_Time (ms)": 10.0,
    "Avg_LLM_Prefill_Time (ms)": 20.0,
    "Avg_Total_TTFT (ms)": 70.0,
    "Avg_Decoding_Throughput (token/s)": 4 / 0.08,
}


def test_the_rows_are_what_their_definitions_say():
    efficiency = Efficiency.of([FIRST, SHORT, FAILED], device="cpu")
    assert efficiency.rows() == pytest.approx(ROWS)
    assert list(efficiency.rows()) == list(ROWS)
    assert (efficiency.samples, efficiency.failures, efficiency.resumed) == (3, 1, 1)
    means = efficiency.means()
    assert (means["visual_tokens_before"], means["visual_tokens_after"], means["output_tokens"]) == (75, 15, 3)
    assert (means["read_ms"], means["input_tokens"], means["mean_visual_tokens"]) == (1000, 40, 13)


def test_the_time_to_the_first_token_leaves_nothing_out_but_what_comes_before_the_tower():
    """The table's row is the sum of its three parts, as in the release."""
    efficiency = Efficiency.of([FIRST, SHORT, FAILED], device="cpu")
    assert efficiency.means()["ttft_ms"] == efficiency.rows()["Avg_Total_TTFT (ms)"] + 1 == 71
    assert efficiency.means()["between_ms"] == 1
    assert "\n71.00 ms to the first token, with what lies between the stages\n" in efficiency.table()
    assert "ttft_ms" not in Efficiency.of([FAILED], device="cpu").means()


def test_processes_are_merged_by_their_plain_dictionaries():
    parts = [Efficiency.of(answers, device="cuda") for answers in ([FIRST, FAILED], [SHORT], [])]
    merged = Efficiency.merge(json.loads(json.dumps([part.to_dict() for part in parts])))
    whole = Efficiency.of([FIRST, SHORT, FAILED], device="cuda").rows()
    whole["Total_runtime (s)"] = 0.41  # the slowest
    whole["Total_GPU_runtime (s)"] /= 3  # per process
    assert merged.rows() == pytest.approx(whole)
    assert merged.means() == pytest.approx(Efficiency.of([FIRST, SHORT, FAILED], device="cuda").means())
    assert (merged.samples, merged.failures, merged.resumed) == (3, 1, 1)
    assert Efficiency.merge([merged.to_dict()]).to_dict() == merged.to_dict()


def test_answers_without_a_video_are_in_no_average_of_times():
    text_only = Answer(text="c", output_tokens=4, stages_ms={"read": 0.0, "preprocess": 1.0})
    rows = Efficiency.of([FIRST, SHORT, FAILED, text_only], device="cpu").rows()
    assert rows == pytest.approx(ROWS)


def test_the_table_has_eight_rows_and_says_what_it_covers():
    table = Efficiency.of([FIRST, SHORT, FAILED], device="cpu").table()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:10]] == list(ROWS)
    assert "| Avg_Decoding_Throughput (token/s) | 50.00 |" in table
    assert "3 samples, 1 failed, 1 from the journal; 75 -> 15 visual tokens (13 averaged over the layers) each" in table
    assert "peak RSS" in table
    assert "RSS" not in Efficiency.of([FIRST], device="cuda").table()


def test_nothing_measured_is_no_number():
    efficiency = Efficiency.of([FAILED], device="cpu")
    assert efficiency.rows()["Avg_Total_TTFT (ms)"] is None
    assert efficiency.rows()["Avg_Decoding_Throughput (token/s)"] is None
    assert "| Avg_ViT_Time (ms) | - |" in efficiency.table()
    assert "1 samples, 1 failed" in efficiency.table()
    json.dumps(Efficiency.merge([efficiency.to_dict()]).to_dict(), allow_nan=False)
