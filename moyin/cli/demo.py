"""Implements ``moyin demo``, which streams an answer and renders a picture."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from moyin.cli.chat import Answer, stream_answer
from moyin.cli.following import save_artifacts
from moyin.cli.render import load_graph, submit_and_follow
from moyin.cli.screen import out, print_pairs
from moyin.cli.session import exit_unless_succeeded, load_profile, run_with_gateway
from moyin.cli.stack_view import build_stop_command
from moyin.client.errors import RequestRefused
from moyin.client.gateway import GatewayClient
from moyin.errors import StackError
from moyin.stack import launch
from moyin.stack.options import Options

_QUESTION = "Tell me in one or two sentences about a lighthouse at dawn."
_LOADING_SECONDS = 60.0
_GRAPH = "dawn.json"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the picture.")] = Path(
        "demo-output"
    ),
) -> None:
    """Run a demo: a streamed answer from a model, then a picture as a durable job."""
    graph = load_graph(_find_example(_GRAPH))
    job = run_with_gateway(lambda gateway: _run_demo(gateway, graph, output))
    _print_addresses()
    exit_unless_succeeded(job)


async def _run_demo(gateway: GatewayClient, graph: dict[str, Any], output: Path) -> dict[str, Any]:
    out.print("\n[bold]1. Text[/] by the cheapest suitable model (`model: auto`)")
    out.print(f"  [dim]{_QUESTION}[/]")
    answer = await _stream_with_retries(gateway)
    out.print(f"\n  [green]from {answer.backend}, model {answer.model}, cost {answer.cost}[/]")
    out.print("\n[bold]2. A picture[/] by ComfyUI, as a job that survives a crash")
    job = await submit_and_follow(gateway, {"kind": "render", "workflow": graph})
    for path in await save_artifacts(gateway, job, output):
        out.print(f"  [green]{path}[/]")
    return job


async def _stream_with_retries(gateway: GatewayClient) -> Answer:
    """Stream the answer; retry while the model is still being loaded after `moyin up`."""
    deadline = time.monotonic() + _LOADING_SECONDS
    while True:
        try:
            return await stream_answer(gateway, _QUESTION, model="auto", max_tokens=80)
        except RequestRefused as error:
            if error.status < 500 or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.5)


def _print_addresses() -> None:
    options = Options.read()
    state = launch.read_running_state(options)
    profile = load_profile()
    addresses = state.addresses if state is not None else {"gateway": profile.url}
    out.print("\n[bold]Your stack[/]")
    pairs = [*addresses.items(), ("api key", profile.api_key)]
    if state is not None:
        pairs += [("ray token", f"in {options.layout.ray_token}"), ("stop", build_stop_command())]
    print_pairs(pairs)


def _find_example(name: str) -> Path:
    for folder in (
        Path(__file__).parents[2] / "examples",
        Path(sys.prefix) / "share/moyin/examples",
    ):
        if (folder / name).is_file():
            return folder / name
    raise StackError(f"the example file {name} is not installed: reinstall Moyin")
