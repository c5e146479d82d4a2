"""``moyin routes``: what services behind the reverse proxy need to know."""

from __future__ import annotations

from typing import Annotated

import typer

from moyin.cli.screen import errors, out
from moyin.errors import StackError
from moyin.settings import Settings
from moyin.stack.apps import deployed_from, load_serve_config
from moyin.stack.options import Options

__all__ = ["app"]

app = typer.Typer(help="Services behind the reverse proxy.", no_args_is_help=True)


@app.callback()
def _routes() -> None:
    """Keeps ``secret`` a command of its own while it is the only one."""


@app.command()
def secret(
    name: Annotated[str, typer.Argument(help="The route's name in serve_config.yaml.")],
) -> None:
    """Print the secret with which a service verifies `x-moyin-identity` (a JWT, HS256)."""
    # Brings the whole proxy along, which no other command needs.
    from moyin.proxy.identity import route_secret

    _check(name)
    out.print(route_secret(Settings().signing_key(), name))


def _check(name: str) -> None:
    """Warn of a name that may be a slip: its secret would fit nothing, and the service refuse all.

    Only a warning, since a service may learn its secret before anybody writes its route down.
    """
    options = Options.read()
    path = deployed_from(options)
    if path is None or not path.is_file():
        return  # Serve has it from somewhere else
    try:
        config = load_serve_config(path, options.ports)
        known = {
            str(route["name"])
            for app in config["applications"]
            for deployment in app.get("deployments") or ()
            for route in (deployment.get("user_config") or {}).get("routes") or ()
        }
    except (StackError, AttributeError, LookupError, TypeError):
        return  # not valid, which `moyin deploy` tells better
    if name not in known:
        told = ", ".join(sorted(known)) or "none"
        errors.print(f"note: {path} has no route {name!r}; there are: {told}", markup=False)
