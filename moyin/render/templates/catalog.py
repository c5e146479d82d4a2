"""`Catalog`: the templates in some folders, read again when their files change."""

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
from moyin.render.templates.response import TemplateInvalid, to_template
from moyin.settings import Settings

__all__ = [
    "SHIPPED",
    "Catalog",
    "TemplateSnapshot",
    "new_catalog",
    "read_folders",
    "template_folders",
]

SHIPPED = Path(__file__).parent / "shipped"
_log = logging.getLogger(__name__)
_SUFFIXES = frozenset({".json", ".yaml", ".yml"})
_CHECK_SECONDS = 2.0
_MAX_BYTES = 4 * 1024 * 1024
_MAX_FILES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateSnapshot:
    """The templates in the folders at one time.

    Attributes:
        names: templates by name and by alias.
        problems: one line for each invalid file: ``<file>: <field>: <problem>``.
    """

    templates: tuple[Template, ...] = ()
    names: Mapping[str, Template] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def find(self, name: str, field: str) -> Template:
        """Return the template that a request names in ``field``.

        Raises:
            InvalidRequest: there is no such template; the message has similar names.
        """
        template = self.names.get(name)
        if template is None:
            similar = get_close_matches(name[:64], self.names, n=3, cutoff=0.0)
            hint = f"; similar names: {', '.join(similar)}" if similar else ""
            raise InvalidRequest(f"there is no template {name[:64]!r}{hint}", field=field)
        return template


class Catalog:
    """Returns templates, and checks their files for changes at most every two seconds.

    An invalid file is logged. If it was valid before, its last valid template stays in use; no
    other template is affected.

    Args:
        folders: a template in a later folder replaces one of the same name. Missing folders are
            empty.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._stamp: object = None
        self._snapshot = TemplateSnapshot()
        self._valid: dict[Path, Template] = {}
        self._checked_at = float("-inf")
        self._checking = asyncio.Lock()

    async def snapshot(self) -> TemplateSnapshot:
        """Return the present templates."""
        if time.monotonic() - self._checked_at > _CHECK_SECONDS:
            async with self._checking:
                if time.monotonic() - self._checked_at > _CHECK_SECONDS:
                    try:
                        await asyncio.to_thread(self._check)
                    except OSError as error:
                        # A file was removed during the check; the next check will see that.
                        _log.warning("templates could not be read: %s", error)
                    self._checked_at = time.monotonic()
        return self._snapshot

    async def get(self, name: str) -> Template:
        """Return a template by its name or alias.

        Raises:
            TemplateNotFound: there is no such template.
        """
        template = (await self.snapshot()).names.get(name)
        if template is None:
            raise TemplateNotFound(f"there is no template {name[:64]!r}")
        return template

    def _check(self) -> None:
        stamp = [
            (path, status.st_mtime_ns, status.st_size)
            for path in _files(self._folders)
            if (status := path.stat())
        ]
        if stamp == self._stamp:
            return
        self._snapshot = read_folders(self._folders, self._valid)
        self._stamp = stamp
        for problem in self._snapshot.problems:
            _log.error("invalid template: %s", problem)


def template_folders(settings: Settings) -> tuple[Path, ...]:
    """Return the folders of the shipped templates, unless these are disabled, and of the user's."""
    own = settings.templates or settings.data / "templates"
    return (SHIPPED, own) if settings.shipped_templates else (own,)


def new_catalog(settings: Settings) -> Catalog:
    """Return a catalog of the folders in the settings."""
    return Catalog(template_folders(settings))


def read_folders(
    folders: Sequence[Path], valid: dict[Path, Template] | None = None
) -> TemplateSnapshot:
    """Read every file.

    Args:
        valid: the last valid template of each file; is updated.
    """
    valid = {} if valid is None else valid
    problems: list[str] = []
    chosen: dict[str, tuple[Path, Template]] = {}
    files = list(_files(folders))
    for path in files:
        try:
            valid[path] = to_template(_content(path))
        except (TemplateInvalid, OSError) as error:
            problems.append(f"{path}: {error}")
        if path in valid:
            template = valid[path]
            other = chosen.get(template.name)
            if other is not None and other[0].parent == path.parent:
                problems.append(f"{path}: name: {other[0].name} has the name {template.name!r} too")
            else:
                chosen[template.name] = (path, template)
    for path in valid.keys() - set(files):
        del valid[path]
    names = {name: template for name, (_, template) in chosen.items()}
    for path, template in chosen.values():
        for alias in template.aliases:
            owner = names.get(alias)
            if owner is not None and owner is not template:
                problems.append(f"{path}: aliases: {alias!r} is a name of {owner.name!r}")
            else:
                names[alias] = template
    return TemplateSnapshot(
        templates=tuple(template for _, (_, template) in sorted(chosen.items())),
        names=names,
        problems=tuple(problems),
    )


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            paths = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
            yield from (path for path in paths[:_MAX_FILES] if path.is_file())


def _content(path: Path) -> Any:
    """Parse a file.

    Raises:
        TemplateInvalid: it is too large, or not JSON or YAML.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise TemplateInvalid(f"the file: is larger than {_MAX_BYTES} bytes")
    try:
        # JSON is not parsed as YAML 1.1, which reads some of JSON's numbers as text.
        load = json.loads if path.suffix == ".json" else yaml.safe_load
        return load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        message = " ".join(str(error).split())
        raise TemplateInvalid(f"the file: is not valid {kind}: {message}") from None
