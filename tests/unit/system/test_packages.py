from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moyin.system.packages import build_install_command, build_uv_environ

PYTHON = Path(sys.executable)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which pip has settings only in a file and in PIP_FIND_LINKS."""
    pip_config = tmp_path / "pip.conf"
    pip_config.write_text(
        "[global]\nindex-url = https://packages.studio.example/simple\ntimeout = 60\n"
        "trusted-host = a.example\n    b.example\n[install]\nextra-index-url = https://two.example\n"
    )
    inherited_environ = {
        name: value for name, value in os.environ.items() if not name.startswith("PIP_")
    }
    return {**inherited_environ, "PIP_CONFIG_FILE": str(pip_config), "PIP_FIND_LINKS": "/a /b"}


def test_pips_settings_become_variables_of_uv(environ: dict[str, str]) -> None:
    variables = build_uv_environ(PYTHON, environ)
    assert variables["UV_DEFAULT_INDEX"] == "https://packages.studio.example/simple"
    assert variables["UV_INDEX"] == "https://two.example"
    assert variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert variables["UV_INSECURE_HOST"] == "a.example b.example"
    assert variables["UV_HTTP_TIMEOUT"] == "60"
    assert variables["UV_FIND_LINKS"] == "/a,/b"


def test_pip_variable_overrides_the_file_and_uv_variable_overrides_both(
    environ: dict[str, str],
) -> None:
    assert build_uv_environ(PYTHON, {**environ, "PIP_TIMEOUT": "69.5"})["UV_HTTP_TIMEOUT"] == "70"
    own_environ = {**environ, "PIP_TIMEOUT": "70", "UV_HTTP_TIMEOUT": "80"}
    assert build_uv_environ(PYTHON, own_environ)["UV_HTTP_TIMEOUT"] == "80"


def test_pips_certificates_win_over_those_of_the_machine(environ: dict[str, str]) -> None:
    environ.pop("SSL_CERT_FILE", None)
    # The machine's own file may name certificates.
    assert (
        build_uv_environ(PYTHON, {**environ, "PIP_CONFIG_FILE": os.devnull})["UV_SYSTEM_CERTS"]
        == "1"
    )
    variables = build_uv_environ(
        PYTHON, {**environ, "SSL_CERT_FILE": "/b.pem", "PIP_CERT": "/a.pem"}
    )
    assert variables["SSL_CERT_FILE"] == "/a.pem"
    assert "UV_SYSTEM_CERTS" not in variables


def test_pip_settings_of_other_commands_are_ignored(environ: dict[str, str]) -> None:
    with Path(environ["PIP_CONFIG_FILE"]).open("a") as file:
        file.write("[wheel]\nproxy = http://proxy.example\n")
    assert "ALL_PROXY" not in build_uv_environ(PYTHON, environ)


def test_package_is_installed_from_the_folder_that_pip_is_set_to(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _write_wheel(wheels / "tiny_thing-1.0-py3-none-any.whl")
    venv = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    environ = build_uv_environ(
        PYTHON, {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    ) | {"UV_CACHE_DIR": str(tmp_path / "cache")}
    python = venv / "bin" / "python"
    subprocess.run([*build_install_command(python), "tiny-thing"], check=True, env=environ)
    subprocess.run([python, "-c", "import tiny_thing"], check=True)


def _write_wheel(path: Path) -> None:
    info_folder = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_thing.py", "")
        wheel.writestr(
            f"{info_folder}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info_folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info_folder}/RECORD", "tiny_thing.py,,\n")
