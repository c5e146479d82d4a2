"""Provides the built files of the web console, which the gateway serves under ``/console/``."""

from moyin.console.files import (
    BUILT_FOLDER,
    CONSOLE_PATH,
    ConsoleFile,
    ConsoleFiles,
    build_security_policy,
)

__all__ = [
    "BUILT_FOLDER",
    "CONSOLE_PATH",
    "ConsoleFile",
    "ConsoleFiles",
    "build_security_policy",
]
