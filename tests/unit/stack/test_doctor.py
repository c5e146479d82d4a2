"""Tests the isolation check of `moyin doctor`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moyin.errors import StackError
from moyin.stack import doctor
from moyin.stack.doctor import CheckVerdict


def options(folder: Path, isolation: str) -> Any:
    path = folder / "serve_config.yaml"
    path.write_text(
        f"""
applications:
  - import_path: deployments.render.builder:build
    args: {{pool: fast, comfyui: {{isolation: {isolation}}}}}
"""
    )
    return SimpleNamespace(serve_config=path)


@pytest.mark.parametrize(
    ("isolation", "verdict", "found"),
    [
        ("strict", CheckVerdict.FAIL, "pools fast will not start"),
        ("files", CheckVerdict.WARN, "no pool needs it"),
    ],
)
def test_missing_isolation_is_reported_with_advice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    isolation: str,
    verdict: CheckVerdict,
    found: str,
) -> None:
    def refuse() -> Path:
        raise StackError("can't confine ComfyUI: allow user namespaces")

    monkeypatch.setattr(doctor, "require_confinement", refuse)
    check = doctor._check_isolation(options(tmp_path, isolation))
    assert (check.verdict, check.found) == (verdict, found)
    assert check.advice == "can't confine ComfyUI: allow user namespaces"


def test_isolation_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "require_confinement", lambda: Path("/usr/bin/bwrap"))
    check = doctor._check_isolation(options(tmp_path, "strict"))
    assert (check.verdict, check.found) == (CheckVerdict.OK, "strict, with /usr/bin/bwrap")
