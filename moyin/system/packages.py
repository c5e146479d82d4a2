"""Installs Python packages with uv under pip's settings; imports only the standard library.

uv needs a quarter of pip's time and keeps unpacked packages, so that further environments are links
into its cache. It reads neither pip's configuration files nor its environment variables, and a
studio may have its package index there, so this module translates them.

The Makefile runs this file before Moyin is installed:
``python -P moyin/system/packages.py PYTHON ARGUMENT…``.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}


def install_command(python: Path) -> list[str]:
    """Return the command to which requirements are appended, to install them for `python`."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    return [str(uv), "pip", "install", "--quiet", "--python", str(python)]


def uv_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` with pip's settings as uv's variables; variables of uv itself win.

    Raises:
        subprocess.CalledProcessError: pip can't read its settings.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environ,
    ).stdout
    return {**_translate(listed), **environ}


def _translate(listed: str) -> dict[str, str]:
    """Translate the output of ``pip config list``: lines such as ``global.timeout='60'``."""
    variables = {}
    # pip reads its environment variables last.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        variable = _VARIABLES.get(name.rpartition(".")[2])
        if variable is None:
            continue
        values = ast.literal_eval(value).split()
        variables[variable] = ("," if variable == "UV_FIND_LINKS" else " ").join(values)
    if "UV_INDEX" in variables:
        # pip takes the newest version of any index, uv that of the first index with the package.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return variables


if __name__ == "__main__":
    command = [*install_command(Path(sys.argv[1])), *sys.argv[2:]]
    os.execve(command[0], command, uv_environ(os.environ))
