"""Implements ``moyin render``, which renders a graph or template and saves the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moyin.cli.artifacts import ShowPictures, print_files
from moyin.cli.following import create_folder, follow_job, save_artifacts
from moyin.cli.screen import AsJson, errors, out, print_json
from moyin.cli.session import exit_unless_succeeded, run_with_gateway
from moyin.client.gateway import GatewayClient
from moyin.errors import StackError
from moyin.render.protocol.editor_graph.document import is_editor_format


def render(
    graph: Annotated[
        Path | None,
        typer.Argument(
            metavar="GRAPH", help="A graph as ComfyUI's editor saves it, or in the API format."
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", "-t", help="A template instead of a graph.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            help="Input of the template as NAME=VALUE, with VALUE as JSON or text; repeat for several.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the pictures.")
    ] = Path(),
    pool: Annotated[str | None, typer.Option(help="The render pool.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=1, max=5, help="1 goes first, 5 last; 3 is normal.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse a graph with an invalid output beside valid ones."),
    ] = False,
    show: ShowPictures = True,
    as_json: AsJson = False,
) -> None:
    """Render a graph or a template: print the Task ID at once, then the path of each picture.

    Exit 3 if the job does not succeed. With --json only the ended job is printed, with the paths of
    its pictures in `paths`.
    """
    body: dict[str, Any] = {"kind": "render", **_build_job_source(graph, template)}
    if priority is not None:
        body["priority"] = priority
    # Create the folder before the job is submitted, so that no render is wasted if that fails.
    create_folder(output)
    if inputs:
        body["inputs"] = dict(map(_parse_input, inputs))
    if pool is not None:
        body["pool"] = pool
    if strict:
        body["strict"] = True

    async def render_and_save(gateway: GatewayClient) -> tuple[dict[str, Any], list[Path]]:
        if is_editor_format(body.get("workflow", {})):
            body["workflow"] = await _convert_graph(gateway, body["workflow"], pool)
        job = await submit_and_follow(gateway, body, is_quiet=as_json)
        return job, await save_artifacts(gateway, job, output)

    job, paths = run_with_gateway(render_and_save)
    if as_json:
        print_json({**job, "paths": list(map(str, paths))})
    else:
        print_files(paths, show=show, indent="  " if out.is_terminal else "")
    exit_unless_succeeded(job)


def _build_job_source(graph: Path | None, template: str | None) -> dict[str, Any]:
    """Return the part of the body of ``POST /jobs`` that has the graph or names the template."""
    if (graph is None) == (template is None):
        raise StackError(
            "name either the file of a graph or --template NAME (`moyin templates list`)"
        )
    return {"workflow": load_graph(graph)} if graph is not None else {"template": template}


def _parse_input(assignment: str) -> tuple[str, Any]:
    """Split NAME=VALUE, and parse the value as JSON, or keep it as text if it is not JSON.

    ``width=512`` is a number; ``prompt=sea`` and ``prompt='"512"'`` are texts.

    Raises:
        StackError: the text has no ``=``.
    """
    name, separator, value = assignment.partition("=")
    if not separator:
        raise StackError(f"--input {assignment}: an input must be NAME=VALUE, such as width=512")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def load_graph(path: Path) -> dict[str, Any]:
    """Load a graph in the editor's or the API format from a JSON file.

    Raises:
        StackError: the file cannot be read, or is not a JSON object.
    """
    try:
        graph = json.loads(path.read_text())
    except FileNotFoundError:
        raise StackError(f"the graph file {path} does not exist: check its path") from None
    except (OSError, ValueError) as error:
        raise StackError(
            f"{path} cannot be read as JSON: {error}: name a graph that ComfyUI saved"
        ) from error
    if not isinstance(graph, dict):
        raise StackError(f"{path} is not a graph: the file must be a JSON object of nodes")
    return graph


async def _convert_graph(
    gateway: GatewayClient, graph: dict[str, Any], pool: str | None
) -> dict[str, Any]:
    """Convert a graph from the editor's to the API format, and print what the pool lacks for it."""
    request = {"graph": graph} if pool is None else {"graph": graph, "pool": pool}
    conversion: dict[str, Any] = await gateway.call("POST", "/graphs/convert", request)
    missing_parts = conversion["missing"]
    names = [node["class_type"] for node in missing_parts["nodes"]]
    names += [part["value"] for kind in ("choices", "files") for part in missing_parts[kind]]
    if names:
        errors.print(
            f"pool {conversion['pool']} lacks: {', '.join(names)}", style="yellow", markup=False
        )
    converted_graph: dict[str, Any] = conversion["graph"]
    return converted_graph


async def submit_and_follow(
    gateway: GatewayClient, body: dict[str, Any], *, is_quiet: bool = False
) -> dict[str, Any]:
    """Submit a job, wait until it ends, print its error if any, and return the ended job.

    Args:
        body: the body of ``POST /jobs``.
        is_quiet: True to print neither the job's id nor its progress.
    """
    job = await gateway.call("POST", "/jobs", body)
    if not is_quiet:
        out.print(f"  task [bold]{job['id']}[/]" if out.is_terminal else job["id"])
    _print_node_errors(job.get("node_errors", {}))
    ended_job = await follow_job(gateway, job["id"], shows_bar=not is_quiet)
    if ended_job["error"]:
        job_error = ended_job["error"]
        errors.print(f"{job_error['code']}: {job_error['message']}", style="red", markup=False)
    elif ended_job["status"] != "succeeded":
        errors.print(f"[yellow]the job is {ended_job['status']}[/]")
    return ended_job


def _print_node_errors(node_errors: dict[str, Any]) -> None:
    """Print the invalid nodes of an accepted job, whose outputs are not rendered.

    Args:
        node_errors: the member of the response, which servers of earlier versions do not send.
    """
    for node_id, node_error in node_errors.items():
        error = next(iter(node_error["errors"]), {"message": "invalid", "details": ""})
        errors.print(
            f"node {node_id} ({node_error['class_type']}) is not rendered: {error['message']}: "
            f"{error['details']}",
            style="yellow",
            markup=False,
        )
