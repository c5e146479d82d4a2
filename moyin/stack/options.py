"""What one stack is made of: its settings, ports, folders and which servers it runs itself."""

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
from moyin.stack.ports import Ports

__all__ = ["VARIABLES", "Options", "executable", "graphics_cards"]

# Read by the command line and the supervisor, besides `Settings` and `Ports`.
VARIABLES = {
    "MOYIN_URL": "Address of the door for the command line; wins over `profile.toml`.",
    "MOYIN_API_KEY": "API key for the command line; wins over `profile.toml`.",
    "MOYIN_SERVE_CONFIG": "The apps to deploy, instead of `serve_config.yaml`; also `--config`.",
    "MOYIN_PORT_BASE": "First port of the stack; also `--port-base`.",
    "MOYIN_DEBUG": "When set, an error of the command line shows where it came from.",
    "ANTHROPIC_API_KEY": "Key for Claude where `MOYIN_ANTHROPIC_API_KEY` is not set.",
}

_SERVE_CONFIG = "serve_config.yaml"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Decided once, at the start, and the same in the command line and in the supervisor.

    Attributes:
        given: the environment that all of this was read from, for the supervisor to read again.
        environ: what the stack's processes inherit, before each one's own additions.
        serve_config: the file of apps to deploy; it may be missing until it is needed.
        own_valkey, own_temporal: false when a setting names a server that runs elsewhere.
    """

    settings: Settings
    ports: Ports
    layout: Layout
    given: Mapping[str, str] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    serve_config: Path
    own_valkey: bool
    own_temporal: bool

    @cached_property
    def gpus(self) -> int:
        """Graphics cards on this machine."""
        return graphics_cards()

    @property
    def stack_id(self) -> str:
        return str(self.layout.data)

    @property
    def unused_ports(self) -> frozenset[str]:
        """Names of ports that no process of this stack will open."""
        unused = set()
        if not self.own_valkey:
            unused.add("valkey")
        if not self.own_temporal:
            unused |= {"temporal", "temporal_ui"}
        return frozenset(unused)

    @classmethod
    def read(
        cls,
        environ: Mapping[str, str] = os.environ,
        *,
        port_base: int | None = None,
        serve_config: Path | None = None,
    ) -> Options:
        """
        Raises:
            StackError: a port is wrong, or the file that is named is not there.
        """
        ports = Ports.read(environ, base=port_base)
        layout = Layout(Settings().data)
        local = {
            "MOYIN_DATA": str(layout.data),
            "MOYIN_DOOR": f"http://127.0.0.1:{ports.door}",
            "MOYIN_REDIS_URL": f"redis://127.0.0.1:{ports.valkey}/0",
            "MOYIN_TEMPORAL_ADDRESS": f"127.0.0.1:{ports.temporal}",
        }
        own_valkey = not environ.get("MOYIN_REDIS_URL")
        own_temporal = not environ.get("MOYIN_TEMPORAL_ADDRESS")
        if not own_valkey:
            del local["MOYIN_REDIS_URL"]
        if not own_temporal:
            del local["MOYIN_TEMPORAL_ADDRESS"]
        exported = {**environ, **local, **ports.environ()}
        config = _find_serve_config(environ, serve_config)
        return cls(
            settings=Settings(
                data=layout.data,
                door=exported["MOYIN_DOOR"],
                redis_url=exported["MOYIN_REDIS_URL"],
                temporal_address=exported["MOYIN_TEMPORAL_ADDRESS"],
            ),
            ports=ports,
            layout=layout,
            given={
                **environ,
                **ports.environ(),
                "MOYIN_DATA": str(layout.data),
                "MOYIN_SERVE_CONFIG": str(config),
            },
            environ=exported,
            serve_config=config,
            own_valkey=own_valkey,
            own_temporal=own_temporal,
        )


def graphics_cards() -> int:
    """How many NVIDIA cards the driver shows."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def executable(name: str) -> str:
    """Path of a program that was installed beside this Python, or is on the PATH.

    Raises:
        StackError: it is not there.
    """
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise StackError(
            f"there is no program {name!r}: `make demo` installs all that requirements.lock names"
        )
    return found


def _find_serve_config(environ: Mapping[str, str], given: Path | None) -> Path:
    named = given or (
        Path(environ["MOYIN_SERVE_CONFIG"]) if "MOYIN_SERVE_CONFIG" in environ else None
    )
    if named is not None:
        if not named.is_file():
            raise StackError(f"{named}: there is no such file")
        return named.absolute()
    places = (
        Path(_SERVE_CONFIG),
        Path(__file__).parents[2] / _SERVE_CONFIG,
        Path(sys.prefix) / "share" / "moyin" / _SERVE_CONFIG,
    )
    for place in places:
        if place.is_file():
            return place.absolute()
    return places[0].absolute()
