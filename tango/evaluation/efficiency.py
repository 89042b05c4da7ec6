"""`Efficiency`: the table of a run, with the eight rows of the paper's release, over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tango.evaluation.questions import Answer

OTHER = ("project", "prune", "splice")
TTFT = ("tower", *OTHER, "between", "prefill")  # from the start of the tower to the end of the prefill
MODEL = ("tower", *OTHER, "prefill", "decoding")
_TOKENS = ("input_tokens", "output_tokens", "visual_tokens_before", "visual_tokens_after", "mean_visual_tokens")
_COUNTS = ("samples", "failures", "resumed", "measured", "decoded_tokens", *_TOKENS)


@dataclass(kw_only=True)
class Efficiency:
    """Sums over the answers of a run, from which the table follows.

    Answers from a journal count with the times recorded there, so the table of a resumed run covers the whole run. An
    answer with an error only counts as a failure. Times on a GPU are measured by its events, times on a CPU by the
    clock.

    Example:
        >>> answers = [Answer(text="red", elapsed_ms=500), Answer(text="blue", elapsed_ms=700)]
        >>> Efficiency.of(answers, device="cpu").rows()["Total_runtime (s)"]
        1.2
    """

    device: str  # "cuda" or "cpu"; decides what peak memory means
    samples: int = 0
    failures: int = 0
    resumed: int = 0  # answers from a journal
    measured: int = 0  # answers with stages of the model; there are none for questions without a video
    output_tokens: int = 0
    decoded_tokens: int = 0  # new tokens but the first of each answer, which belongs to the prefill
    input_tokens: int = 0
    visual_tokens_before: int = 0
    visual_tokens_after: int = 0
    mean_visual_tokens: float = 0  # averaged over the LLM's layers
    elapsed_ms: list[float] = field(default_factory=list)  # one entry per process
    peak_bytes: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, answers: Iterable[Answer], *, device: str) -> Efficiency:
        """Sum up the answers of one process."""
        total = cls(device=device, elapsed_ms=[0.0])
        for answer in answers:
            total.add(answer)
        return total

    def add(self, answer: Answer) -> None:
        """Count one more answer of this process."""
        self.samples += 1
        self.elapsed_ms[0] += answer.elapsed_ms
        self.resumed += answer.cached
        self.peak_bytes = max(self.peak_bytes, answer.peak_bytes)
        if answer.error is not None:
            self.failures += 1
            return
        self.measured += "prefill" in answer.stages_ms
        self.output_tokens += answer.output_tokens
        if "decoding" in answer.stages_ms:
            self.decoded_tokens += answer.output_tokens - 1
        self.input_tokens += answer.input_tokens
        self.visual_tokens_before += answer.visual_tokens_before
        self.visual_tokens_after += answer.visual_tokens_after
        self.mean_visual_tokens += answer.mean_visual_tokens
        for stage, spent in answer.stages_ms.items():
            self.stages_ms[stage] = self.stages_ms.get(stage, 0.0) + spent

    def to_dict(self) -> dict[str, object]:
        """Rows, means and sums as plain values, which `merge` reads."""
        return {"rows": self.rows(), "means": self.means(), "sums": dict(vars(self)), "note": self.note}

    @classmethod
    def merge(cls, parts: Sequence[Mapping[str, Any]]) -> Efficiency:
        """Sum up all processes, from the `to_dict` of each (collected by `torch.distributed.all_gather_object`)."""
        sums = [part["sums"] for part in parts]
        whole = cls(device=sums[0]["device"], elapsed_ms=[ms for part in sums for ms in part["elapsed_ms"]])
        whole.peak_bytes = max(part["peak_bytes"] for part in sums)
        for name in _COUNTS:
            setattr(whole, name, sum(part[name] for part in sums))
        for stage in dict.fromkeys(stage for part in sums for stage in part["stages_ms"]):
            whole.stages_ms[stage] = sum(part["stages_ms"].get(stage, 0.0) for part in sums)
        return whole

    def rows(self) -> dict[str, float | None]:
        """The eight rows; None where nothing was measured.

        Total_runtime: time of the slowest process by the clock. Total_GPU_runtime: model time (tower to decoding) per
        process. Peak_mem: the most of any process, in 2^30 bytes. The averages are over the measured samples. Other:
        projector, pruning and splicing. Total_TTFT: the sum of the three rows above it, as in the release; it leaves
        out the time between these stages, which `means()["ttft_ms"]` includes. Decoding throughput: without the first
        token of each answer.
        Source: the table in the README of the release of arXiv:2604.09547, whose rows have these names.
        """
        spent = self.stages_ms

        def mean(*stages: str) -> float | None:
            return sum(spent.get(stage, 0.0) for stage in stages) / self.measured if self.measured else None

        decoding_s = spent.get("decoding", 0.0) / 1e3
        return {
            "Total_runtime (s)": max(self.elapsed_ms, default=0.0) / 1e3,
            "Total_GPU_runtime (s)": sum(spent.get(stage, 0.0) for stage in MODEL) / 1e3 / max(1, len(self.elapsed_ms)),
            "Peak_mem (GB)": self.peak_bytes / 2**30,
            "Avg_ViT_Time (ms)": mean("tower"),
            "Avg_Other_Time (ms)": mean(*OTHER),
            "Avg_LLM_Prefill_Time (ms)": mean("prefill"),
            "Avg_Total_TTFT (ms)": mean("tower", *OTHER, "prefill"),
            "Avg_Decoding_Throughput (token/s)": self.decoded_tokens / decoding_s if decoding_s else None,
        }

    def means(self) -> dict[str, float]:
        """Mean tokens per sample without error, and mean time of every stage per measured sample.

        If anything was measured, `ttft_ms` is the time to the first token: from the start of the tower to the end of
        the prefill, the time between the stages included. Reading and preprocessing come before it; choosing the token
        from the prefill's output belongs to decoding.
        """
        count = max(1, self.samples - self.failures)
        means = {name: getattr(self, name) / count for name in _TOKENS}
        means |= {f"{stage}_ms": spent / max(1, self.measured) for stage, spent in self.stages_ms.items()}
        if self.measured:
            means["ttft_ms"] = sum(self.stages_ms.get(stage, 0.0) for stage in TTFT) / self.measured
        return means

    @property
    def note(self) -> str:
        """How times and memory were measured."""
        if self.device == "cpu":
            return "measured on a CPU: all times by the clock, memory is the process's peak RSS"
        return "model times by events of the GPU, memory is the peak that torch allocated on it"

    def table(self) -> str:
        """The rows as a Markdown table, followed by what they cover."""
        lines = ["| Metric | Value |", "|---|---|"]
        lines += [f"| {name} | {'-' if value is None else f'{value:.2f}'} |" for name, value in self.rows().items()]
        means = self.means()
        if "ttft_ms" in means:
            lines.append(f"{means['ttft_ms']:.2f} ms to the first token, with what lies between the stages")
        tokens = f"{means['visual_tokens_before']:.0f} -> {means['visual_tokens_after']:.0f} visual tokens"
        if means["mean_visual_tokens"] < means["visual_tokens_after"]:
            tokens += f" ({means['mean_visual_tokens']:.0f} averaged over the layers)"
        lines.append(f"{self.samples} samples, {self.failures} failed, {self.resumed} from the journal; {tokens} each")
        lines.append(f"({self.note})")
        return "\n".join(lines)
