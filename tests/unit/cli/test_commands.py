from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from moyin.cli import screen
from moyin.cli.main import run
from moyin.errors import StackError
from moyin.stack import apps
from moyin.stack.layout import Layout
from moyin.stack.state import StackState


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    output = capsys.readouterr().out
    for command in ("up", "down", "status", "doctor", "logs", "chat", "render", "jobs", "keys"):
        assert f" {command} " in output


def test_an_error_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "list"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: neither ")
    assert output.err.count("\n") == 1


def test_moyin_debug_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYIN_DEBUG", "1")
    with pytest.raises(StackError):
        run(["jobs", "list"])


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "explode"]) == 2


def test_status_without_a_stack_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 1
    assert capsys.readouterr().out == "Moyin is not running\n"
    assert run(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"phase": "stopped"}


def test_status_shows_parts_and_addresses(
    running_stack: StackState, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status"]) == 0
    output = capsys.readouterr().out
    assert "ready" in output
    assert "Ray" in output
    assert "http://127.0.0.1:8000" in output
    assert "\x1b" not in output
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["ray"]["pid"] == 99


def test_up_of_a_running_stack_does_nothing(
    running_stack: StackState, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up"]) == 0
    assert capsys.readouterr().out.startswith("Moyin is up already: http://127.0.0.1:8000")


def test_deploy_without_a_running_stack_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["deploy"]) == 1
    assert "moyin up" in capsys.readouterr().err


def test_invalid_configuration_is_not_deployed(
    running_stack: StackState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def deploy(*_: object) -> None:
        raise AssertionError("the file was deployed")

    monkeypatch.setattr(apps, "deploy_apps", deploy)
    path = tmp_path / "apps.yaml"
    path.write_text("colour: red\nsize: 3\napplications: []")
    assert run(["deploy", "--config", str(path)]) == 1
    error = capsys.readouterr().err
    assert "is not valid: colour: unknown key; size: unknown key" in error


def test_unknown_log_error_lists_app_logs(
    running_stack: StackState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "data")
    layout.get_log_path("ray").touch()
    (layout.ray_logs / "serve").mkdir(parents=True)
    (layout.ray_logs / "serve" / "replica_gateway_Gateway_x1.log").touch()
    assert run(["logs", "gatewy"]) == 1
    assert "there is no log 'gatewy'; available: gateway, ray" in capsys.readouterr().err


def test_unknown_scope_gives_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["keys", "create", "ann", "--scope", "jobs:raed", "--scope", "text"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("moyin_")
    assert "'jobs:raed' (did you mean jobs:read?)" in output.err
    assert "text" not in output.err
    assert run(["keys", "create", " "]) == 1
    assert "OWNER is empty" in capsys.readouterr().err


def test_down_without_a_stack_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down"]) == 0
    assert capsys.readouterr().out == "Moyin was not running\n"


def test_keys_are_created_listed_rotated_and_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "create", "ann", "--name", "laptop"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("moyin_")
    assert run(["keys", "list"]) == 0
    key_id, owner, name, _, scopes, state = capsys.readouterr().out.strip().split("\t")
    assert (secret.split("_")[1], owner, name, scopes, state) == (
        key_id, "ann", "laptop", "jobs:read jobs:write text", "active",
    )  # fmt: skip
    assert run(["keys", "rotate", key_id]) == 0
    assert capsys.readouterr().out.startswith(f"moyin_{key_id}_")
    assert run(["keys", "revoke", key_id]) == 0
    capsys.readouterr()
    assert run(["keys", "list"]) == 0
    assert capsys.readouterr().out.strip().endswith("\trevoked")
    assert run(["keys", "revoke", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("error: not_found: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a graph"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_invalid_graph_is_rejected_before_submission(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph_file = tmp_path / "graph.json"
    graph_file.write_text(content)
    assert run(["render", str(graph_file)]) == 1
    assert message in capsys.readouterr().err


def test_unknown_log_error_lists_service_logs(
    running_stack: StackState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "data")
    layout.get_log_path("ray").write_text("one\ntwo\nthree\n")
    assert run(["logs", "ray", "-n", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert run(["logs", "nothing"]) == 1
    assert "available: ray" in capsys.readouterr().err


def test_invalid_setting_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOYIN_KEEP_JOBS_DAYS", "abc")
    assert run(["status"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: MOYIN_KEEP_JOBS_DAYS: Input should be a valid integer")


def test_data_folder_that_is_a_file_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "file"))
    assert run(["up"]) == 1
    error = capsys.readouterr().err
    assert "is not a folder" in error or "is in its place" in error


def test_narrow_terminal_does_not_wrap_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_console = Console(file=io.StringIO(), force_terminal=True, width=40, color_system=None)
    monkeypatch.setattr(screen, "out", narrow_console)
    screen.print_table(
        ("id", "owner", "name"), [("38971286e6c29f53", "admin", "made by the first up")]
    )
    assert isinstance(narrow_console.file, io.StringIO)
    assert "38971286e6c29f53" in narrow_console.file.getvalue()


def test_ray_env_has_its_old_name_as_a_hidden_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ray-env"]) == 0
    exports = capsys.readouterr().out
    assert "export RAY_AUTH_MODE=token\n" in exports
    assert run(["switches"]) == 0
    assert capsys.readouterr().out == exports
    assert run(["--help"]) == 0
    assert "switches" not in capsys.readouterr().out
