"""Assembles the ``moyin`` command line from its commands, and prints errors as one line."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from moyin.cli import (
    artifacts,
    audit,
    batches,
    chat,
    comfyui,
    completion,
    connect,
    database,
    demo,
    jobs,
    keys,
    limits,
    members,
    models,
    organisations,
    profiles,
    quality,
    render,
    route,
    routes,
    stack,
    templates,
    usage,
)
from moyin.cli.screen import errors, out
from moyin.cli.session import select_profile
from moyin.client.errors import GatewayUnreachable, RequestRefused
from moyin.errors import MoyinError, StackError
from moyin.settings import Settings

app = typer.Typer(
    name="moyin",
    help="One gateway for AI work: text by the cheapest able model, pictures by a ComfyUI farm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _handle_global_options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(help="Profile of the gateway (`moyin profiles`); also MOYIN_PROFILE."),
    ] = None,
) -> None:
    select_profile(profile)
    if show_version:
        out.print(f"moyin {version('moyin')}")
        raise typer.Exit


stack.register_commands(app)
app.command("chat")(chat.chat)
app.add_typer(models.app, name="models")
app.command("route")(route.route)
app.command("feedback")(quality.feedback)
app.command("usage")(usage.show_usage)
app.command("requests")(usage.list_requests)
app.add_typer(quality.app, name="quality")
app.command("render")(render.render)
app.add_typer(templates.app, name="templates")
app.add_typer(artifacts.app, name="artifacts")
app.command("demo")(demo.demo)
app.add_typer(jobs.app, name="jobs")
app.add_typer(batches.app, name="batches")
app.add_typer(keys.app, name="keys")
app.add_typer(organisations.app, name="organisations")
app.add_typer(members.app, name="members")
app.add_typer(limits.app, name="limits")
app.add_typer(audit.app, name="audit")
app.add_typer(profiles.app, name="profiles")
app.add_typer(routes.app, name="routes")
app.add_typer(comfyui.app, name="comfyui")
app.add_typer(connect.app, name="connect")
app.command("migrate", context_settings=database.MIGRATE_CONTEXT)(database.migrate)
app.command("prune")(database.prune)
app.command("completion")(completion.completion)


def run(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit status."""
    completion.prepare_completion()
    try:
        app(arguments)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("MOYIN_DEBUG"):
            raise
        errors.print(f"[bold red]error:[/] {_format_error(error)}")
        return 1
    return 0


def _format_error(error: Exception) -> str:
    """Return the message of an error as one line for the terminal."""
    if isinstance(error, RequestRefused):
        message = f"{error.reported_code or f'http_{error.status}'}: {error.message}"
    elif isinstance(error, GatewayUnreachable):
        reason = type(error.__cause__).__name__
        message = (
            f"no response from the gateway at {error.url} ({reason}): start it with `moyin up`"
        )
    elif isinstance(error, StackError):
        message = error.message
    elif isinstance(error, ValidationError) and error.title == Settings.__name__:
        message = "; ".join(
            f"{_get_variable_name(item['loc'])}: {item['msg']}" for item in error.errors()
        )
    elif isinstance(error, MoyinError):
        message = f"{error.code}: {error.message}"
    else:
        message = f"unexpected {type(error).__name__}: {error} (MOYIN_DEBUG=1 shows the traceback)"
    # Brackets in a server's message must not be read as rich markup.
    return escape(" ".join(message.split()))


def _get_variable_name(location: tuple[int | str, ...]) -> str:
    return f"MOYIN_{'_'.join(map(str, location))}".upper()


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
