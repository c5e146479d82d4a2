from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest

from moyin.cli.main import run
from moyin.stack.named_profiles import find_profiles_file
from tests.unit.cli.scripted_gateway import ScriptedGateway


@pytest.fixture
def remote_gateway(gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch) -> ScriptedGateway:
    """Store a profile `studio` for the gateway, and unset the variables that would override it."""
    monkeypatch.delenv("MOYIN_URL")
    monkeypatch.delenv("MOYIN_API_KEY")
    monkeypatch.setattr("sys.stdin", io.StringIO("moyin_secret\n"))
    gateway.routes = {
        "GET /accounts/whoami": {"owner": "ann"},
        "GET /accounts/limits": {"limits": []},
    }
    assert run(["profiles", "add", "studio", f"{gateway.url}/"]) == 0
    return gateway


def test_profile_is_private_and_sends_its_key(
    remote_gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stat.S_IMODE(find_profiles_file(os.environ).stat().st_mode) == 0o600
    assert run(["limits", "list"]) == 1  # the default is this machine
    assert run(["--profile", "studio", "limits", "list"]) == 0
    assert run(["profiles", "use", "studio"]) == 0
    assert run(["limits", "list"]) == 0
    assert [key for *_, key in remote_gateway.requests] == ["Bearer moyin_secret"] * 3
    capsys.readouterr()
    assert run(["profiles", "list", "--json"]) == 0
    output = capsys.readouterr().out
    assert [(p["name"], p["used"]) for p in json.loads(output)] == [
        ("local", False),
        ("studio", True),
    ]
    assert "secret" not in output


def test_key_of_a_profile_goes_to_its_url_only(
    remote_gateway: ScriptedGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MOYIN_PROFILE", "studio")
    with ScriptedGateway() as other_gateway:
        other_gateway.routes = remote_gateway.routes
        monkeypatch.setenv("MOYIN_URL", other_gateway.url)
        assert run(["limits", "list"]) == 1
        assert "whose key is for that URL only" in capsys.readouterr().err
        monkeypatch.setenv("MOYIN_API_KEY", "other")
        assert run(["limits", "list"]) == 0
        assert run(["--profile", "studio", "limits", "list"]) == 1
        assert [key for *_, key in other_gateway.requests] == ["Bearer other"]


def test_rejected_key_is_not_stored(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    assert run(["profiles", "add", "studio", gateway.url]) == 1
    assert not find_profiles_file(os.environ).exists()


@pytest.mark.parametrize("name", ["local", "A", "a b", "a.b", ""])
def test_invalid_names_are_refused(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("k\n"))
    assert run(["profiles", "add", name, gateway.url, "--no-check"]) == 1


def test_file_that_others_can_read_is_refused(
    remote_gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    find_profiles_file(os.environ).chmod(0o644)
    assert run(["--profile", "studio", "limits", "list"]) == 1
    assert "run `chmod 600 " in capsys.readouterr().err


def test_removed_profile_is_no_longer_the_default(remote_gateway: ScriptedGateway) -> None:
    assert run(["profiles", "use", "studio"]) == 0
    assert run(["profiles", "remove", "studio"]) == 0
    assert "moyin_secret" not in find_profiles_file(os.environ).read_text()
    assert run(["profiles", "use", "studio"]) == 1


def test_keys_of_a_profile_are_managed_by_the_gateway(
    remote_gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_body = {
        "id": "k1", "owner": "org", "user": None, "name": "ci", "scopes": ["text"],
        "created_at": "2026-11-01T00:00:00Z", "expires_at": "2026-11-02T00:00:00Z",
        "revoked_at": None, "last_used_at": None,
    }  # fmt: skip
    remote_gateway.routes |= {
        "GET /accounts/keys": {"keys": [key_body]},
        "POST /accounts/keys": {**key_body, "key": "moyin_new"},
        "POST /accounts/keys/k1/rotate": {"id": "k1", "key": "moyin_newer"},
        "DELETE /accounts/keys/k1": None,
    }
    capsys.readouterr()
    arguments = ["--profile", "studio", "keys"]
    assert run([*arguments, "create", "--name", "ci", "--user", "svc"]) == 0
    assert run([*arguments, "rotate", "k1", "--overlap", "60"]) == 0
    assert run([*arguments, "list"]) == 0
    assert run([*arguments, "revoke", "k1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "moyin_new",
        "moyin_newer",
        "k1\torg\tci\t2026-11-01T00:00:00Z\ttext\texpired 2026-11-02",
        "k1 revoked",
    ]
    assert run([*arguments, "create", "other-tenant"]) == 1
    assert not (tmp_path / "data" / "moyin.db").exists()
