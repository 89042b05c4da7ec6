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

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Answer": "tango.evaluation.questions",
    "Answerer": "tango.evaluation.answerer",
    "Efficiency": "tango.evaluation.efficiency",
    "Journal": "tango.evaluation.journal",
    "MethodConfig": "tango.evaluation.config",
    "Question": "tango.evaluation.questions",
    "check_journal": "tango.evaluation.journal",
    "end_with_launcher": "tango.processes",
    "environment": "tango.evaluation.records",
    "identity": "tango.evaluation.records",
    "named_value": "tango.methods.plan",
    "read_option": "tango.methods.base",
    "frames_as_video": "tango.evaluation.questions",
    "import_packages": "tango.extensions",
    "write_json": "tango.files",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from tango.evaluation.answerer import Answerer
    from tango.evaluation.config import MethodConfig
    from tango.evaluation.efficiency import Efficiency
    from tango.evaluation.journal import Journal, check_journal
    from tango.evaluation.questions import Answer, Question, frames_as_video
    from tango.evaluation.records import environment, identity
    from tango.extensions import import_packages
    from tango.files import write_json
    from tango.methods.base import read_option
    from tango.methods.plan import named_value
    from tango.processes import end_with_launcher


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tango.evaluation' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
