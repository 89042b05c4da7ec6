"""The lock files: complete, inside the bounds of every pyproject.toml, and at one with each other."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.txt", "requirements-toolkits.txt", "scripts/locks/plain.txt", "scripts/locks/toolkits.txt")
PROJECTS = {"plain": ("",), "toolkits": ("", "lmms-eval/", "VLMEvalKit/")}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
COMES_WITH_TORCH = re.compile(r"(nvidia|cuda)-.*|triton")


def read(name: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a file, with its hashes."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    found = []
    for line in lines:
        if line and not line.startswith(("#", "-")):
            requirement, *hashes = line.split("--hash=")
            found.append((Requirement(requirement), [digest.strip() for digest in hashes]))
    return found


@cache
def versions(name: str, python: str) -> dict[str, str]:
    """What a lock installs on Linux, by distribution."""
    pins = {}
    for requirement, _ in read(name):
        if applies(requirement, python):
            key = canonicalize_name(requirement.name)
            assert key not in pins, f"{name} pins {key} twice for Python {python}"
            (pin,) = requirement.specifier
            assert pin.operator == "==", f"{name}: {requirement}"
            assert "*" not in pin.version, f"{name}: {requirement}"
            pins[key] = pin.version
    return pins


def applies(requirement: Requirement, python: str) -> bool:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.9"}
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    return requirement.marker is None or requirement.marker.evaluate({**environment, **linux, "extra": ""})


def dependencies(project: str, *extras: str) -> list[Requirement]:
    table = tomllib.loads((ROOT / project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [table["dependencies"], *(table["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", PROJECTS)
def test_locks_fulfil_the_short_list_and_every_pyproject(kind: str, python: str) -> None:
    name = {"plain": "requirements", "toolkits": "requirements-toolkits"}[kind]
    pins = versions(f"{name}.txt", python)
    asked = [requirement for requirement, _ in read(f"{name}.in")]
    asked += [requirement for project in PROJECTS[kind] for requirement in dependencies(project)]
    assert len(asked) > 10
    for requirement in asked:
        if applies(requirement, python):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_tools_of_the_tests_are_locked(python: str) -> None:
    pins = versions("scripts/locks/plain.txt", python)
    asked = dependencies("", "dev")[len(dependencies("")) :]
    assert len(asked) > 8
    for requirement in asked:
        if applies(requirement, python):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", PROJECTS)
def test_what_is_installed_by_hash_is_what_is_pinned(kind: str, python: str) -> None:
    pins = versions({"plain": "requirements.txt", "toolkits": "requirements-toolkits.txt"}[kind], python)
    installed = {**versions("scripts/locks/torch.txt", python), **versions(f"scripts/locks/{kind}.txt", python)}
    assert {name: installed.get(name) for name in pins} == pins
    if kind == "toolkits":
        assert installed == pins


@pytest.mark.parametrize("python", PYTHONS)
def test_both_environments_have_the_same_torch_and_transformers(python: str) -> None:
    plain, toolkits = (versions(name, python) for name in LOCKS[:2])
    for name in ("torch", "torchvision", "transformers", "accelerate", "numpy"):
        assert plain[name] == toolkits[name]


@pytest.mark.parametrize("name", ["plain", "toolkits", "uv"])
def test_all_in_a_hash_file_has_hashes(name: str) -> None:
    found = read(f"scripts/locks/{name}.txt")
    assert found
    for requirement, hashes in found:
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_torch_is_in_no_hash_file_and_what_it_brings_along_in_no_list() -> None:
    for name in LOCKS[2:]:
        assert not {"torch", "torchvision"} & {requirement.name for requirement, _ in read(name)}
    for name in ("requirements.txt", "requirements-toolkits.txt", "scripts/locks/toolkits.txt"):
        assert not [r.name for r, _ in read(name) if COMES_WITH_TORCH.fullmatch(r.name)]


def test_the_plain_list_installs_the_project_and_ends_with_it() -> None:
    assert (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()[-1] == "-e ."


@pytest.mark.parametrize("name", [*LOCKS, "scripts/locks/torch.txt", "scripts/locks/uv.txt"])
def test_no_lock_names_an_address_or_a_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)
    assert not re.search(r"(^|[\s\"'=])(/|~)\w", text, re.MULTILINE)


@pytest.mark.parametrize("project", PROJECTS["toolkits"])
def test_no_project_asks_an_index_for_a_distribution_of_this_repository(project: str) -> None:
    asked = dependencies(project) if project else dependencies("", "demo", "eval", "viz", "dev")
    assert not [requirement for requirement in asked if requirement.name.startswith("tango")]
