"""Reads the console's built files once, and prepares its HTML page and compressed content.

The files change only when the package is installed again, so a replica keeps them in memory. A
request neither reads from disk nor compresses anything, and cannot name a file outside the folder.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

CONSOLE_PATH = "/console/"
BUILT_FOLDER = Path(__file__).parent / "built"
_INDEX = "index.html"
# The names of files in this folder contain a digest of their content.
_HASHED_FOLDER = "assets/"
_NONCE_PLACEHOLDER = "__CSP_NONCE__"
# Not known to every system's table of types.
_MEDIA_TYPES = {".js": "text/javascript", ".woff2": "font/woff2", ".map": "application/json"}
_COMPRESSIBLE = ("text/", "application/json", "application/manifest+json", "image/svg+xml")
_MIN_COMPRESSED_BYTES = 1024
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleFile:
    """A file with everything that its response needs.

    Attributes:
        gzipped: the compressed content, or None if compression would save nothing.
        etag: a weak entity tag, the same for the plain and the compressed content.
        is_immutable: True if the file's name changes whenever its content changes.
    """

    content: bytes
    gzipped: bytes | None
    media_type: str
    etag: str
    is_immutable: bool


class ConsoleFiles:
    """Holds the built files in memory; while there are none, each request looks for them again."""

    def __init__(self, folder: Path = BUILT_FOLDER) -> None:
        self._folder = folder
        self._files: dict[str, ConsoleFile] = {}
        self._lock = asyncio.Lock()

    async def find(self, path: str) -> ConsoleFile | None:
        """Return the file at a path relative to ``/console/``, or None if there is none."""
        return None if path == _INDEX else (await self._load_files()).get(path)

    async def render_page(self, nonce: str) -> str | None:
        """Return the HTML page with a new nonce for its styles, or None if no console is built."""
        index = (await self._load_files()).get(_INDEX)
        return None if index is None else index.content.decode().replace(_NONCE_PLACEHOLDER, nonce)

    async def _load_files(self) -> dict[str, ConsoleFile]:
        if not self._files:
            async with self._lock:
                self._files = self._files or await asyncio.to_thread(_read_files, self._folder)
        return self._files


def build_security_policy(nonce: str) -> str:
    """Return the Content-Security-Policy of a page whose styles have the nonce."""
    return _POLICY.format(nonce=nonce)


def _read_files(folder: Path) -> dict[str, ConsoleFile]:
    """Return all files by their relative paths; empty if the console's page is missing."""
    if not (folder / _INDEX).is_file():
        return {}
    return {
        path.relative_to(folder).as_posix(): _read_file(folder, path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _read_file(folder: Path, path: Path) -> ConsoleFile:
    content = path.read_bytes()
    guessed_type = _MEDIA_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    media_type = guessed_type or "application/octet-stream"
    gzipped_content = None
    if len(content) >= _MIN_COMPRESSED_BYTES and media_type.startswith(_COMPRESSIBLE):
        gzipped_content = gzip.compress(content, mtime=0)
    return ConsoleFile(
        content=content,
        gzipped=gzipped_content
        if gzipped_content is not None and len(gzipped_content) < len(content)
        else None,
        media_type=media_type,
        etag=f'W/"{hashlib.sha256(content).hexdigest()[:32]}"',
        is_immutable=path.relative_to(folder).as_posix().startswith(_HASHED_FOLDER),
    )
