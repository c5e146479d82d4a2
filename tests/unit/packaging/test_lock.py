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
    versions_by_name: dict[str, set[Version]] = {}
    for line in (ROOT / name).read_text().splitlines():
        requirement = Requirement(line)
        [pin] = requirement.specifier
        assert pin.operator == "==", line
        versions_by_name.setdefault(canonicalize_name(requirement.name), set()).add(
            Version(pin.version)
        )
    return versions_by_name


@pytest.mark.parametrize(
    ("lock_file", "declared_bounds"),
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
    lock_file: str, declared_bounds: list[str]
) -> None:
    locked_versions = _read_locked_versions(lock_file)
    for bound in declared_bounds:
        requirement = Requirement(bound)
        versions = locked_versions.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement.name} is not in {lock_file}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), bound


def test_tests_run_on_the_versions_that_users_get() -> None:
    tested_versions = _read_locked_versions("requirements-dev.lock")
    for name, versions in _read_locked_versions("requirements.lock").items():
        assert versions <= tested_versions[name], name


def test_packages_that_need_a_compiler_are_excluded() -> None:
    locked_versions = _read_locked_versions("requirements-dev.lock")
    assert not locked_versions.keys() & {"llama-cpp-python", "llm", "torch"}
