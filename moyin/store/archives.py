"""Writes stored files as one ZIP archive while it is sent, without holding it in memory or on disk."""

from __future__ import annotations

import asyncio
import re
import unicodedata
import zipfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import PurePosixPath

from moyin.domain.artifact import StoredArtifact, sanitize_file_name
from moyin.errors import ArchiveTooLarge
from moyin.store.blobs import BlobStore

MAX_FILES = 1_000
# An archive of this size needs no ZIP64, so its length is known before it is written.
MAX_BYTES = 2_000_000_000
# The fixed parts of a file's two headers and of the checksum behind its content, and the end of the archive.
_BYTES_PER_FILE = 30 + 16 + 46
_END_BYTES = 22
# Windows cannot store names with these characters, or names of its devices.
_UNSAFE = re.compile(r'[<>:"|?*]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Archive:
    """A ZIP archive of artifacts, stored without compression, as most are pictures.

    Args:
        files: the files, in the order of the archive.

    Attributes:
        size: the size of the archive in bytes.

    Raises:
        ArchiveTooLarge: there are more than `MAX_FILES` files, or they have more than `MAX_BYTES`
            bytes.
    """

    def __init__(self, files: Sequence[StoredArtifact]) -> None:
        if len(files) > MAX_FILES:
            raise ArchiveTooLarge(
                f"an archive may have at most {MAX_FILES} files: choose fewer files",
                details={"max_files": MAX_FILES},
            )
        if sum(file.artifact.size for file in files) > MAX_BYTES:
            raise ArchiveTooLarge(
                f"the chosen files have more than {MAX_BYTES} bytes together, the maximum of an "
                f"archive: choose fewer files",
                details={"max_bytes": MAX_BYTES},
            )
        self._files = list(zip(choose_file_names(files), files, strict=True))
        self.size = _END_BYTES + sum(
            _BYTES_PER_FILE + 2 * len(name.encode()) + file.artifact.size
            for name, file in self._files
        )

    async def read_chunks(self, blobs: BlobStore) -> AsyncGenerator[bytes, None]:
        """Yield the archive in chunks, with at most one chunk of a file in memory.

        Raises:
            FileNotFoundError: the content of a file was deleted meanwhile.
        """
        buffer = _WriteBuffer()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, file in self._files:
                zip_info = zipfile.ZipInfo(name, file.created_at.timetuple()[:6])
                zip_info.external_attr = 0o644 << 16
                with archive.open(zip_info, "w") as target:
                    size = file.artifact.size
                    async for chunk in blobs.read_chunks(file.artifact.sha256, end=size):
                        # `write` also computes the checksum, which takes processor time.
                        await asyncio.to_thread(target.write, chunk)
                        yield buffer.take_bytes()
        yield buffer.take_bytes()


class _WriteBuffer:
    """A file object that holds the bytes that `zipfile` writes until they are sent."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing; `zipfile` requires this method."""

    def close(self) -> None:
        """Do nothing; the last bytes are taken after `zipfile` has closed the file."""

    def take_bytes(self) -> bytes:
        """Return and remove the bytes that were written since the last call."""
        data, self._pieces = b"".join(self._pieces), []
        return data


def choose_file_names(files: Sequence[StoredArtifact]) -> list[str]:
    """Return a file name without folders for each file, unique even if letter case is ignored."""
    names: list[str] = []
    used_names: set[str] = set()
    counts: dict[str, int] = {}
    for file in files:
        clean_name = _clean_name(file.artifact.name, file.artifact.media_type)
        name, folded_name = clean_name, _fold_case(clean_name)
        while _fold_case(name) in used_names:
            counts[folded_name] = counts.get(folded_name, 1) + 1
            path = PurePosixPath(clean_name)
            name = f"{path.stem} ({counts[folded_name]}){path.suffix}"
        used_names.add(_fold_case(name))
        names.append(name)
    return names


def _clean_name(name: str, media_type: str) -> str:
    clean_name = _UNSAFE.sub("_", sanitize_file_name(name, media_type))
    return f"_{clean_name}" if _DEVICE.fullmatch(clean_name) else clean_name


def _fold_case(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
