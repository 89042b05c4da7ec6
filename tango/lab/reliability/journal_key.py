"""R5: everything that an answer depends on is part of the journal's key; tested on a journal, change by change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints
from unittest import mock

from tango import mini
from tango.errors import TangoError
from tango.lab.reliability.workers import Bench, Row, counted, question_about, run_all
from tango.methods import pruner_class

Change: TypeAlias = dict[str, Any]  # settings, and the values that they are changed to
_BASE: Change = {"method": "tango", "options": {"retention_ratio": 0.2}}
_ANSWERER = ("num_frames", "dtype", "attn_implementation", "video_backend", "time_instruction")
_QUESTION = ("text", "prefill", "max_new_tokens", "generate_options", "frames_of_question")
CHANGES: dict[str, Change] = {
    "method": {"method": "uniform"},
    "saliency": {"saliency": "attn"},
    "positions": {"positions": "kept"},
    "reuse": {"reuse": True},
    "layer pruner": {"layer_pruner": "fastv-merge", "layer_options": {"layer": 2}},
    "number of frames": {"num_frames": 4},
    "dtype": {"dtype": "bfloat16"},
    "attention": {"attn_implementation": "eager"},
    "decoder": {"video_backend": "torchcodec"},
    "time instruction": {"time_instruction": "frames"},
    "prompt": {"text": "which color is last"},
    "prefill": {"prefill": "red"},
    "new tokens": {"max_new_tokens": 1},
    "beams": {"generate_options": {"num_beams": 2}},
    "frames of the question": {"frames_of_question": 5},
    "content of the video": {"clip": 1},
    "weights of the model": {"weights": True},
    "version of Tango": {"version": "tango"},
    "version of transformers": {"version": "transformers"},
}


def other_value(field: str, cls: type) -> object:
    """A valid value of a method's option other than its default.

    Raises:
        LookupError: there is no rule for its type.
    """
    default, hint = getattr(cls, field), get_type_hints(cls)[field]
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is Literal:
        return next(value for value in kinds if value != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default * 1.25 if default > 1 else default / 2
    if float in kinds:
        return 0.5
    if any(get_origin(kind) is tuple for kind in kinds):
        return [44, 42, 42]
    raise LookupError(f"no other value for {field}: {hint}")


def changes() -> dict[str, Change]:
    """All changes to try: those above and one for every option of the method."""
    cls = pruner_class("tango")
    options = {f.name: {"options": {"retention_ratio": 0.2, f.name: other_value(f.name, cls)}} for f in fields(cls)}
    return {**CHANGES, **{f"option {name}": change for name, change in options.items()}}


def ask(folder: Path, journal: Path, change: Change) -> str:
    """Ask a question through a journal: "cached" if the answer came from it, else "computed", or "refused"."""
    from tango.evaluation import Answerer, MethodConfig

    clip, model = folder / f"clip_{journal.name}.mp4", folder / f"model_{journal.name}"
    shutil.copy(mini.clip_file(folder, change.get("clip", 0)), clip)
    if not model.is_dir():
        shutil.copytree(mini.folder(), model)
    if change.get("weights"):
        _change_weights(model)
    asked = {"text": "which color is first", "max_new_tokens": 3, **{k: v for k, v in change.items() if k in _QUESTION}}
    question = question_about(clip, asked.pop("text"), num_frames=asked.pop("frames_of_question", None), **asked)
    own = {f.name: change[f.name] for f in fields(MethodConfig) if f.init and f.name in change}
    options: Change = {"num_frames": 8, "dtype": "float32", "device": "cpu"}
    options |= {k: v for k, v in change.items() if k in _ANSWERER}
    with ExitStack() as stack:
        if "version" in change:
            stack.enter_context(_another_version(change["version"]))
        try:
            method = MethodConfig(**{**_BASE, **own})
            answerer = Answerer(str(model), method=method, journal=journal, local_files_only=True, **options)
        except TangoError as error:
            if "journal" not in str(error):
                raise
            return "refused"
        answer = stack.enter_context(answerer).answer(question)
    return "cached" if answer.cached else "computed"


def _change_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})


def _another_version(of: str) -> AbstractContextManager[object]:
    from tango.evaluation import records

    if of == "tango":
        return mock.patch("tango.__version__", "0.0.0")
    stock = records.version
    return mock.patch.object(records, "version", lambda package: "0.0.0" if package == of else stock(package))


def try_change(folder: Path, number: int, change: Change) -> list[str]:
    """Ask a question, ask it again, then with the change; the outcomes of the three."""
    journal = folder / f"journal_{number}"
    return [ask(folder, journal, {}), ask(folder, journal, {}), ask(folder, journal, change)]


def check_key(bench: Bench) -> Iterator[Row]:
    """R5: the same question is answered from the journal, but not once anything has changed."""
    bench, tried = replace(bench, limit_s=600), changes()
    folder = bench.folder / "keys"
    folder.mkdir(exist_ok=True)
    for clip in (0, 1):
        mini.clip_file(folder, clip)
    jobs = [partial(try_change, folder, number, change) for number, change in enumerate(tried.values())]
    results = list(zip(tried, run_all(jobs, bench), strict=True))
    broken = [
        f"{name}: {o.message or o.value}"
        for name, o in results
        if o.kind != "ok" or o.value[:2] != ["computed", "cached"]
    ]
    yield counted("R5", "the same question again: from the journal", len(tried), broken)
    stale = [name for name, o in results if o.kind == "ok" and o.value[2] == "cached"]
    yield counted("R5", "one thing changed: answered from the journal nevertheless", len(tried), stale)
