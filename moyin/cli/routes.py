"""Implements ``moyin routes``, which prints the secrets of services behind the reverse proxy."""

from __future__ import annotations

from typing import Annotated

import typer

from moyin.cli.screen import errors, out
from moyin.errors import StackError
from moyin.settings import Settings
from moyin.stack.apps import load_serve_config, read_last_deployed_path
from moyin.stack.options import Options

__all__ = ["app"]

app = typer.Typer(help="Services behind the reverse proxy.", no_args_is_help=True)


@app.callback()
def _routes() -> None:
    """Make ``secret`` a subcommand, although it is the only one."""


@app.command()
def secret(
    name: Annotated[str, typer.Argument(help="The route's name in serve_config.yaml.")],
) -> None:
    """Print the secret with which a service verifies `x-moyin-identity` (a JWT, HS256)."""
    # Imported here, because only this command needs the proxy.
    from moyin.proxy.identity import route_secret

    _warn_if_unknown(name)
    out.print(route_secret(Settings().signing_key(), name))


def _warn_if_unknown(name: str) -> None:
    """Warn of a route name that the deployed configuration does not contain.

    A mistyped name gives a secret with which the service rejects every request. It is only a
    warning, because a service may be set up before its route is deployed.
    """
    options = Options.read()
    path = read_last_deployed_path(options)
    if path is None or not path.is_file():
        return  # The configuration was deployed by other means.
    try:
        config = load_serve_config(path, options.ports)
        known = {
            str(route["name"])
            for app in config["applications"]
            for deployment in app.get("deployments") or ()
            for route in (deployment.get("user_config") or {}).get("routes") or ()
        }
    except (StackError, AttributeError, LookupError, TypeError):
        return  # `moyin deploy` reports an invalid configuration.
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        errors.print(f"note: {path} has no route {name!r}; its routes: {names}", markup=False)
