from __future__ import annotations

from pathlib import Path

import pytest

from moyin.cli.main import run
from moyin.proxy.identity import derive_route_secret
from moyin.stack.layout import Layout


def test_secret_of_a_route_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path))
    monkeypatch.setenv("MOYIN_SECRET", "s" * 32)
    assert run(["routes", "secret", "assets"]) == 0
    assert capsys.readouterr().out.strip() == derive_route_secret(b"s" * 32, "assets")


def test_unknown_route_name_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "data")
    layout.prepare()
    config_file = tmp_path / "apps.yaml"
    config_file.write_text(
        "applications:\n"
        "- name: gateway\n"
        "  deployments: [{name: Gateway, user_config: {routes: [{name: assets}, {name: wiki}]}}]\n"
        "- {name: workers}\n"
    )
    layout.deployed_from.write_text(str(config_file))
    monkeypatch.setenv("MOYIN_SECRET", "s" * 32)
    assert run(["routes", "secret", "assets"]) == 0
    assert capsys.readouterr() == (derive_route_secret(b"s" * 32, "assets") + "\n", "")
    assert run(["routes", "secret", "assts"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == derive_route_secret(b"s" * 32, "assts")
    assert "apps.yaml has no route 'assts'; its routes: assets, wiki" in " ".join(
        output.err.split()
    )
    # Without a valid file there is no warning.
    for incomplete_config in (
        "applications:\n- {name: gateway, deployments: [7]}\n",
        "applications: [",
    ):
        config_file.write_text(incomplete_config)
        assert run(["routes", "secret", "assts"]) == 0
    config_file.unlink()
    assert run(["routes", "secret", "assts"]) == 0
