"""Rules for the adapters to evaluation toolkits that any environment can check: public names only, short files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tango
import tango.evaluation
import tango.mini
import tango.report

ROOT = Path(tango.__file__).parent.parent
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("lmms-eval", "VLMEvalKit")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PUBLIC = {package.__name__: set(package.__all__) for package in (tango, tango.evaluation, tango.mini, tango.report)}


def test_the_rules_see_the_files():
    assert {"lmms-eval/tango_lmms_eval/models.py", "VLMEvalKit/run.py"} <= FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_imports_public_names_of_tango_only(name: str):
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            used = {alias.name for alias in node.names if alias.name.split(".")[0] == "tango"}
            assert used <= PUBLIC.keys(), f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tango":
            assert node.module in PUBLIC, f"line {node.lineno}: {node.module}"
            private = {alias.name for alias in node.names} - PUBLIC[node.module] - {"evaluation", "mini", "report"}
            assert not private, f"line {node.lineno}: {private}"


@pytest.mark.parametrize("name", FILES)
def test_is_short_and_says_what_it_is(name: str):
    text = FILES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("other", [None, "", "raise ImportError('a control system')"], ids=["none", "other", "broken"])
@pytest.mark.parametrize("package", ["lmms-eval/tango_lmms_eval", "VLMEvalKit/tango_vlmeval"])
def test_says_in_one_line_that_tango_video_is_missing(tmp_path: Path, package: str, other: str | None):
    """Also where the other package called `tango` is there, whatever it does when it is imported."""
    folder, name = package.split("/")
    if other is not None:
        (tmp_path / "tango.py").write_text(other)
    code = f"import sys; sys.path[:0] = [{str(ROOT / folder)!r}, {str(tmp_path)!r}]; import {name}"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.startswith(f"{name} needs tango-video, which is not installed")
    assert run.stderr.count("\n") == 1
    assert "pip install -r requirements.txt" in run.stderr
