"""Represents multipart forms, and re-encodes them without reading whole files into memory."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_CHUNK_BYTES = 256 * 1024


class AsyncFile(Protocol):
    """A file that is read without blocking the event loop."""

    async def read(self, size: int) -> bytes: ...

    async def seek(self, offset: int) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FormFile:
    """A file of a form, which stays open until its request ends.

    Attributes:
        field: the name of the form's field.
        name: the name of the file; empty if the client sent none.
    """

    field: str
    name: str
    content_type: str
    size: int
    content: AsyncFile

    async def iterate_content(self) -> AsyncIterator[bytes]:
        """Yield the content from its beginning, in pieces of at most 256 KiB."""
        await self.content.seek(0)
        while chunk := await self.content.read(_CHUNK_BYTES):
            yield chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class MultipartForm:
    """The text fields and files of a form, in the order in which the client sent them."""

    fields: Sequence[tuple[str, str]]
    files: Sequence[FormFile]

    def get(self, name: str) -> str | None:
        """Return the last value of a text field, or None if there is none."""
        return next((value for field, value in reversed(self.fields) if field == name), None)

    def find_files(self, *names: str) -> tuple[FormFile, ...]:
        return tuple(file for file in self.files if file.field in names)


class EncodedForm:
    """Encodes a form as a request body of known length, which can be iterated several times.

    Text fields come first, because servers that read a body as a stream need them before the files.

    Args:
        replaced_fields: text fields whose values replace those that the client sent.
    """

    def __init__(self, form: MultipartForm, replaced_fields: Mapping[str, str]) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._files = form.files
        fields = [field for field in form.fields if field[0] not in replaced_fields]
        boundary_line = f"--{boundary}\r\n"
        self._fields = "".join(
            f'{boundary_line}content-disposition: form-data; name="{_escape(name)}"\r\n\r\n{value}\r\n'
            for name, value in (*replaced_fields.items(), *fields)
        ).encode()
        self._part_headers = [
            f'{boundary_line}content-disposition: form-data; name="{_escape(file.field)}"; '
            f'filename="{_escape(file.name)}"\r\n'
            f"content-type: {file.content_type or 'application/octet-stream'}\r\n\r\n".encode()
            for file in form.files
        ]
        self._end = f"--{boundary}--\r\n".encode()
        part_sizes = (
            len(h) + f.size + 2 for h, f in zip(self._part_headers, form.files, strict=True)
        )
        self.length = len(self._fields) + sum(part_sizes) + len(self._end)

    async def iterate_body(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces of at most 256 KiB."""
        yield self._fields
        for part_header, file in zip(self._part_headers, self._files, strict=True):
            yield part_header
            async for chunk in file.iterate_content():
                yield chunk
            yield b"\r\n"
        yield self._end


def _escape(name: str) -> str:
    """Escape a field or file name for a header, as browsers do."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
