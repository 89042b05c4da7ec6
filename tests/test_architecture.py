"""The rules of the house that a machine can check: who imports whom, sizes, and what no file may contain."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tango
import tango.evaluation
import tango.mini
import tango.report

ROOT = Path(tango.__file__).parent
FILES = {path.relative_to(ROOT.parent).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

BASE = {"tango.annotations", "tango.containers", "tango.errors"}
METHOD_BASE = {"tango.extensions", "tango.methods.base", "tango.methods.registry"}
# The rooms, from the ground up: none imports one that stands behind it in this list. "tango" is the package's face.
FLOORS = (
    *(
        "moved",
        "errors",
        "annotations",
        "profiling",
        "processes",
        "files",
        "containers",
        "extensions",
        "video",
        "fingerprints",
    ),
    *("ops", "batched", "methods", "models", "runtime", "tango", "toy"),
    *("report", "mini", "evaluation", "doctor", "lab", "commands", "cli", "__main__"),
)
# Files that match -> what they may import besides the standard library. A name allows what is below it, too.
ALLOWED = {
    r"tango/(annotations|containers|errors)\.py": {"torch", "jaxtyping", *BASE},
    r"tango/extensions\.py": {"tango.errors"},
    r"tango/batched/kernels/(?!__init__).*": {"torch", "triton", *BASE},
    r"tango/batched/kernels/__init__\.py": {"torch"},  # says whether the others can be imported
    r"tango/batched/(?!kernels).*": {"torch", "numpy", "tango.ops", "tango.batched", *BASE},
    r"tango/ops/.*": {"torch", "numpy", "tango.ops", "tango.extensions", *BASE},
    r"tango/methods/base\.py": {"torch", "safetensors", "tango.ops", *BASE},  # safetensors: a learned method's weights
    r"tango/methods/(?!__init__|base|tango).*": {"torch", "numpy", "tango.ops", *BASE, *METHOD_BASE},
    r"tango/methods/tango\.py": {"torch", "numpy", "tango.ops", "tango.batched", *BASE, *METHOD_BASE},
    r"tango/methods/__init__\.py": {"tango.methods"},
    r"tango/__init__\.py": {"tango"},
}
# Files that match -> what they may never import.
FORBIDDEN = {
    r"tango/models/.*": {"tango.methods"},
    r"tango/report/.*": {"torch"},
    r"tango/(?!batched|methods/tango\.py|doctor).*": {"tango.batched"},  # nobody above the method knows it
}
# Where adapters say what the tower of their family is.
TOWERS = {
    "tango/models/fixed_grid.py": {"model.model.vision_tower"},
    "tango/models/gemma4.py": {"model.model.vision_tower"},
    "tango/models/qwen2_5_vl.py": {"model.model.visual"},
    "tango/models/smolvlm.py": {"model.model.vision_model"},
}


def shown(value: object) -> str:
    """Name of a parametrised test: the file alone, or the names it may not import."""
    return value if isinstance(value, str) else "|".join(sorted(value))  # type: ignore[call-overload]


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imports(name: str) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it; `from a import b` counts as a.b if that is a module of ours."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                path = ROOT.parent.joinpath(*full.split("."))
                yield full if path.is_dir() or path.with_suffix(".py").exists() else node.module


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def rules(table: dict[str, set[str]]) -> list[tuple[str, set[str]]]:
    return [(name, names) for pattern, names in table.items() for name in FILES if re.fullmatch(pattern, name)]


@pytest.mark.parametrize(("name", "allowed"), rules(ALLOWED), ids=shown)
def test_imports_only_what_its_layer_may(name: str, allowed: set[str]) -> None:
    modules = {m for m in imports(name) if m.partition(".")[0] not in sys.stdlib_module_names}
    assert {m for m in modules if not within(m, allowed)} == set()


@pytest.mark.parametrize(("name", "forbidden"), rules(FORBIDDEN), ids=shown)
def test_does_not_import_what_lies_above_it(name: str, forbidden: set[str]) -> None:
    assert {m for m in imports(name) if within(m, forbidden)} == set()


def room(module: str) -> str:
    """The part of the house that a module is in; "tango": its face."""
    return [*module.split("."), "tango"][1]


@pytest.mark.parametrize("name", FILES)
def test_imports_nothing_from_a_higher_room(name: str) -> None:
    own = FLOORS.index(room(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")))
    used = {room(module) for module in imports(name) if within(module, {"tango"})}
    if name != "tango/__init__.py":  # hands on names from everywhere, each when it is first used
        assert {other for other in used if FLOORS.index(other) > own} == set()


def modules_of(name: str) -> set[str]:
    return {module for module in imports(name) if within(module, {"tango"})}


def test_no_two_files_import_each_other_in_a_circle() -> None:
    files = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in FILES}
    # A package's face imports what is in the package; that alone ties nobody.
    open_: dict[str, set[str]] = {m: {o for o in modules_of(f) if o in files} for m, f in files.items()}
    faces = {module for module, name in files.items() if name.endswith("__init__.py")}
    open_ = {module: others - faces - {module} for module, others in open_.items() if module not in faces}
    while done := {module for module, others in open_.items() if not others & open_.keys()}:
        open_ = {module: others for module, others in open_.items() if module not in done}
    assert open_ == {}


def test_the_root_holds_few_loose_modules() -> None:
    loose = {name for name in FILES if name.count("/") == 1} - {f"tango/{n}.py" for n in ("__init__", "__main__")}
    assert len(loose) <= 11


def test_the_rules_see_the_files() -> None:
    assert len(rules(ALLOWED)) >= 15
    assert "tango/methods/tango.py" in FILES
    assert "tango.ops.budget" in set(imports("tango/methods/tango.py"))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import tango", {"torch", "transformers", "av", "numpy"}),
        ("import tango; dir(tango); tango.__all__", {"torch", "transformers", "av"}),
        ("import tango.evaluation; dir(tango.evaluation)", {"torch", "transformers", "av", "numpy"}),
        ("import tango.batched", {"triton"}),
        ("import tango.mini; dir(tango.mini)", {"torch", "transformers", "av", "numpy"}),
        (
            "import tango; tango.build_pruner('tango'), tango.VisualTokens",
            {"transformers", "av", "PIL", "tango.models", "triton"},
        ),
    ],
)
def test_imports_no_more_than_needed(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert absent & set(run.stdout.split()) == set()
    assert run.stderr == ""
    assert len(run.stdout.splitlines()) == 1  # nothing else printed


@pytest.mark.parametrize(
    "package", [tango, tango.evaluation, tango.mini, tango.report], ids=lambda package: package.__name__
)
class TestPublicNames:
    def test_resolve(self, package: Any) -> None:
        for name in package.__all__:
            assert getattr(package, name) is not None

    def test_are_sorted_and_unique(self, package: Any) -> None:
        assert list(package.__all__) == sorted(set(package.__all__))
        assert dir(package) == package.__all__

    def test_that_are_unknown_are_attribute_errors(self, package: Any) -> None:
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'prun'"):
            package.prun  # noqa: B018


@pytest.mark.parametrize("name", FILES)
class TestEveryFile:
    def test_has_at_most_500_lines(self, name: str) -> None:
        assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 500

    def test_has_functions_of_at_most_60_lines(self, name: str) -> None:
        functions = [node for node in ast.walk(tree(name)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
        assert {function: lines for function, lines in lengths.items() if lines > 60} == {}

    def test_says_what_it_is(self, name: str) -> None:
        assert ast.get_docstring(tree(name))

    def test_names_no_place_on_somebodys_disk(self, name: str) -> None:
        strings = [n.value for n in ast.walk(tree(name)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        places = re.compile(r"(^|[\s'\"`=(])(/(home|tmp|root|work|mnt|data|Users|scratch)/|[A-Z]:\\)")
        assert [s for s in strings if places.search(s)] == []

    def test_reads_no_environment_variables(self, name: str) -> None:
        uses = {n.attr for n in ast.walk(tree(name)) if isinstance(n, ast.Attribute)} | self.imported_names(name)
        assert uses & {"environ", "environb", "getenv", "putenv"} == set()

    def test_asks_the_adapter_for_the_tower(self, name: str) -> None:
        """But for the small model's training, which knows its own model, adapters alone know where a tower is."""
        accesses = {ast.unparse(node) for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}
        towers = {text for text in accesses if re.search(r"\b(base|model)\.(visual|vision_tower|vision_model)\b", text)}
        assert name.startswith(("tango/lab/training/", "tango/mini/")) or towers == TOWERS.get(name, set())

    def test_unpickles_nothing_and_trusts_no_remote_code(self, name: str) -> None:
        modules = {module.partition(".")[0] for module in imports(name)}
        assert modules & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} == set()
        for call in (n for n in ast.walk(tree(name)) if isinstance(n, ast.Call)):
            given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
            assert not given.get("trust_remote_code", False), call.lineno
            called = ast.unparse(call.func)
            if called.endswith(".from_pretrained") and not called.startswith("PoolingHead."):
                assert given.get("trust_remote_code") is False, call.lineno  # left out, it may ask the user
            assert not given.get("allow_pickle", False), call.lineno
            if ast.unparse(call.func) == "torch.load":
                assert given.get("weights_only") is True, call.lineno

    @staticmethod
    def imported_names(name: str) -> set[str]:
        return {alias.name for n in ast.walk(tree(name)) if isinstance(n, ast.ImportFrom) for alias in n.names}


