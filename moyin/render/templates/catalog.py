"""Loads templates from folders, and reloads them when their files change."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from moyin.domain.template import Template
from moyin.errors import InvalidRequest, TemplateNotFound
from moyin.render.templates.response import InvalidTemplate, to_template
from moyin.settings import Settings

SHIPPED_FOLDER = Path(__file__).parent / "shipped"
_log = logging.getLogger(__name__)
_SUFFIXES = frozenset({".json", ".yaml", ".yml"})
_CHECK_SECONDS = 2.0
_MAX_BYTES = 4 * 1024 * 1024
_MAX_FILES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateSnapshot:
    """The templates in the folders, as they were last read.

    Attributes:
        templates: all templates, sorted by name.
        names: templates by name and by alias.
        problems: problems in the files, each as a line ``<file>: <field>: <problem>``.
    """

    templates: tuple[Template, ...] = ()
    names: Mapping[str, Template] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def aliases(self) -> dict[str, str]:
        """Maps every name and alias of a template to the template's name."""
        return {alias: template.name for alias, template in self.names.items()}

    def find(self, name: str, field: str) -> Template:
        """Return the template with the name or alias ``name``.

        Raises `InvalidRequest` if there is none; the error names the request's member ``field``.
        """
        template = self.names.get(name)
        if template is None:
            similar_names = get_close_matches(name[:64], self.names, n=3, cutoff=0.0)
            hint = f"; similar names: {', '.join(similar_names)}" if similar_names else ""
            raise InvalidRequest(f"there is no template {name[:64]!r}{hint}", field=field)
        return template


class TemplateCatalog:
    """Caches the templates in the given folders.

    A lookup checks the files for changes if the last check was more than two seconds ago. Invalid
    files are logged. The last valid version of a file stays in use while the file is invalid.

    Args:
        folders: the folders, which may be missing. A template in a later folder replaces a template
            of the same name in an earlier one.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._file_stamps: object = None
        self._snapshot = TemplateSnapshot()
        self._last_valid: dict[Path, Template] = {}
        self._checked_at = float("-inf")
        self._check_lock = asyncio.Lock()

    async def get_snapshot(self) -> TemplateSnapshot:
        """Return the present templates, after a check of the files if one is due."""
        if time.monotonic() - self._checked_at > _CHECK_SECONDS:
            async with self._check_lock:
                if time.monotonic() - self._checked_at > _CHECK_SECONDS:
                    try:
                        await asyncio.to_thread(self._reload_if_changed)
                    except OSError as error:
                        # The check failed, for example because a file was removed meanwhile.
                        _log.warning("the template folders could not be checked: %s", error)
                    self._checked_at = time.monotonic()
        return self._snapshot

    async def get(self, name: str) -> Template:
        """Return the template with the name or alias ``name``, or raise `TemplateNotFound`."""
        template = (await self.get_snapshot()).names.get(name)
        if template is None:
            raise TemplateNotFound(
                f"there is no template with the name {name[:64]!r}; GET /templates lists them all"
            )
        return template

    def _reload_if_changed(self) -> None:
        file_stamps = [
            (path, status.st_mtime_ns, status.st_size)
            for path in _list_files(self._folders)
            if (status := path.stat())
        ]
        if file_stamps == self._file_stamps:
            return
        self._snapshot = read_templates(self._folders, self._last_valid)
        self._file_stamps = file_stamps
        for problem in self._snapshot.problems:
            _log.error("invalid template file: %s", problem)


def list_template_folders(settings: Settings) -> tuple[Path, ...]:
    """Return the folder of the operator's templates, and before it that of Moyin's, if enabled."""
    operator_folder = settings.templates or settings.data / "templates"
    return (SHIPPED_FOLDER, operator_folder) if settings.shipped_templates else (operator_folder,)


def create_catalog(settings: Settings) -> TemplateCatalog:
    return TemplateCatalog(list_template_folders(settings))


def read_templates(
    folders: Sequence[Path], last_valid: dict[Path, Template] | None = None
) -> TemplateSnapshot:
    """Read all template files in the folders.

    If a file is now invalid, its last valid version from ``last_valid`` is used. The mapping
    ``last_valid`` is updated with the valid templates.
    """
    last_valid = {} if last_valid is None else last_valid
    problems: list[str] = []
    chosen_templates: dict[str, tuple[Path, Template]] = {}
    files = list(_list_files(folders))
    for path in files:
        try:
            last_valid[path] = to_template(_parse_file(path))
        except (InvalidTemplate, OSError) as error:
            problems.append(f"{path}: {error}")
        if path in last_valid:
            template = last_valid[path]
            other_choice = chosen_templates.get(template.name)
            if other_choice is not None and other_choice[0].parent == path.parent:
                problems.append(
                    f"{path}: name: {other_choice[0].name} also has the name {template.name!r}"
                )
            else:
                chosen_templates[template.name] = (path, template)
    for path in last_valid.keys() - set(files):
        del last_valid[path]
    names = {name: template for name, (_, template) in chosen_templates.items()}
    for path, template in chosen_templates.values():
        for alias in template.aliases:
            other_template = names.get(alias)
            if other_template is not None and other_template is not template:
                problems.append(
                    f"{path}: aliases: {alias!r} already names template {other_template.name!r}"
                )
            else:
                names[alias] = template
    return TemplateSnapshot(
        templates=tuple(template for _, (_, template) in sorted(chosen_templates.items())),
        names=names,
        problems=tuple(problems),
    )


def _list_files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            paths = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
            yield from (path for path in paths[:_MAX_FILES] if path.is_file())


def _parse_file(path: Path) -> Any:
    """Return the parsed JSON or YAML of a file, or raise `InvalidTemplate`."""
    if path.stat().st_size > _MAX_BYTES:
        raise InvalidTemplate(f"the file: must have at most {_MAX_BYTES:,} bytes")
    try:
        # JSON is not parsed as YAML 1.1, which reads some of JSON's numbers as text.
        parse = json.loads if path.suffix == ".json" else yaml.safe_load
        return parse(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        format_name = "JSON" if path.suffix == ".json" else "YAML"
        message = " ".join(str(error).split())
        raise InvalidTemplate(f"the file: is not valid {format_name}: {message}") from None
