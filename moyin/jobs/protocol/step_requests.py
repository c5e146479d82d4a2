"""Checks the requests of chat and http steps, and extracts the text of chat responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from moyin.domain.job import ChatProtocol
from moyin.errors import InvalidRequest, StepFailed

# Paths that no step may call. A job that creates jobs could run for ever. (Calls of models may
# create a job by `background` or `Prefer: respond-async`, because such a job only calls a model.)
# Responses of the accounts app contain keys, which every reader of the job could see in its result.
_FORBIDDEN_ROUTES = (
    "/jobs", "/prompt", "/api/prompt", "/api/v2/jobs", "/comfy", "/v1/images", "/accounts",
)  # fmt: skip
_MAX_ENCODINGS = 8


def check_chat_request(protocol: ChatProtocol, request: Mapping[str, Any], field: str) -> None:
    """Raise InvalidRequest if a chat step's request has mistakes that can be found without a model.

    Otherwise the models app would find them only when the step runs.

    Args:
        field: the path of the request in the job, for errors.
    """
    if protocol is ChatProtocol.RESPONSES:
        if not request.get("input"):
            raise InvalidRequest(
                f"{field}.input must be text or a list with at least one item",
                field=f"{field}.input",
            )
    else:
        _check_messages(protocol, request, field)
    if not isinstance(request.get("model"), str):
        raise InvalidRequest(
            f"{field}.model must be a string; `auto` lets the router choose",
            field=f"{field}.model",
        )
    if request.get("background"):
        raise InvalidRequest(
            f"{field}.background must be omitted, because a job runs in the background",
            field=f"{field}.background",
        )
    if request.get("stream"):
        raise InvalidRequest(
            f"{field}.stream must be omitted, because a job cannot stream its answer",
            field=f"{field}.stream",
        )


def _check_messages(protocol: ChatProtocol, request: Mapping[str, Any], field: str) -> None:
    messages = request.get("messages")
    has_prompt = protocol is ChatProtocol.OLLAMA and isinstance(request.get("prompt"), str)
    if not has_prompt and (not isinstance(messages, list) or not messages):
        raise InvalidRequest(
            f"{field}.messages must be a list with at least one message",
            field=f"{field}.messages",
        )


def get_chat_path(protocol: ChatProtocol, request: Mapping[str, Any]) -> str:
    """Return the path on the models app for a chat step's request."""
    match protocol:
        case ChatProtocol.OPENAI:
            return "/v1/chat/completions"
        case ChatProtocol.ANTHROPIC:
            return "/v1/messages"
        case ChatProtocol.OLLAMA:
            return f"/v1/ollama/api/{'generate' if 'prompt' in request else 'chat'}"
        case ChatProtocol.RESPONSES:
            return "/v1/responses"


def disable_streaming(protocol: ChatProtocol, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the request with streaming disabled.

    Only requests of Ollama's protocol change, because the other protocols do not stream by default.
    """
    return {**request, "stream": False} if protocol is ChatProtocol.OLLAMA else request


def extract_text(protocol: ChatProtocol, body: Any) -> str | None:
    """Return the text of a chat step's response; None if the model only called tools."""
    try:
        return _find_text(protocol, body)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise StepFailed(
            f"the back end's response is not in the API format {protocol.value!r}"
        ) from None


def _find_text(protocol: ChatProtocol, body: Any) -> str | None:
    match protocol:
        case ChatProtocol.OPENAI:
            content = body["choices"][0]["message"]["content"]
            return content if isinstance(content, str) else None
        case ChatProtocol.ANTHROPIC:
            texts = [block["text"] for block in body["content"] if block["type"] == "text"]
            return "".join(texts) if texts else None
        case ChatProtocol.OLLAMA:
            text = body["response"] if "response" in body else body["message"]["content"]
            return text or None
        case ChatProtocol.RESPONSES:
            messages = [item for item in body["output"] if item["type"] == "message"]
            texts = [part.get("text", "") for item in messages for part in item["content"]]
            return "".join(texts) or None


def check_step_path(path: str, *, field: str) -> None:
    """Check that an http step may send its request to ``path``, which may include a query.

    Args:
        field: the path of the checked field in the job, for errors.

    Raises:
        InvalidRequest: the path has a host, is relative, has ``.`` or ``..`` segments, or leads to
            the accounts app or to a route that creates jobs.
    """
    if not path.startswith("/") or path.startswith("//") or "\\" in path or "#" in path:
        raise InvalidRequest(
            f"{field} must be a path on the gateway, such as /v1/models", field=field
        )
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in path):
        raise InvalidRequest(
            f"{field} must not contain spaces or control characters; write a space as %20",
            field=field,
        )
    decoded_path = _decode_path(urlsplit(path).path, field)
    if "\\" in decoded_path or "\0" in decoded_path or {".", ".."} & set(decoded_path.split("/")):
        raise InvalidRequest(
            f"{field} must not contain backslashes, NUL characters, or . or .. segments",
            field=field,
        )
    # Ignore empty segments and a missing first slash, because servers treat these differently.
    normalized_path = "/" + "/".join(part for part in decoded_path.lower().split("/") if part)
    if any(
        normalized_path == route or normalized_path.startswith(f"{route}/")
        for route in _FORBIDDEN_ROUTES
    ):
        raise InvalidRequest(
            f"{field} must not lead to /accounts or to a route that creates jobs", field=field
        )


def _decode_path(path: str, field: str) -> str:
    """Return a path without percent-encoding, even if it was encoded several times."""
    # A long path could be encoded thousands of times, which would occupy the event loop.
    for _ in range(_MAX_ENCODINGS):
        decoded_path = unquote(path)
        if decoded_path == path:
            return path
        path = decoded_path
    raise InvalidRequest(
        f"{field} must be percent-encoded once, not {_MAX_ENCODINGS} times", field=field
    )
