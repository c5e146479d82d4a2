"""Tests that the lock files match pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
_FILE = tomllib.loads((ROOT / "pyproject.toml").read_text())
_PROJECT = _FILE["project"]
_EXTRAS = _PROJECT["optional-dependencies"]


def _read_locked_versions(name: str) -> dict[str, set[Version]]:
    results: dict[str, set[Version]] = {}
    for line in (ROOT / name).read_text().splitlines():
        requirement = Requirement(line)
        [pin] = requirement.specifier
        assert pin.operator == "==", line
        results.setdefault(canonicalize_name(requirement.name), set()).add(Version(pin.version))
    return results


@pytest.mark.parametrize(
    ("lock", "declared_bounds"),
    [
        (
            "requirements.lock",
            [*_PROJECT["dependencies"], *_EXTRAS["embedded"], *_EXTRAS["s3"]],
        ),
        (
            "requirements-dev.lock",
            [
                *_PROJECT["dependencies"],
                *_EXTRAS["embedded"],
                *_EXTRAS["s3"],
                *_EXTRAS["dev"],
                *_EXTRAS["acceptance"],
            ],
        ),
        ("requirements-docs.lock", _FILE["dependency-groups"]["docs"]),
    ],
)
def test_every_dependency_is_locked_within_its_bounds(
    lock: str, declared_bounds: list[str]
) -> None:
    locked_versions = _read_locked_versions(lock)
    for text in declared_bounds:
        requirement = Requirement(text)
        versions = locked_versions.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement.name} is not in {lock}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), text


def test_tests_run_on_the_versions_that_users_get() -> None:
    tested_versions = _read_locked_versions("requirements-dev.lock")
    for name, versions in _read_locked_versions("requirements.lock").items():
        assert versions <= tested_versions[name], name


def test_packages_that_need_a_compiler_are_excluded() -> None:
    locked_versions = _read_locked_versions("requirements-dev.lock")
    assert not locked_versions.keys() & {"llama-cpp-python", "llm", "torch"}
