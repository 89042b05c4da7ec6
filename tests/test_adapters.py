"""Rules for the adapters to evaluation toolkits that any environment can check: public names only, short files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tango
import tango.evaluation
import tango.mini

ROOT = Path(tango.__file__).parent.parent
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("lmms-eval", "VLMEvalKit")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PUBLIC = {package.__name__: set(package.__all__) for package in (tango, tango.evaluation, tango.mini)}


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
            private = {alias.name for alias in node.names} - PUBLIC[node.module] - {"evaluation", "mini"}
            assert not private, f"line {node.lineno}: {private}"


@pytest.mark.parametrize("name", FILES)
def test_is_short_and_says_what_it_is(name: str):
    text = FILES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))
