"""Finds the folders of models that ComfyUI reads from an ``extra_model_paths.yaml``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from moyin.errors import StackError

_FLAG = "--extra-model-paths-config"


def find_extra_model_paths(flags: Sequence[str]) -> list[Path]:
    """Return the files after ``--extra-model-paths-config``, and the folders they name (blocking).

    Missing folders are left out, because ComfyUI ignores them. Raises `StackError` if a file is not
    readable or is malformed.
    """
    paths: list[Path] = []
    for file in _find_flag_values(flags):
        paths += [file, *(folder for folder in _read_folders(file) if folder.is_dir())]
    return paths


def _find_flag_values(flags: Sequence[str]) -> Iterator[Path]:
    """Yield the paths that follow ``--extra-model-paths-config``, up to the next flag."""
    is_config_path = False
    for argument in flags:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            # ComfyUI accepts unambiguous abbreviations of the flag.
            is_config_path = len(name) > len("--extra") and _FLAG.startswith(name)
            if is_config_path and equals:
                yield Path(value)
        elif is_config_path:
            yield Path(argument)


def _read_folders(file: Path) -> Iterator[Path]:
    try:
        sections = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StackError(f"{_FLAG} {file} can't be read: {error}") from error
    if not isinstance(sections, Mapping):
        raise StackError(
            f"{_FLAG} {file}: must be a YAML mapping of sections, like ComfyUI's extra_model_paths.yaml.example"
        )
    for section in sections.values():
        if isinstance(section, Mapping):
            yield from _read_section(file.absolute().parent, section)


def _read_section(base: Path, section: Mapping[Any, Any]) -> Iterator[Path]:
    base_path = section.get("base_path")
    if isinstance(base_path, str):
        # Unlike `Path.expanduser`, and like ComfyUI, this ignores the home of an unknown user.
        base = base / os.path.expandvars(os.path.expanduser(base_path))  # noqa: PTH111
    for model_kind, folder_lines in section.items():
        if model_kind not in ("base_path", "is_default") and isinstance(folder_lines, str):
            for folder_line in filter(None, folder_lines.split("\n")):
                yield Path(os.path.normpath(base / folder_line))
