"""Reads the stored files that prompts reference by id, and embeds them in the requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_core import to_json

from moyin.domain import chat
from moyin.domain.stored_file import StoredFile
from moyin.errors import BodyTooLarge, InvalidRequest, StoredFileNotFound
from moyin.text.protocol.documents import PromptFile, read_file
from moyin.text.protocol.openai.request_to_upstream import encode_data_url

# Requests without these bytes reference no file, so their JSON need not be searched.
FILE_ID_MARKER = b'"file_id"'
# Maximum number of files in a request, and their maximum total size: Anthropic's limit for a
# request.
_MAX_FILES = 100
_MAX_BYTES = 32 * 1024 * 1024
# The ids of our files. OpenAI's have another length, and may name files at a back end.
_FILE_ID = re.compile(r"file-[0-9a-f]{32}")


class FileSource(Protocol):
    """Finds the stored files of a tenant."""

    async def get(self, owner: str, file_id: str) -> StoredFile:
        """Return a file; raise `StoredFileNotFound` if the tenant has none with this id."""


class BlobSource(Protocol):
    """Interface to the stored content of files."""

    async def get(self, sha256: str) -> bytes:
        """Return the content of a blob; raise FileNotFoundError if it does not exist."""


@dataclass(frozen=True, slots=True)
class FileReference:
    """A reference to a stored file, found in a request at the path ``field``."""

    field: str
    file_id: str


class PromptFiles:
    """Reads the stored files that requests reference, and limits their number and size."""

    def __init__(self, files: FileSource, blobs: BlobSource) -> None:
        self._files = files
        self._blobs = blobs

    async def read(
        self, owner: str, references: Sequence[FileReference]
    ) -> Mapping[str, PromptFile]:
        """Return the tenant's referenced files by id, converted to parts of a prompt.

        Raises:
            InvalidRequest: the tenant has no such file; the error names the field.
            BodyTooLarge: the files are too many or too large together.
            UnsupportedFeature: a file is not a picture, PDF or text.
        """
        references_by_id = {reference.file_id: reference for reference in references}
        if len(references_by_id) > _MAX_FILES:
            raise BodyTooLarge(
                f"{references[_MAX_FILES].field}: a request may refer to at most {_MAX_FILES} files",
                field=references[_MAX_FILES].field,
                details={"max_files": _MAX_FILES},
            )
        stored_files = [
            await self._find_file(owner, reference) for reference in references_by_id.values()
        ]
        size = sum(file.size for file in stored_files)
        if size > _MAX_BYTES:
            raise BodyTooLarge(
                f"the files of the request have {size} bytes, more than {_MAX_BYTES}: send fewer or smaller files",
                field=references[-1].field,
                details={"max_bytes": _MAX_BYTES},
            )
        return {
            file.id: await self._read_file(file, references_by_id[file.id]) for file in stored_files
        }

    async def embed_in_chat(
        self, owner: str, data: Mapping[str, Any], body: bytes
    ) -> tuple[Mapping[str, Any], bytes]:
        """Return a chat completion request, parsed and as bytes, with its stored files embedded.

        An id that no stored file has stays as it is, because a back end may know it.

        Args:
            data: the parsed request.
            body: the same request as bytes.

        Raises:
            InvalidRequest: the tenant has no such file; the error names the field.
            BodyTooLarge: the files are too many or too large together.
            UnsupportedFeature: a file is not a picture, PDF or text.
        """
        references = [r for r in _find_chat_references(data) if _FILE_ID.fullmatch(r.file_id)]
        if not references:
            return data, body
        files = await self.read(owner, references)
        messages = [_embed_files(message, files) for message in data["messages"]]
        embedded_data = {**data, "messages": messages}
        return embedded_data, await asyncio.to_thread(to_json, embedded_data)

    async def _find_file(self, owner: str, reference: FileReference) -> StoredFile:
        try:
            return await self._files.get(owner, reference.file_id)
        except StoredFileNotFound:
            raise _new_missing_file_error(reference) from None

    async def _read_file(self, file: StoredFile, reference: FileReference) -> PromptFile:
        try:
            content = await self._blobs.get(file.sha256)
        except FileNotFoundError:
            raise _new_missing_file_error(reference) from None
        # Encoding thirty megabytes takes a twentieth of a second.
        return await asyncio.to_thread(
            read_file,
            content,
            name=file.filename,
            declared_type=file.media_type,
            field=reference.field,
        )


def find_response_references(
    items: Any, field: str = "input", *, is_earlier: bool = False
) -> Iterator[FileReference]:
    """Yield the references to files in input items of the Responses API, also in tool results.

    Args:
        field: the path of ``items`` in the request.
        is_earlier: True if the items are those of earlier responses; errors then name the member
            ``previous_response_id``.
    """
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            continue
        path = "previous_response_id" if is_earlier else f"{field}.{number}"
        is_file = item.get("type") in ("input_file", "input_image")
        if is_file and isinstance(item.get("file_id"), str):
            yield FileReference(path if is_earlier else f"{path}.file_id", item["file_id"])
        for name in ("content", "output"):
            yield from find_response_references(
                item.get(name), f"{path}.{name}", is_earlier=is_earlier
            )


def _find_chat_references(data: Mapping[str, Any]) -> Iterator[FileReference]:
    """Yield the references to files in a validated request for a chat completion."""
    for message_number, message in enumerate(data["messages"]):
        content = message.get("content")
        for part_number, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] == "file" and isinstance(part["file"].get("file_id"), str):
                field = f"messages.{message_number}.content.{part_number}.file.file_id"
                yield FileReference(field, part["file"]["file_id"])


def _embed_files(message: Mapping[str, Any], files: Mapping[str, PromptFile]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_embed_file(part, files) for part in content]}


def _embed_file(part: Mapping[str, Any], files: Mapping[str, PromptFile]) -> Mapping[str, Any]:
    if part["type"] != "file":
        return part
    match files.get(part["file"].get("file_id")):
        case None:
            return part
        case chat.Text() as text:
            return {"type": "text", "text": text.text}
        case chat.Image() as picture:
            return {"type": "image_url", "image_url": {"url": encode_data_url(picture)}}
        case chat.Document() as document:
            name = part["file"].get("filename") or document.name
            return {
                **part,
                "file": {"filename": name, "file_data": encode_data_url(document)},
            }


def _new_missing_file_error(reference: FileReference) -> InvalidRequest:
    return InvalidRequest(
        f"{reference.field}: there is no file {reference.file_id[:80]!r}; it may have expired or "
        "been deleted: upload it again",
        field=reference.field,
    )
