"""Installs Python packages with uv and pip's settings; imports only the standard library.

uv needs a quarter of pip's time and keeps unpacked packages, to which further environments only
link. uv ignores pip's configuration files and environment variables. A studio may name its package
index, certificates or proxy there, so this module translates these settings into uv's.

The Makefile runs this file before Moyin is installed:
``python -P moyin/system/packages.py PYTHON ARGUMENT…``.
"""

from __future__ import annotations

import ast
import math
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

_SECTIONS = ("global", "install", ":env:")
_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}


def build_install_command(python: Path) -> list[str]:
    """Return a command that installs packages for `python`; append the packages to it."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    return [str(uv), "pip", "install", "--quiet", "--python", str(python)]


def build_uv_environ(python: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` plus uv's variables for pip's settings; keep variables of uv that are set.

    Raises:
        OSError, subprocess.CalledProcessError: pip cannot read its settings.
    """
    pip_config = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "config", "list"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environ,
    ).stdout
    settings = _translate_settings(pip_config)
    if "SSL_CERT_FILE" not in settings:
        # pip trusts the machine's certificates, uv by itself only those in its program.
        settings["UV_SYSTEM_CERTS"] = "1"
    own_settings = {name: value for name, value in environ.items() if name.startswith("UV_")}
    return {**environ, **settings, **own_settings}


def _translate_settings(config_lines: str) -> dict[str, str]:
    """Translate pip's settings to environment variables of uv.

    Args:
        config_lines: the output of ``pip config list``, with lines such as
            ``global.timeout='60'``.
    """
    variables = {}
    # pip reads its environment variables last.
    for line in sorted(config_lines.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        section, _, setting = name.rpartition(".")
        variable = _VARIABLES.get(setting)
        if variable is None or section not in _SECTIONS:
            continue
        values = ast.literal_eval(value).split()
        if variable == "UV_HTTP_TIMEOUT":
            values = [str(math.ceil(float(values[0])))]
        variables[variable] = ("," if variable == "UV_FIND_LINKS" else " ").join(values)
    if "UV_INDEX" in variables:
        # pip takes the newest version of any index, uv that of the first index with the package.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return variables


if __name__ == "__main__":
    target = Path(sys.argv[1])
    command = [*build_install_command(target), *sys.argv[2:]]
    os.execve(command[0], command, build_uv_environ(target, os.environ))