def strings(source: str) -> set[tuple[int, int]]:
    """Where string constants stand, as (line, column), from 1 on; shape annotations are such."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            for line in lines:
                first = node.col_offset if line == node.lineno else 0
                last = (node.end_col_offset or 0) if line == lines[-1] else 1000
                found |= {(line, column + 1) for column in range(first, last)}
    return found


def undefined_names(paths: list[Path]) -> list[str]:
    """Names that nothing defines, outside of strings: what ruff's F821 says, which shape annotations would drown."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821"]
    command += ["--ignore-noqa", "--output-format", "json", *map(str, paths)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode in (0, 1), told.stderr
    inside = {path: strings(path.read_text()) for path in paths}
    return [
        f"{one['filename']}:{one['location']['row']}: {one['message']}"
        for one in json.loads(told.stdout)
        if (one["location"]["row"], one["location"]["column"]) not in inside[Path(one["filename"])]
    ]


def test_every_name_is_defined(tmp_path: Path) -> None:
    """Linter and type checker are told to overlook unknown names, since they take shape annotations for names."""
    (broken := tmp_path / "broken.py").write_text('def f(x: Float[Tensor, "T N"]):\n    return missing(x)\n')
    assert [line.rpartition(": ")[2] for line in undefined_names([broken])] == [
        "Undefined name `Float`", "Undefined name `Tensor`", "Undefined name `missing`",
    ]  # fmt: skip
    home = ROOT.parent
    folders = ("tango", "VLMEvalKit", "lmms-eval", "examples", "tests")
    ours = [p for folder in folders for p in sorted((home / folder).rglob("*.py")) if "outputs" not in p.parts]
    assert undefined_names(ours) == []
