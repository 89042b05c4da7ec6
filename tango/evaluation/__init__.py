"""Evaluation: one model with one method answers many questions, with a journal and measurements.

    method = MethodConfig(method="tango", options={"retention_ratio": 0.1})
    with Answerer("lmms-lab/llava-onevision-qwen2-7b-ov", method=method, journal=Path("runs/tango")) as answerer:
        for answer in answerer.answers(questions, progress=True):
            ...
        print(answerer.efficiency().table())

The integrations of evaluation toolkits are built on this package, which needs no toolkit. Each name is imported when
first used.
"""

# ruff: noqa: F401 - imported for type checkers alone

from __future__ import annotations

from typing import TYPE_CHECKING

from tango import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "tango.evaluation.answerer": "Answerer",
        "tango.evaluation.config": "MethodConfig label_of",
        "tango.evaluation.efficiency": "Efficiency",
        "tango.evaluation.journal": "Journal check_journal",
        "tango.evaluation.questions": "Answer Question frames_as_video",
        "tango.evaluation.records": "environment identity",
        "tango.extensions": "import_packages",
        "tango.files": "write_json",
        "tango.methods.base": "read_option",
        "tango.methods.plan": "named_value",
        "tango.processes": "end_with_launcher",
    },
)

if TYPE_CHECKING:
    from tango.evaluation.answerer import Answerer
    from tango.evaluation.config import MethodConfig, label_of
    from tango.evaluation.efficiency import Efficiency
    from tango.evaluation.journal import Journal, check_journal
    from tango.evaluation.questions import Answer, Question, frames_as_video
    from tango.evaluation.records import environment, identity
    from tango.extensions import import_packages
    from tango.files import write_json
    from tango.methods.base import read_option
    from tango.methods.plan import named_value
    from tango.processes import end_with_launcher
