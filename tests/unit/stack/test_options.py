from __future__ import annotations

import stat
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack import ray, valkey
from moyin.stack.options import Options
from moyin.stack.service import Service
from moyin.stack.supervisor import Supervisor


@pytest.fixture(autouse=True)
def _set_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    for name in ("MOYIN_REDIS_URL", "MOYIN_TEMPORAL_ADDRESS", "MOYIN_SERVE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_environment_has_the_addresses_of_all_services() -> None:
    options = Options.read({}, port_base=20_000)
    assert options.environ["MOYIN_DATA"] == str(options.layout.data)
    assert options.environ["MOYIN_DOOR"] == "http://127.0.0.1:20000"
    assert options.environ["MOYIN_REDIS_URL"] == "redis://127.0.0.1:20004/0"
    assert options.environ["MOYIN_TEMPORAL_ADDRESS"] == "127.0.0.1:20002"
    assert options.settings.redis_url == options.environ["MOYIN_REDIS_URL"]


def test_console_links_to_web_interfaces_unless_others_are_configured() -> None:
    options = Options.read({}, port_base=20_000)
    assert options.environ["MOYIN_TEMPORAL_UI_URL"] == "http://127.0.0.1:20003"
    assert options.environ["MOYIN_RAY_DASHBOARD_URL"] == "http://127.0.0.1:20001"
    own_urls = {"MOYIN_TEMPORAL_UI_URL": "https://jobs.example.org", "MOYIN_RAY_DASHBOARD_URL": ""}
    assert Options.read(own_urls, port_base=20_000).environ.items() >= own_urls.items()


def test_supervisor_reads_the_same_options_as_the_command_line() -> None:
    options = Options.read({"MOYIN_PORT_VALKEY": "7777"}, port_base=20_000)
    reread_options = Options.read(options.source_environ)
    assert reread_options.ports == options.ports
    assert reread_options.environ.items() >= {
        (name, value) for name, value in options.environ.items() if name.startswith("MOYIN_")
    }
    assert (reread_options.runs_valkey, reread_options.runs_temporal) == (True, True)


def test_servers_that_run_elsewhere_are_not_started() -> None:
    environ = {
        "MOYIN_REDIS_URL": "redis://cache.example/0",
        "MOYIN_TEMPORAL_ADDRESS": "queue.example:7233",
    }
    options = Options.read(environ, port_base=20_000)
    assert options.environ.items() >= environ.items()
    assert options.unused_ports == {"valkey", "temporal", "temporal_ui"}
    # Nobody knows where the web interface of another Temporal is.
    assert "MOYIN_TEMPORAL_UI_URL" not in options.environ
    service_names = [service.name for service in _create_services(options)]
    assert service_names == ["ray"]


def test_all_servers_start_by_default_and_listen_on_loopback() -> None:
    options = Options.read({}, port_base=20_000)
    services = {service.name: service.command for service in _create_services(options)}
    assert list(services) == ["valkey", "temporal", "ray"]
    assert services["valkey"][2:4] == ("--bind", "127.0.0.1")
    assert "--ip" in services["temporal"]
    assert "--dashboard-host=127.0.0.1" in services["ray"]


def test_ray_gets_a_logical_gpu_where_none_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu_count, has_logical_gpu in ((0, True), (2, False)):
        monkeypatch.setattr("moyin.stack.options.count_gpus", lambda count=gpu_count: count)
        options = Options.read({}, port_base=20_000)
        [command] = [s.command for s in _create_services(options) if s.name == "ray"]
        assert ("--num-gpus=1" in command) is has_logical_gpu


def test_ray_token_is_private_and_persistent() -> None:
    options = Options.read({}, port_base=20_000)
    options.layout.prepare()
    ray.prepare_files(options)
    api_token = ray.read_api_token(options)
    assert len(api_token) == 64
    assert stat.S_IMODE(options.layout.ray_token.stat().st_mode) == 0o600
    ray.prepare_files(options)
    assert ray.read_api_token(options) == api_token


def test_valkey_password_is_private_persistent_and_on_no_command_line() -> None:
    options = Options.read({}, port_base=20_000)
    services = _create_services(options)
    password = options.layout.valkey_password.read_text()
    assert len(password) == 64
    for path in (options.layout.valkey_password, options.layout.valkey_config):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert options.layout.valkey_config.read_text() == f"requirepass {password}\n"
    assert all(password not in argument for service in services for argument in service.command)
    _create_services(options)
    assert options.layout.valkey_password.read_text() == password


def test_only_apps_get_the_valkey_password() -> None:
    options = Options.read({}, port_base=20_000)
    environs = {service.name: service.environ for service in _create_services(options)}
    password = options.layout.valkey_password.read_text()
    assert environs["ray"]["MOYIN_REDIS_URL"] == f"redis://:{password}@127.0.0.1:20004/0"
    for name in ("valkey", "temporal"):
        assert password not in "".join(environs[name].values())
    assert password not in repr(options)


def test_external_valkey_url_is_passed_unchanged() -> None:
    options = Options.read({"MOYIN_REDIS_URL": "redis://:there@cache.example/0"}, port_base=20_000)
    [environ] = [s.environ for s in _create_services(options) if s.name == "ray"]
    assert environ["MOYIN_REDIS_URL"] == "redis://:there@cache.example/0"
    assert not options.layout.valkey_password.exists()
    assert ":there@" not in repr(options.settings)


def test_empty_password_file_is_written_again() -> None:
    options = Options.read({}, port_base=20_000)
    options.layout.prepare()
    options.layout.valkey_password.touch()
    valkey.write_config(options)
    assert len(options.layout.valkey_password.read_text()) == 64


def test_ray_environment_drops_ray_address() -> None:
    options = Options.read({"RAY_ADDRESS": "10.0.0.1:6379"}, port_base=20_000)
    [environ] = [s.environ for s in _create_services(options) if s.name == "ray"]
    assert "RAY_ADDRESS" not in environ
    assert environ.items() >= ray.RAY_ENVIRON.items()


def test_missing_app_configuration_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="does not exist"):
        Options.read({}, serve_config=tmp_path / "nothing.yaml")


def _create_services(options: Options) -> list[Service]:
    options.layout.prepare()
    if options.runs_valkey:
        valkey.write_config(options)
    ray.prepare_files(options)
    return list(Supervisor(options)._create_services())
