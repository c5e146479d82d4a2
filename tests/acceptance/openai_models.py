"""Validates bodies and events strictly against the types of the ``openai`` package.

No value is converted, all required members must exist, and unknown members are errors, except
Moyin's documented extensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
from openai.pagination import SyncCursorPage
from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    ErrorObject,
    FileDeleted,
    FileObject,
    ImagesResponse,
    Model,
    ModerationCreateResponse,
)
from openai.types.audio import Transcription, TranscriptionVerbose, Translation
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json, to_json

from moyin.http.sse import FrameSplitter

CHAT = TypeAdapter[Any](ChatCompletion)
CHUNK = TypeAdapter[Any](ChatCompletionChunk)
COMPLETION = TypeAdapter[Any](Completion)
EMBEDDINGS = TypeAdapter[Any](CreateEmbeddingResponse)
ERROR = TypeAdapter[Any](ErrorObject)
ITEMS = TypeAdapter[Any](ResponseItemList)
MODEL = TypeAdapter[Any](Model)
RESPONSE = TypeAdapter[Any](Response)
EVENT = TypeAdapter[Any](ResponseStreamEvent)
# Members beyond the types.
EXTENSIONS = frozenset(
    {
        # Of reasoning, as vLLM and LiteLLM name them; OpenAI's chat completions do not show it.
        "reasoning_content",
        "thinking_blocks",
        # OpenAI's API sends them, and its package has no place for them.
        "store",
        "task",
        # Version 2 of the package requires it in an event, version 3 does not know it.
        "name",
        # llama.cpp's own; its bytes pass as they are.
        "timings",
        # Moyin's own, in errors.
        "details",
        "request_id",
    }
)


# Of models, Moyin shows what they can do, and what Anthropic's clients expect of the same route.
MODEL_EXTENSIONS = frozenset(
    {
        "abilities", "backends", "created_at", "display_name", "embeddings", "lifecycle",
        "max_input_tokens", "max_tokens", "capabilities", "schema", "status", "thinking", "tools",
        "type", "vision",
    }
)  # fmt: skip

# Of lists: OpenAI's API sends them, and its package does not read them.
_LIST_EXTENSIONS = frozenset({"object", "first_id", "last_id"})
# Whole answers of the calls that are neither chats nor responses, by method and path.
_ANSWERS: list[tuple[str, TypeAdapter[Any]]] = [
    ("POST /batches", TypeAdapter(Batch)),
    ("GET /batches", TypeAdapter(SyncCursorPage[Batch])),
    ("GET /batches/[^/]+", TypeAdapter(Batch)),
    ("POST /batches/[^/]+/cancel", TypeAdapter(Batch)),
    ("POST /files", TypeAdapter(FileObject)),
    ("GET /files", TypeAdapter(SyncCursorPage[FileObject])),
    ("GET /files/[^/]+", TypeAdapter(FileObject)),
    ("DELETE /files/[^/]+", TypeAdapter(FileDeleted)),
    ("POST /images/(generations|edits|variations)", TypeAdapter(ImagesResponse)),
    ("POST /moderations", TypeAdapter(ModerationCreateResponse)),
    ("POST /audio/transcriptions", TypeAdapter(TranscriptionVerbose | Transcription)),
    ("POST /audio/translations", TypeAdapter(Translation)),
]


def check_response(response: httpx.Response) -> None:
    """Validate a JSON response or error; used as a hook in the client of OpenAI's SDK."""
    if _is_json(response):
        response.read()
        _check_content(response)


async def check_response_async(response: httpx.Response) -> None:
    """Validate a response like `check_response`, for the asynchronous SDK."""
    if _is_json(response):
        await response.aread()
        _check_content(response)


def _is_json(response: httpx.Response) -> bool:
    media_type: str = response.headers.get("content-type", "").partition(";")[0]
    return media_type == "application/json"


def _check_content(response: httpx.Response) -> None:
    if response.is_error:
        check_error(response.content)
        return
    call = f"{response.request.method} {response.request.url.path.removeprefix('/v1')}"
    for pattern, type_adapter in _ANSWERS:
        if re.fullmatch(pattern, call):
            check_body(type_adapter, response.content, _LIST_EXTENSIONS)


def check_body(
    type_adapter: TypeAdapter[Any], body: bytes | str, extensions: frozenset[str] = frozenset()
) -> Any:
    """Return the body as an object of the package's type, validated strictly.

    Args:
        extensions: the paths of members that the body may have in addition.

    Raises:
        ValidationError: the body does not match the type.
        AssertionError: a member is neither in the type nor an extension.
    """
    validated_body = type_adapter.validate_json(body, strict=True)
    unknown_members = sorted(set(_find_unknown_members(validated_body, "")) - extensions)
    assert not unknown_members, f"unknown members {unknown_members} in {body!r}"
    return validated_body


def check_error(body: bytes | str) -> Any:
    """Validate the body of an error response, or the last event of an interrupted chat stream."""
    data = from_json(body)
    assert data.keys() - EXTENSIONS == {"error"}, f"unknown members beside `error` in {body!r}"
    return check_body(ERROR, to_json(data["error"]))


def read_event_data(body: bytes) -> list[bytes]:
    """Return the data of all events of a chat stream, without the final ``[DONE]``."""
    data = [frame.data for frame in FrameSplitter().feed(body) if frame.data is not None]
    assert data, f"no event with data in {body!r}"
    return [item for item in data if item != b"[DONE]"]


def _find_unknown_members(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of members that neither the types nor the extensions contain.

    Args:
        path: the path of ``value``, with a dot at its end.
    """
    if isinstance(value, BaseModel):
        for name in value.model_extra or ():
            if name not in EXTENSIONS:
                yield f"{path}{name}"
        for name in type(value).model_fields:
            yield from _find_unknown_members(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list):
        for item in value:
            yield from _find_unknown_members(item, path)
