"""Implements ``moyin connect``, which serves the gateway locally for clients without a key."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from moyin.cli.screen import AsLocalJson, out, print_json_line
from moyin.cli.session import load_profile, open_gateway
from moyin.errors import StackError
from moyin.stack.profile import Profile

if TYPE_CHECKING:
    from moyin.cli.connector import Connector

app = typer.Typer(help="Local ports for clients that can send no key.", no_args_is_help=True)


@app.callback()
def _make_subcommand() -> None:
    """Keep `ollama` a subcommand.

    Without a callback, Typer replaces a group that has only one command by that command.
    """


@app.command("ollama")
def connect_ollama(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = 11434,
    backend: Annotated[
        str | None,
        typer.Option(help="Ollama host that an operator's pull, push, create, cp and rm act on."),
    ] = None,
    as_json: AsLocalJson = False,
) -> None:
    """Serve the gateway's models as a local Ollama server that needs no key, until interrupted.

    This is for clients that can't send a key, such as the program ollama and editors: all requests
    to the port are sent with your key. Every person and program on this machine can use the port;
    web pages of other sites can't.
    """
    asyncio.run(_connect_ollama(load_profile(), port, backend, as_json))


async def _connect_ollama(profile: Profile, port: int, backend: str | None, as_json: bool) -> None:
    # Imported here, because aiohttp's server takes as long to import as all other commands.
    from moyin.cli.ollama_connector import OllamaConnector

    await check_access(profile, "/v1/ollama/api/tags")
    connector = OllamaConnector(profile, backend)
    description = f"The gateway {profile.url} is an Ollama"
    await serve_until_interrupted(connector, port, description, as_json=as_json)


async def check_access(profile: Profile, path: str) -> None:
    """Check the profile's key and URL with a request, because local clients may hide an error.

    Raises:
        StackError: the profile has no key.
        MoyinError: the gateway cannot be reached, or refuses the request.
    """
    if not profile.api_key:
        raise StackError("no API key is configured for the gateway: set MOYIN_API_KEY")
    async with open_gateway(profile) as gateway:
        await gateway.call("GET", path)


async def serve_until_interrupted(
    connector: Connector, port: int, description: str, *, as_json: bool
) -> None:
    """Serve a connector on a local port and print its URL, until a signal ends the command."""
    stop_event = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop_event.set)
    async with connector.serve(port) as url:
        if as_json:
            print_json_line({"url": url})
        else:
            out.print(f"{description} at {url} (Ctrl+C stops it)")
        await stop_event.wait()
