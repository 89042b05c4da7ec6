"""Where a run's files go, and what is said at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.utils import get_datetime_str
from loguru import logger

from tango import TangoError
from tango.evaluation import Efficiency, environment, write_json
from tango_lmms_eval.records import write_when_scored
from tango_lmms_eval.settings import Settings

# Rows of the table by the names under which lmms-eval's throughput summary has them (with "avg_" in front). The time to
# the first token, as "ttft_ms", is the true one, not the table's sum.
_SUMMARY = {
    "Peak_mem (GB)": "peak_mem_gib",
    "Avg_ViT_Time (ms)": "vit_ms",
    "Avg_Other_Time (ms)": "other_ms",
    "Avg_LLM_Prefill_Time (ms)": "prefill_ms",
    "Avg_Decoding_Throughput (token/s)": "decoding_tokens_per_s",
}


@dataclass(frozen=True)
class Output:
    """The files of one run. `folder` is where lmms-eval puts its results; None where it writes none."""

    folder: Path | None
    journal: Path | None
    time: str  # as lmms-eval writes times into file names

    @classmethod
    def of(cls, requests: list[Instance], settings: Settings) -> Output:
        """Find out where lmms-eval writes.

        A model is not told, but requests carry a method of their task, and tasks know the command line.

        Raises:
            TangoError: lmms-eval's own cache is to be used.
        """
        told = [getattr(getattr(request.args[index], "__self__", None), "args", None)
                for request in requests[:1] for index in (1, 2)]  # fmt: skip
        arguments = next((args for args in told if args is not None), None)
        if getattr(arguments, "use_cache", None):
            raise TangoError(
                "--use_cache would give one method's answers to another, for it does not know WRAPPER and TANGO_*; "
                "leave it out: the journal keeps finished answers"
            )
        folder, time = None, get_datetime_str()
        if arguments is not None and arguments.output_path:
            tracker = GeneralConfigTracker()
            tracker.log_experiment_args(arguments.model, arguments.model_args, "", "", False)
            folder = Path(arguments.output_path) / tracker.model_name_sanitized
            time = get_datetime_str(timezone=arguments.timezone)
        journal = Path(settings.journal) if settings.journal else None
        if settings.journal == "" and folder is not None:
            journal = folder / "journals" / settings.name
        return cls(folder, journal, time.replace(":", "-"))

    def write(self, config: dict[str, Any], efficiency: Efficiency, answers: list[dict[str, Any]]) -> None:
        """Print the table, write it beside the results, see to the records, and give lmms-eval its numbers.

        Args:
            answers: task and document of every question, and the error of one without an answer or else its tokens.
        """
        rows, means = efficiency.rows(), efficiency.means()
        print(efficiency.table(), flush=True)
        if efficiency.failures:
            logger.warning(f"{efficiency.failures} of {efficiency.samples} samples failed; they count as wrong")
        if efficiency.resumed:
            logger.warning(
                f"{efficiency.resumed} of {efficiency.samples} answers and their times are those in {self.journal}; "
                "remove it, or add journal=none to --model_args, to have them computed again"
            )
        if self.folder is not None:
            path = self.folder / f"{self.time}_efficiency.json"
            failed = [answer for answer in answers if "error" in answer]
            measured = {**efficiency.to_dict(), "failed_questions": failed}
            record = {"config": config, "environment": environment(), **measured}
            write_json(path, record)
            logger.info(f"Efficiency written to {path}")
            write_when_scored(self.folder, record, {(answer["task"], answer["doc_id"]): answer for answer in answers})
        seconds = rows["Total_runtime (s)"] or 0.0
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=efficiency.output_tokens,
            avg_speed=efficiency.output_tokens / seconds if seconds else 0.0,
            additional_metrics={
                "total_requests": efficiency.samples,
                "failures": efficiency.failures,
                "visual_tokens_before": means["visual_tokens_before"],
                "visual_tokens_after": means["visual_tokens_after"],
                **{name: rows[row] for row, name in _SUMMARY.items() if rows[row] is not None},
                **({"ttft_ms": means["ttft_ms"]} if "ttft_ms" in means else {}),
            },
        )
