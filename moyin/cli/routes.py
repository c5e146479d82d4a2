"""Implements ``moyin routes``, which prints the secrets of services behind the reverse proxy."""

from __future__ import annotations

from typing import Annotated

import typer

from moyin.cli.screen import AsLocalJson, errors, print_outcome
from moyin.errors import StackError
from moyin.settings import Settings
from moyin.stack.apps import load_serve_config, read_last_deployed_path
from moyin.stack.options import Options

app = typer.Typer(help="Services behind the reverse proxy.", no_args_is_help=True)


@app.callback()
def _make_subcommand() -> None:
    """Keep `secret` a subcommand.

    Without a callback, Typer replaces a group that has only one command by that command.
    """


@app.command()
def secret(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The route's name in serve_config.yaml.")
    ],
    as_json: AsLocalJson = False,
) -> None:
    """Print the secret that a service needs to verify `x-moyin-identity` (a JWT, HS256)."""
    from moyin.proxy.identity import derive_route_secret

    _warn_if_unknown(name)
    route_secret = derive_route_secret(Settings().signing_key(), name)
    print_outcome({"route": name, "secret": route_secret}, route_secret, as_json=as_json)


def _warn_if_unknown(name: str) -> None:
    """Warn if the deployed configuration has no route with this name.

    A service with the secret of a mistyped name rejects every request. An unknown name is not an
    error, because a service may be set up before its route is deployed.
    """
    options = Options.read()
    path = read_last_deployed_path(options)
    if path is None or not path.is_file():
        return  # The configuration was not deployed by `moyin`.
    try:
        config = load_serve_config(path, options.ports)
        known_routes = {
            str(route["name"])
            for app in config["applications"]
            for deployment in app.get("deployments") or ()
            for route in (deployment.get("user_config") or {}).get("routes") or ()
        }
    except (StackError, AttributeError, LookupError, TypeError):
        return  # `moyin deploy` reports an invalid configuration.
    if name not in known_routes:
        names = ", ".join(sorted(known_routes)) or "none"
        errors.print(f"note: {path} has no route {name!r}; its routes: {names}", markup=False)
