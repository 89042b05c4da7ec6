"""Errors reach the parent of a process as they were raised."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tango
from tango.errors import TangoError, UnknownNameError, VideoReadError

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "VideoReadError": ("a.mp4", "it is damaged; copy it again"),
    "UnknownNameError": ("method", "tnago", ["tango", "fastv"]),
}


def subclasses(cls: type[TangoError]) -> Iterator[type[TangoError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


def every_error() -> list[type[TangoError]]:
    for module in pkgutil.walk_packages(tango.__path__, "tango."):
        if not module.name.startswith("tango.batched.kernels.") and not module.name.endswith(
            "__main__"
        ):  # those need Triton
            importlib.import_module(module.name)
    return sorted({c for c in subclasses(TangoError) if c.__module__.startswith("tango.")}, key=lambda c: c.__name__)


def test_all_of_them_survive_pickle_and_copy() -> None:
    found = every_error()
    assert {"TangoError", "VideoReadError", "UnknownNameError", "PromptError"} <= {cls.__name__ for cls in found}
    for cls in found:
        error = cls(*ARGUMENTS.get(cls.__name__, ("a message",)))
        error.note = ["kept"]  # type: ignore[attr-defined]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(error, protocol))
            assert (type(again), str(again), again.args, vars(again)) == (cls, str(error), error.args, vars(error))
        for twin in (copy.copy(error), copy.deepcopy(error)):
            assert (type(twin), str(twin), vars(twin)) == (cls, str(error), vars(error))


def test_fields_come_along() -> None:
    again = pickle.loads(pickle.dumps(VideoReadError("a.mp4", "why")))
    assert (again.path, again.reason) == ("a.mp4", "why")
    assert isinstance(again, OSError)
    assert "Did you mean 'tango'?" in str(pickle.loads(pickle.dumps(UnknownNameError("method", "tnago", ["tango"]))))


def count_frames(path: Path) -> int:
    return tango.read_video(path, num_frames=1).num_source_frames


def test_one_bad_video_does_not_break_a_pool(tmp_path: Path) -> None:
    missing = tmp_path / "missing.mp4"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for _ in range(2):  # the pool still works after the first
            with pytest.raises(VideoReadError, match="no such file") as caught:
                pool.submit(count_frames, missing).result(timeout=60)
            assert caught.value.path == str(missing)
    with context.Pool(1) as workers, pytest.raises(VideoReadError, match="no such file"):
        workers.apply_async(count_frames, (missing,)).get(timeout=60)
