"""Finds the folders of models that an ``extra_model_paths.yaml`` names, as ComfyUI does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from moyin.errors import StackError

__all__ = ["extra_model_paths"]

_FLAG = "--extra-model-paths-config"


def extra_model_paths(flags: Sequence[str]) -> list[Path]:
    """Return the files that these arguments of ComfyUI name, and the folders named in them; blocks.

    Folders that are not there are left out: ComfyUI passes over them.

    Raises:
        StackError: a file is not there, or is none of this kind.
    """
    found: list[Path] = []
    for file in _files(flags):
        found += [file, *(folder for folder in _folders(file) if folder.is_dir())]
    return found


def _files(flags: Sequence[str]) -> Iterator[Path]:
    """The values of the flag: each takes all words up to the next one."""
    listening = False
    for word in flags:
        name, sign, value = word.partition("=")
        if name.startswith("--"):
            # A name may be cut short, as long as no other begins like it.
            listening = len(name) > len("--extra") and _FLAG.startswith(name)
            if listening and sign:
                yield Path(value)
        elif listening:
            yield Path(word)


def _folders(file: Path) -> Iterator[Path]:
    try:
        sections = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StackError(f"{_FLAG} {file} can't be read: {error}") from error
    if not isinstance(sections, Mapping):
        raise StackError(f"{_FLAG} {file}: it should hold sections of folders by kind of model")
    for section in sections.values():
        if isinstance(section, Mapping):
            yield from _section(file.absolute().parent, section)


def _section(base: Path, section: Mapping[Any, Any]) -> Iterator[Path]:
    given = section.get("base_path")
    if isinstance(given, str):
        # Unlike `Path.expanduser`, and like ComfyUI, it leaves the home of nobody as it is written.
        base = base / os.path.expandvars(os.path.expanduser(given))  # noqa: PTH111
    for kind, lines in section.items():
        if kind not in ("base_path", "is_default") and isinstance(lines, str):
            for line in filter(None, lines.split("\n")):
                yield Path(os.path.normpath(base / line))
