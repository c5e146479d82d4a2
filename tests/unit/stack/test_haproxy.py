from __future__ import annotations

import subprocess
from pathlib import Path

from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from moyin.stack import ray

_CONFIG = """\
defaults
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
frontend grpc_frontend
    acl is_list_applications path /ray.serve.RayServeAPIService/ListApplications
    use_backend grpc_fallback_backend if is_list_applications
    http-request return status 200 hdr grpc-message "ListApplications is unavailable" if is_list_applications
    use_backend grpc_gateway if is_grpc_gateway
"""


def launched(folder: Path) -> str:
    """What becomes of Serve's file."""
    config = folder / "haproxy.cfg"
    config.write_text(_CONFIG)
    launcher = Path(ray.__file__).with_name("haproxy.sh")
    done = subprocess.run(
        ["sh", launcher, "-db", "-f", config],
        env={"PATH": "/usr/bin:/bin", "MOYIN_HAPROXY": "/bin/echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["-db", "-f", str(config)]
    return config.read_text()


def test_statistics_and_metrics_are_on_loopback(tmp_path: Path) -> None:
    assert [line.strip() for line in launched(tmp_path).splitlines() if "bind" in line] == [
        "bind 127.0.0.1:9101", "bind 127.0.0.1:8404", "bind 127.0.0.1:8000", "bind *:84041",
    ]  # fmt: skip


def test_a_head_must_come_in_time_and_no_address_is_logged(tmp_path: Path) -> None:
    defaults = launched(tmp_path).partition("frontend")[0]
    assert "    timeout http-request 20s\n" in defaults
    assert "httplog" not in defaults
    [line] = [line for line in defaults.splitlines() if "log-format" in line]
    # Of the request the method alone; %r, %HP, %HQ and %HU would be its path or its query.
    assert line.endswith(' %tsc %HM"')
    assert not {"%r", "%HP", "%HQ", "%HU"} & set(line.split())


def test_nothing_is_spliced(tmp_path: Path) -> None:
    """`tests/integration/test_haproxy.py` shows what that is good for."""
    assert "splice" not in launched(tmp_path)
    assert "option abortonclose" in launched(tmp_path)


def test_the_names_of_the_apps_are_not_told(tmp_path: Path) -> None:
    """`tests/integration/test_door_names.py` asks a whole farm."""
    config = launched(tmp_path)
    assert "string" not in config
    assert "    http-request set-path /-/routes/ if routes\n" in config
    listed = [line for line in config.splitlines() if line.endswith("if is_list_applications")]
    assert len(listed) == 2
    assert all("return status 200" in line and "grpc-status 12" in line for line in listed)
    assert "    use_backend grpc_gateway if is_grpc_gateway\n" in config


def test_serve_still_writes_what_the_launcher_mends() -> None:
    """Another version of Ray may word it otherwise: then this fails, and not the protection."""
    assert HAPROXY_CONFIG_TEMPLATE.count(" if routes\n") == 3
    assert HAPROXY_CONFIG_TEMPLATE.count('routes_message }}" if routes\n') == 1
    assert HAPROXY_CONFIG_TEMPLATE.count("if is_list_applications\n") == 2
    assert (
        "\n    use_backend grpc_fallback_backend if is_list_applications\n"
        in HAPROXY_CONFIG_TEMPLATE
    )
    for option in ("httplog", "splice-request", "splice-response"):
        assert f"\n    option {option}\n" in HAPROXY_CONFIG_TEMPLATE
