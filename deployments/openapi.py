"""Describes authentication in an app's OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["FILE", "FILE_RESPONSES", "QUERY_KEY", "document_security"]

_SCHEMES: Mapping[str, Mapping[str, str]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a person's access token: `Authorization: Bearer …`.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "An API key, as Anthropic's clients send it.",
    },
}
QUERY_KEY: Mapping[str, Mapping[str, str]] = {
    "queryKey": {
        "type": "apiKey",
        "in": "query",
        "name": "api_key",
        "description": "An API key, for clients of ComfyUI that can send no header; also `key` and "
        "`token`.",
    }
}
_PARAMETER = re.compile(r"\{[^}]+\}")
FILE: Mapping[str, Any] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file, with its own content type.", "content": FILE},
    206: {"description": "The requested range of the file.", "content": FILE},
    304: {"description": "The client's copy is current."},
    416: {"description": "The range lies outside the file."},
}


def document_security(
    described: dict[str, Any],
    is_public: Callable[[str], bool],
    more: Callable[[str], Mapping[str, Mapping[str, str]]] = lambda _: {},
) -> None:
    """Add to an OpenAPI document that routes need a key, except public ones.

    Args:
        is_public: tells by a path whether its route needs no key.
        more: returns further ways to send a key on a path, by name.
    """
    schemes = dict(_SCHEMES)
    described["security"] = _either(_SCHEMES)
    for path, methods in described["paths"].items():
        example = _PARAMETER.sub("x", path)
        extra = more(example)
        schemes |= extra
        for operation in methods.values():
            if is_public(example):
                operation["security"] = []
            elif extra:
                operation["security"] = _either({**_SCHEMES, **extra})
    described.setdefault("components", {})["securitySchemes"] = schemes


def _either(schemes: Mapping[str, Any]) -> Sequence[Mapping[str, Sequence[str]]]:
    return [{name: []} for name in schemes]
