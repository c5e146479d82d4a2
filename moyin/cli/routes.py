"""``moyin routes``: what services behind the reverse proxy need to know."""

from __future__ import annotations

from typing import Annotated

import typer

from moyin.cli.screen import out
from moyin.proxy.identity import route_secret
from moyin.settings import Settings

__all__ = ["app"]

app = typer.Typer(help="Services behind the reverse proxy.", no_args_is_help=True)


@app.callback()
def _routes() -> None:
    """Keeps ``secret`` a command of its own while it is the only one."""


@app.command()
def secret(
    name: Annotated[str, typer.Argument(help="The route's name in serve_config.yaml.")],
) -> None:
    """Print the secret with which the service checks `x-moyin-identity` (a JWT, HS256)."""
    out.print(route_secret(Settings().signing_key(), name))
