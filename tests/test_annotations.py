"""The shape legend: one letter, one meaning, and no short name of an axis that the legend does not have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tango
from tango import annotations

ROOT = Path(tango.__file__).parent
FILES = {path.relative_to(ROOT.parent).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
LISTED = [
    letter
    for letters in re.findall(r"^    (\w(?:, \w)*)  +\S", annotations.__doc__ or "", flags=re.MULTILINE)
    for letter in letters.split(", ")
]


def shapes(source: str) -> list[str]:
    """The shapes of all jaxtyping annotations in a source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Subscript)
            and ast.unparse(node.value).rpartition(".")[2] in annotations.__all__
            and isinstance(node.slice, ast.Tuple)
            and isinstance(shape := node.slice.elts[-1], ast.Constant)
        ):
            found.append(shape.value)
    return found


def short_names(shape: str) -> set[str]:
    """Names of one or two letters in a shape, those in expressions too; `_` and what `*` stands before are free."""
    axes = (axis for axis in shape.split() if not axis.startswith(("*", "...")))
    return {name for axis in axes for name in re.findall(r"[^\W\d]\w*", axis) if len(name) < 3 and name != "_"}


@pytest.mark.parametrize("name", FILES)
def test_short_names_of_axes_are_in_the_legend(name: str) -> None:
    used = {short: shape for shape in shapes(FILES[name].read_text(encoding="utf-8")) for short in short_names(shape)}
    assert {short: shape for short, shape in used.items() if short not in LISTED} == {}


def test_the_legend_lists_every_letter_once_and_none_that_nobody_uses() -> None:
    assert sorted(LISTED) == sorted(set(LISTED))
    used = {
        short for path in FILES.values() for shape in shapes(path.read_text("utf-8")) for short in short_names(shape)
    }
    assert set(LISTED) - used == set()


def test_the_check_sees_what_it_is_for() -> None:
    source = 'def f(x: Float[Tensor, "T-1 *sets 3*Z _ heads"], y: tuple[Int[torch.Tensor, "ab"] | None]): ...'
    assert set(shapes(source)) == {"T-1 *sets 3*Z _ heads", "ab"}
    assert short_names("T-1 *sets 3*Z _ heads") == {"T", "Z"}
    assert short_names("ab") == {"ab"}
    assert short_names("...") == set()
