from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from moyin.stack import ray

_CONFIG = """\
global
    nbthread 2
defaults
    errorfile 502 /500.http
    errorfile 503 /500.http
    errorfile 504 /500.http
    mode http
    option httplog
    option abortonclose
    option splice-request
    option splice-response
frontend prometheus
    bind :9101
listen stats
    bind *:8404
frontend http_frontend
    bind 127.0.0.1:8000
    bind *:84041
    acl routes path -i /-/routes
    http-request return status 200 content-type application/json string "{\\"/\\":\\"gateway\\"}" if routes
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Ping http://.../-/routes for"
frontend grpc_frontend
    acl is_list_applications path /ray.serve.RayServeAPIService/ListApplications
    use_backend grpc_fallback_backend if is_list_applications
    http-request return status 200 hdr grpc-message "ListApplications is unavailable" if is_list_applications
    use_backend grpc_gateway if is_grpc_gateway
"""
_ERRORS = "/a folder/of R&D/haproxy.lua"


def write_config(folder: Path, config: str = _CONFIG) -> str:
    """Run the launcher and return the configuration that it wrote."""
    path = folder / "haproxy.cfg"
    process = run_launcher(path, config)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["-db", "-f", str(path)]
    return path.read_text()


def run_launcher(path: Path, config: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path.write_text(config)
    environ = {"MOYIN_HAPROXY": "/bin/echo", "MOYIN_HAPROXY_ERRORS": _ERRORS, **environ}
    return subprocess.run(
        ["sh", Path(ray.__file__).with_name("haproxy.sh"), "-db", "-f", path],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_statistics_and_metrics_are_on_loopback(tmp_path: Path) -> None:
    assert [line.strip() for line in write_config(tmp_path).splitlines() if "bind" in line] == [
        "bind 127.0.0.1:9101", "bind 127.0.0.1:8404", "bind 127.0.0.1:8000", "bind *:84041",
    ]  # fmt: skip


def test_request_head_has_a_time_limit_and_no_path_is_logged(tmp_path: Path) -> None:
    defaults_section = write_config(tmp_path).partition("frontend")[0]
    assert "    timeout http-request 20s\n" in defaults_section
    assert "httplog" not in defaults_section
    [line] = [line for line in defaults_section.splitlines() if "log-format" in line]
    # Of the request the method alone; %r, %HP, %HQ and %HU would be its path or its query.
    assert line.endswith(' %tsc %HM"')
    assert not {"%r", "%HP", "%HQ", "%HU"} & set(line.split())


def test_splicing_is_disabled(tmp_path: Path) -> None:
    """The options for splicing are removed, and HAProxy notices clients that disconnect.

    With splicing it would not notice them, as tests/integration/stack/test_haproxy.py shows.
    """
    assert "splice" not in write_config(tmp_path)
    assert "option abortonclose" in write_config(tmp_path)


def test_app_names_are_not_disclosed(tmp_path: Path) -> None:
    """The configuration contains no app name; an integration test also checks a whole farm."""
    config = write_config(tmp_path)
    assert ':\\"gateway\\"' not in config
    assert "    http-request set-path /-/routes/ if routes\n" in config
    listing_rules = [
        line for line in config.splitlines() if line.endswith("if is_list_applications")
    ]
    assert len(listing_rules) == 2
    assert all("return status 200" in line and "grpc-status 12" in line for line in listing_rules)
    assert "    use_backend grpc_gateway if is_grpc_gateway\n" in config


def test_serve_template_has_the_lines_that_the_launcher_edits() -> None:
    """Ray's template of the configuration has every line that the launcher edits.

    If a new version of Ray changes the template, this test names the missing line.
    """
    assert HAPROXY_CONFIG_TEMPLATE.count(" if routes\n") == 3
    assert HAPROXY_CONFIG_TEMPLATE.count('routes_message }}" if routes\n') == 1
    assert HAPROXY_CONFIG_TEMPLATE.count("if is_list_applications\n") == 2
    assert (
        "\n    use_backend grpc_fallback_backend if is_list_applications\n"
        in HAPROXY_CONFIG_TEMPLATE
    )
    for option in ("httplog", "splice-request", "splice-response"):
        assert f"\n    option {option}\n" in HAPROXY_CONFIG_TEMPLATE


def test_error_script_is_loaded_from_any_folder(tmp_path: Path) -> None:
    assert f'global\n    lua-load-per-thread "{_ERRORS}"\n' in write_config(tmp_path)


def test_all_error_responses_of_serve_are_replaced(tmp_path: Path) -> None:
    """All of Serve's error responses are replaced; an integration test checks the new ones."""
    config = write_config(tmp_path)
    assert "errorfile" not in config and "status 404" not in config
    for status in (400, 408, 500, 502, 503, 504):
        assert config.count(f'"%[lua.moyin_error({status})]"') == 1


@pytest.mark.parametrize(
    ("line", "replacement"),
    [
        ("errorfile 503 /500.http", "errorfiles all"),
        ("frontend http_frontend", "frontend http"),
        ('lf-string "Ping http://.../-/routes for"', 'string "no such path"'),
    ],
)
def test_haproxy_does_not_start_with_an_unknown_template(
    tmp_path: Path, line: str, replacement: str
) -> None:
    """The launcher fails if Serve's configuration lacks a line that the launcher must edit."""
    assert line in _CONFIG
    process = run_launcher(tmp_path / "haproxy.cfg", _CONFIG.replace(line, replacement))
    assert (process.returncode, process.stdout) == (1, "")
    assert "has an unknown format" in process.stderr


def test_haproxy_does_not_start_without_the_error_script(tmp_path: Path) -> None:
    process = run_launcher(tmp_path / "haproxy.cfg", _CONFIG, MOYIN_HAPROXY_ERRORS="")
    assert process.returncode != 0 and process.stdout == ""
    assert "must be the path of haproxy.lua" in process.stderr


def test_ray_environment_names_the_error_script() -> None:
    script = Path(ray.build_ray_environ()["MOYIN_HAPROXY_ERRORS"])
    assert script.is_file() and "moyin_error" in script.read_text()
