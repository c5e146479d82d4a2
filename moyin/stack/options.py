"""Reads the options of a stack, which are its settings, ports, folders and embedded servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from moyin.errors import StackError
from moyin.settings import Settings
from moyin.stack.layout import Layout
from moyin.stack.ports import Ports, are_ports_set, read_stored_ports

# The environment variables that are not in `Settings` or `Ports`, for the reference.
VARIABLE_DESCRIPTIONS = {
    "MOYIN_URL": "URL of the gateway for the command line; overrides the profile.",
    "MOYIN_API_KEY": "API key for the command line; overrides the profile.",
    "MOYIN_PROFILE": "Profile of the command line (`moyin profiles`); also `--profile`. `local`: this machine.",
    "MOYIN_SERVE_CONFIG": "App configuration to deploy instead of `serve_config.yaml`; also `--config`.",
    "MOYIN_PORT_BASE": "First port of the stack; also `--port-base`.",
    "MOYIN_DEBUG": "If set, errors of the command line show a traceback.",
    "ANTHROPIC_API_KEY": "API key for Claude if `MOYIN_ANTHROPIC_API_KEY` is not set.",
}

_SERVE_CONFIG = "serve_config.yaml"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a stack, which are the same for the command line and the supervisor.

    Attributes:
        source_environ: environment from which the supervisor reads the same options.
        environ: environment that the stack's processes inherit.
        serve_config: path of the app configuration to deploy, which may not exist.
        ports_are_set: True if the environment or an argument sets a port. If not, the ports that
            `moyin doctor --fix` has stored are used.
        runs_valkey: True if the stack runs its own Valkey, because no setting names another server.
        runs_temporal: True if the stack runs its own Temporal server, for the same reason.
    """

    settings: Settings
    ports: Ports
    layout: Layout
    source_environ: Mapping[str, str] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    serve_config: Path
    ports_are_set: bool
    runs_valkey: bool
    runs_temporal: bool

    @cached_property
    def gpus(self) -> int:
        return count_gpus()

    @property
    def stack_id(self) -> str:
        return str(self.layout.data)

    @property
    def unused_ports(self) -> frozenset[str]:
        """The names of the ports that no process of this stack opens."""
        unused_names = set()
        if not self.runs_valkey:
            unused_names.add("valkey")
        if not self.runs_temporal:
            unused_names |= {"temporal", "temporal_ui"}
        return frozenset(unused_names)

    @classmethod
    def read(
        cls,
        environ: Mapping[str, str] = os.environ,
        *,
        port_base: int | None = None,
        serve_config: Path | None = None,
    ) -> Options:
        """Read the options from the environment and the arguments, or raise `StackError`."""
        layout = Layout(Settings().data)
        ports_are_set = port_base is not None or are_ports_set(environ)
        stored_ports = {} if ports_are_set else read_stored_ports(layout.ports)
        ports = Ports.read({**environ, **stored_ports}, base=port_base)
        local_addresses = {
            "MOYIN_DATA": str(layout.data),
            "MOYIN_DOOR": f"http://127.0.0.1:{ports.door}",
            "MOYIN_REDIS_URL": f"redis://127.0.0.1:{ports.valkey}/0",
            "MOYIN_TEMPORAL_ADDRESS": f"127.0.0.1:{ports.temporal}",
        }
        runs_valkey = not environ.get("MOYIN_REDIS_URL")
        runs_temporal = not environ.get("MOYIN_TEMPORAL_ADDRESS")
        if not runs_valkey:
            del local_addresses["MOYIN_REDIS_URL"]
        if not runs_temporal:
            del local_addresses["MOYIN_TEMPORAL_ADDRESS"]
        # The links of the console; an operator may name addresses that others reach, too.
        links = {"MOYIN_RAY_DASHBOARD_URL": f"http://127.0.0.1:{ports.dashboard}"}
        if runs_temporal:
            links["MOYIN_TEMPORAL_UI_URL"] = f"http://127.0.0.1:{ports.temporal_ui}"
        process_environ = {**links, **environ, **local_addresses, **ports.to_environ()}
        config = _find_serve_config(environ, serve_config)
        return cls(
            settings=Settings(
                data=layout.data,
                door=process_environ["MOYIN_DOOR"],
                redis_url=process_environ["MOYIN_REDIS_URL"],
                temporal_address=process_environ["MOYIN_TEMPORAL_ADDRESS"],
            ),
            ports=ports,
            layout=layout,
            source_environ={
                **environ,
                **ports.to_environ(),
                "MOYIN_DATA": str(layout.data),
                "MOYIN_SERVE_CONFIG": str(config),
            },
            environ=process_environ,
            serve_config=config,
            ports_are_set=ports_are_set,
            runs_valkey=runs_valkey,
            runs_temporal=runs_temporal,
        )


def count_gpus() -> int:
    """Return the number of GPUs that nvidia-smi lists, or 0 if no driver responds."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        process = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in process.stdout.splitlines())


def find_executable(name: str) -> str:
    """Return the path of a program next to this Python or on the PATH, or raise `StackError`."""
    sibling_path = Path(sys.executable).with_name(name)
    if os.access(sibling_path, os.X_OK):
        return str(sibling_path)
    path = shutil.which(name)
    if path is None:
        raise StackError(
            f"the program {name!r} is not installed: `make demo` installs requirements.lock"
        )
    return path


def _find_serve_config(environ: Mapping[str, str], argument_path: Path | None) -> Path:
    named_path = argument_path or (
        Path(environ["MOYIN_SERVE_CONFIG"]) if "MOYIN_SERVE_CONFIG" in environ else None
    )
    if named_path is not None:
        if not named_path.is_file():
            raise StackError(
                f"the app configuration {named_path} does not exist: name another one with "
                "MOYIN_SERVE_CONFIG or --config"
            )
        return named_path.absolute()
    candidates = (
        Path(_SERVE_CONFIG),
        Path(__file__).parents[2] / _SERVE_CONFIG,
        Path(sys.prefix) / "share" / "moyin" / _SERVE_CONFIG,
    )
    for path in candidates:
        if path.is_file():
            return path.absolute()
    return candidates[0].absolute()
