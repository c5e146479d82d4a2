from __future__ import annotations

from pathlib import Path

import pytest

from moyin.cli.main import run
from moyin.proxy.identity import route_secret


def test_the_secret_of_a_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path))
    monkeypatch.setenv("MOYIN_SECRET", "s" * 32)
    assert run(["routes", "secret", "assets"]) == 0
    assert capsys.readouterr().out.strip() == route_secret(b"s" * 32, "assets")
