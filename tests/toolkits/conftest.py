"""What tests with the evaluation toolkits share. scripts/test_toolkits.sh runs them, in an environment of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.toolkits.checkpoints import write_clips, write_llava, write_qwen

HERE = Path(__file__).parent
INSTALLED = all(find_spec(name) for name in ("lmms_eval", "vlmeval"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--need-toolkits", action="store_true", help="fail, not skip, where the toolkits are missing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INSTALLED or config.getoption("need_toolkits", False):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs lmms-eval and VLMEvalKit: bash scripts/test_toolkits.sh"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny checkpoints that answer A to D: `llava-ov`, `llava-video`, `qwen2.5-vl`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_llava(folder / "llava-ov")
    write_llava(folder / "llava-video", video=True)
    write_qwen(folder / "qwen2.5-vl")
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with short videos, named as in `checkpoints.CLIPS`, and `broken.mp4`, which cannot be read."""
    return write_clips(tmp_path_factory.mktemp("clips"))
