"""Implements ``moyin profiles``, which stores the addresses and keys of remote gateways."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlsplit

import typer

from moyin.cli.screen import AsLocalJson, errors, print_json, print_outcome, print_table
from moyin.cli.session import find_profile_name, run_with_profile
from moyin.errors import StackError
from moyin.stack.named_profiles import (
    LOCAL,
    NamedProfiles,
    find_profiles_file,
    read_named_profiles,
    require_profile_name,
    write_named_profiles,
)
from moyin.stack.profile import Profile, require_http_url

app = typer.Typer(
    help="Remote gateways by name, for --profile: add, list, use, remove.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The profile's name.")]
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@app.command()
def add(
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="The gateway's URL, with https://.")],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Ask the gateway whether the key is valid.")
    ] = True,
    as_json: AsLocalJson = False,
) -> None:
    """Store the URL and the API key of a gateway, and replace a profile with the same name.

    The key is read from a prompt or from standard input, because other users of the machine could
    see it in a command line. Profiles are stored in ~/.config/moyin/profiles.toml, which only you
    can read.
    """
    path = find_profiles_file(os.environ)
    named_profiles = read_named_profiles(path)
    profile = Profile(url=require_http_url(url, "URL"), api_key="")
    _warn_of_plain_http(profile.url)
    profile = replace(profile, api_key=_read_key())
    if check:
        run_with_profile(profile, lambda gateway: gateway.call("GET", "/accounts/whoami"))
    profiles = {**named_profiles.profiles, require_profile_name(name): profile}
    write_named_profiles(path, replace(named_profiles, profiles=profiles))
    print_outcome(
        {"name": name, "url": profile.url},
        f"{name} is stored; use it with `moyin --profile {name}`, or always: "
        f"`moyin profiles use {name}`",
        as_json=as_json,
    )


@app.command("list")
def list_profiles(as_json: AsLocalJson = False) -> None:
    """List the profiles without their keys; `*` marks the profile in use."""
    named_profiles = read_named_profiles(find_profiles_file(os.environ))
    used_name = find_profile_name()
    urls = {
        LOCAL: "",
        **{name: profile.url for name, profile in sorted(named_profiles.profiles.items())},
    }
    if as_json:
        print_json([{"name": n, "url": url, "used": n == used_name} for n, url in urls.items()])
        return
    print_table(
        ("name", "url", "used"),
        (
            (n, url or "the stack on this machine", "*" * (n == used_name))
            for n, url in urls.items()
        ),
    )


@app.command()
def use(name: Name, as_json: AsLocalJson = False) -> None:
    """Make a profile the default; NAME `local` is this machine.

    The option --profile and the variable MOYIN_PROFILE override the default.
    """

    def choose_profile(named_profiles: NamedProfiles) -> NamedProfiles:
        if name != LOCAL:
            named_profiles.get(name)
        return replace(named_profiles, default=name)

    _change_profiles(choose_profile)
    outcome = {"name": name, "default": True}
    print_outcome(outcome, f"{name} is used from now on", as_json=as_json)


@app.command()
def remove(name: Name, as_json: AsLocalJson = False) -> None:
    """Remove a profile with its key. The key stays valid until `moyin keys revoke`."""

    def drop_profile(named_profiles: NamedProfiles) -> NamedProfiles:
        named_profiles.get(name)
        return NamedProfiles(
            default=LOCAL if named_profiles.default == name else named_profiles.default,
            profiles={n: profile for n, profile in named_profiles.profiles.items() if n != name},
        )

    _change_profiles(drop_profile)
    print_outcome({"name": name, "removed": True}, f"{name} removed", as_json=as_json)


def _change_profiles(change: Callable[[NamedProfiles], NamedProfiles]) -> None:
    path = find_profiles_file(os.environ)
    write_named_profiles(path, change(read_named_profiles(path)))


def _read_key() -> str:
    if sys.stdin.isatty():
        key = typer.prompt("API key", hide_input=True, err=True).strip()
    else:
        key = sys.stdin.readline().strip()
    if not key or not key.isascii() or not key.isprintable():
        raise StackError(
            "the API key must be printable ASCII and not empty: pass it on standard input"
        )
    return str(key)


def _warn_of_plain_http(url: str) -> None:
    url_parts = urlsplit(url)
    if url_parts.scheme == "http" and url_parts.hostname not in _LOOPBACK:
        errors.print("note: http:// does not encrypt the key, so others can read it; use https://")
