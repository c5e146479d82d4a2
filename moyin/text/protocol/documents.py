"""Converts files that clients send to parts of a prompt: text, pictures or documents.

Documents are PDF files, which few back ends support.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

from moyin.domain import chat
from moyin.domain.artifact import SNIFF_BYTES, UNKNOWN_MEDIA_TYPE, detect_media_type
from moyin.errors import InvalidRequest, UnsupportedFeature

PromptFile: TypeAlias = chat.Text | chat.Image | chat.Document
NO_FILES: Mapping[str, PromptFile] = MappingProxyType({})
PDF = "application/pdf"
PICTURE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
# Types of text whose names do not begin with "text/".
_TEXT_TYPES = frozenset(
    {
        "application/csv", "application/javascript", "application/json", "application/jsonl",
        "application/sql", "application/toml", "application/typescript", "application/x-ndjson",
        "application/x-sh", "application/x-yaml", "application/xml", "application/yaml",
    }
)  # fmt: skip
_SNIFFED_BASE64 = -(-SNIFF_BYTES // 3) * 4


def read_file(
    content: bytes, *, name: str | None, declared_type: str | None, field: str
) -> PromptFile:
    """Return a file as a part of a prompt.

    Text files become text with the name of the file, which every model can read.

    Args:
        name: the file's name, whose extension shows the type if nothing else does.
        declared_type: the media type that the client sent.
        field: the field of the request, for errors.

    Raises:
        UnsupportedFeature: the file is not a picture, PDF or text.
    """
    media_type = _detect_type(content[:SNIFF_BYTES], name, declared_type)
    if media_type == PDF:
        return chat.Document(media_type=PDF, data=base64.b64encode(content).decode(), name=name)
    if media_type in PICTURE_TYPES:
        return chat.Image(media_type=media_type, data=base64.b64encode(content).decode())
    if (
        media_type == UNKNOWN_MEDIA_TYPE
        or media_type in _TEXT_TYPES
        or media_type.startswith("text/")
    ):
        try:
            return _wrap_text(content.decode("utf-8-sig"), name)
        except UnicodeDecodeError:
            pass
    raise UnsupportedFeature(
        f"{field}: models read pictures (PNG, JPEG, GIF, WebP), PDF and text in UTF-8, not "
        f"{media_type}: convert the file",
        field=field,
    )


def read_encoded_file(data: str, *, name: str | None, field: str) -> PromptFile:
    """Decode a file sent as base64 or as a data URL, and return it like `read_file`.

    Raises:
        InvalidRequest: the file is not base64.
    """
    declared_type = None
    if data.startswith("data:"):
        header, _, data = data.partition(",")
        declared_type = header[5:].partition(";")[0] or None
    try:
        first_bytes = base64.b64decode(data[:_SNIFFED_BASE64], validate=True)
        media_type = _detect_type(first_bytes, name, declared_type)
        if media_type == PDF:
            return chat.Document(media_type=PDF, data=data, name=name)
        if media_type in PICTURE_TYPES:
            return chat.Image(media_type=media_type, data=data)
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"{field} must be base64, or a data URL with base64", field=field
        ) from None
    return read_file(content, name=name, declared_type=declared_type, field=field)


def refuse_documents(request: chat.ChatRequest, server: str) -> None:
    """Check that a request has no documents, for a back end that does not support any.

    Args:
        server: the back end's kind, for the error.

    Raises:
        UnsupportedFeature: the request has a document; the error names its media type.
    """
    for document in _iterate_documents(request):
        raise UnsupportedFeature(
            f"messages: {server} does not support {document.media_type} files: send the text or "
            "pictures of the pages, or choose a Claude model",
            field="messages",
        )


def _iterate_documents(request: chat.ChatRequest) -> Iterator[chat.Document]:
    for message in request.messages:
        for part in message.parts:
            parts = part.content if isinstance(part, chat.ToolResult) else (part,)
            yield from (inner_part for inner_part in parts if isinstance(inner_part, chat.Document))


def _detect_type(first_bytes: bytes, name: str | None, declared_type: str | None) -> str:
    """Return a file's media type: by its content, else as declared, else by its name.

    Args:
        first_bytes: the beginning of the content.
    """
    detected_type = detect_media_type(None, first_bytes)
    if detected_type != UNKNOWN_MEDIA_TYPE:
        return detected_type
    declared_type = (declared_type or "").partition(";")[0].strip().lower()
    if declared_type and declared_type != UNKNOWN_MEDIA_TYPE:
        return declared_type
    return mimetypes.guess_type(name or "")[0] or UNKNOWN_MEDIA_TYPE


def _wrap_text(text: str, name: str | None) -> chat.Text:
    if name is None:
        return chat.Text(text=text)
    label = name.replace('"', "'")
    return chat.Text(text=f'<file name="{label}">\n{text}\n</file>')
