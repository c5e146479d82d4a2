"""`Catalog`: the templates of some folders; follows the files while they change."""

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
_LOOK_SECONDS = 2.0
_MAX_BYTES = 4 * 1024 * 1024
_MAX_FILES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateSnapshot:
    """What was found in the folders at one time.

    Attributes:
        names: by name and by alias.
        problems: one line for each file that is wrong: ``<file>: <field>: <what>``.
    """

    templates: tuple[Template, ...] = ()
    names: Mapping[str, Template] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def find(self, name: str, field: str) -> Template:
        """For a request that names a template in ``field``.

        Raises:
            InvalidRequest: nothing is called so; says what is.
        """
        template = self.names.get(name)
        if template is None:
            near = get_close_matches(name[:64], self.names, n=3, cutoff=0.0)
            hint = f"; what comes nearest: {', '.join(near)}" if near else ""
            raise InvalidRequest(f"there is no template {name[:64]!r}{hint}", field=field)
        return template


class Catalog:
    """Templates by name. Looks at the files again when asked, every two seconds at most.

    A file that is wrong is told in the log and left out, or stays what it was before it was
    changed: one typing error takes no other template away.

    Args:
        folders: later ones win over earlier ones. One that is not there is empty.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._stamp: object = None
        self._shelf = TemplateSnapshot()
        self._good: dict[Path, Template] = {}
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    async def shelf(self) -> TemplateSnapshot:
        """What there is now."""
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            async with self._looking:
                if time.monotonic() - self._looked_at > _LOOK_SECONDS:
                    try:
                        await asyncio.to_thread(self._look)
                    except OSError as error:
                        # A file went away while it was looked at: the next look sees that.
                        _log.warning("templates could not be read: %s", error)
                    self._looked_at = time.monotonic()
        return self._shelf

    async def get(self, name: str) -> Template:
        """
        Raises:
            TemplateNotFound: nothing is called so.
        """
        template = (await self.shelf()).names.get(name)
        if template is None:
            raise TemplateNotFound(f"there is no template {name[:64]!r}")
        return template

    def _look(self) -> None:
        stamp = [
            (path, status.st_mtime_ns, status.st_size)
            for path in _files(self._folders)
            if (status := path.stat())
        ]
        if stamp == self._stamp:
            return
        self._shelf = read_folders(self._folders, self._good)
        self._stamp = stamp
        for problem in self._shelf.problems:
            _log.error("template refused: %s", problem)


def template_folders(settings: Settings) -> tuple[Path, ...]:
    """That of the shipped templates, unless they are not wanted, and the studio's own."""
    own = settings.templates or settings.data / "templates"
    return (SHIPPED, own) if settings.shipped_templates else (own,)


def new_catalog(settings: Settings) -> Catalog:
    """The templates that the settings name."""
    return Catalog(template_folders(settings))


def read_folders(
    folders: Sequence[Path], good: dict[Path, Template] | None = None
) -> TemplateSnapshot:
    """Read every file.

    Args:
        good: what the files held when they were last right; is brought up to date.
    """
    good = {} if good is None else good
    problems: list[str] = []
    chosen: dict[str, tuple[Path, Template]] = {}
    files = list(_files(folders))
    for path in files:
        try:
            good[path] = to_template(_content(path))
        except (TemplateInvalid, OSError) as error:
            problems.append(f"{path}: {error}")
        if path in good:
            template = good[path]
            other = chosen.get(template.name)
            if other is not None and other[0].parent == path.parent:
                problems.append(f"{path}: name: {other[0].name} is called {template.name!r} too")
            else:
                chosen[template.name] = (path, template)
    for path in good.keys() - set(files):
        del good[path]
    names = {name: template for name, (_, template) in chosen.items()}
    for path, template in chosen.values():
        for alias in template.aliases:
            taken = names.get(alias)
            if taken is not None and taken is not template:
                problems.append(f"{path}: aliases: {alias!r} is a name of {taken.name!r}")
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
            found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
            yield from (path for path in found[:_MAX_FILES] if path.is_file())


def _content(path: Path) -> Any:
    """
    Raises:
        TemplateInvalid: it can't be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise TemplateInvalid(f"the file: is larger than {_MAX_BYTES} bytes")
    try:
        # YAML 1.1 reads some of JSON's numbers as text.
        load = json.loads if path.suffix == ".json" else yaml.safe_load
        return load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise TemplateInvalid(f"the file: is no {kind}: {' '.join(str(error).split())}") from None
