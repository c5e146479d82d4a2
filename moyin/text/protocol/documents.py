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
    kind = _detect_type(content[:SNIFF_BYTES], name, declared_type)
    if kind == PDF:
        return chat.Document(media_type=PDF, data=base64.b64encode(content).decode(), name=name)
    if kind in PICTURE_TYPES:
        return chat.Image(media_type=kind, data=base64.b64encode(content).decode())
    if kind == UNKNOWN_MEDIA_TYPE or kind in _TEXT_TYPES or kind.startswith("text/"):
        try:
            return _wrap_text(content.decode("utf-8-sig"), name)
        except UnicodeDecodeError:
            pass
    raise UnsupportedFeature(
        f"{field}: models read pictures (PNG, JPEG, GIF, WebP), PDF and text in UTF-8, not "
        f"{kind}: convert the file",
        field=field,
    )


def read_encoded_file(data: str, *, name: str | None, field: str) -> PromptFile:
    """Decode a file sent as base64 or as a data URL, and return it like `read_file`.

    Raises:
        InvalidRequest: the file is not base64.
    """
    declared_type = None
    if data.startswith("data:"):
        head, _, data = data.partition(",")
        declared_type = head[5:].partition(";")[0] or None
    try:
        start = base64.b64decode(data[:_SNIFFED_BASE64], validate=True)
        kind = _detect_type(start, name, declared_type)
        if kind == PDF:
            return chat.Document(media_type=PDF, data=data, name=name)
        if kind in PICTURE_TYPES:
            return chat.Image(media_type=kind, data=data)
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
            items = part.content if isinstance(part, chat.ToolResult) else (part,)
            yield from (item for item in items if isinstance(item, chat.Document))


def _detect_type(head: bytes, name: str | None, declared_type: str | None) -> str:
    """Return a file's media type: by its content, else as declared, else by its name.

    Args:
        head: the first bytes of the content.
    """
    detected_type = detect_media_type(None, head)
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
