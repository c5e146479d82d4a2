"""Defines the exceptions for failed requests to the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from moyin.errors import MoyinError, ServiceUnavailable


def _iterate_error_types(error_type: type[MoyinError]) -> Iterator[type[MoyinError]]:
    yield error_type
    for child in error_type.__subclasses__():
        yield from _iterate_error_types(child)


# The error types by code, except for types that inherit their base's code.
ERROR_TYPES = {kind.code: kind for kind in _iterate_error_types(MoyinError) if "code" in vars(kind)}


class GatewayUnreachable(ServiceUnavailable):
    """Reports that the connection to the gateway failed.

    The attribute ``url`` must not be shown to clients, because it is an internal address.
    """

    def __init__(self, url: str) -> None:
        super().__init__("the gateway is unavailable; try again later", retry_after=5)
        self.url = url


class RequestRefused(MoyinError):
    """Reports that the gateway responded with an error status.

    Attributes:
        status: the HTTP status.
        body: the first 64 KiB of the response's body.
        reported_code: the stable code in the body, such as ``job_not_found``; None without one.
        detail: the error message in the body, without ComfyUI's errors of single nodes.
        request_id: the id under which the gateway logged the request.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        parsed_body = _parse_members(body)
        members = parsed_body or {}
        error_body = members.get("error", {})
        if not isinstance(error_body, dict):
            error_body = {"message": str(error_body)}
        # Moyin's own routes have the code at the top level, beside ComfyUI's members for an invalid
        # graph.
        code = members.get("code") or error_body.get("code") or error_body.get("type")
        self.status = status
        self.body = body
        self.reported_code = code if isinstance(code, str) else None
        self.detail = str(members.get("detail") or error_body.get("message") or members.get("message")
                          or f"the gateway answered with status {status}")  # fmt: skip
        self.request_id = headers.get("x-request-id", "")
        message = "; ".join([self.detail, *_describe_node_errors(members)])
        plain_body = "" if parsed_body is not None else body.decode(errors="replace")[:300].strip()
        retry_header = headers.get("retry-after", "")
        super().__init__(
            plain_body or message,
            field=members.get("field") or error_body.get("param"),
            retry_after=float(retry_header)
            if retry_header.isdecimal() and len(retry_header) < 6
            else None,
        )

    def to_typed_error(self) -> MoyinError:
        """Return the `moyin.errors` exception for the reported code.

        If the code is missing or unknown, this is ServiceUnavailable.
        """
        error_type = ERROR_TYPES.get(self.reported_code or "")
        if error_type is None:
            return ServiceUnavailable("the gateway is unavailable; try again later", retry_after=5)
        error = error_type(self.detail, retry_after=self.retry_after)
        error.field = self.field
        return error


def _parse_members(body: bytes) -> dict[str, Any] | None:
    """Return the members of a JSON body; None if the body is not JSON.

    A value that is not an object is returned as the member ``error``.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else {"error": str(value)}


def _describe_node_errors(members: Mapping[str, Any]) -> list[str]:
    """Return one line for each error in ``node_errors``, which has ComfyUI's errors by node."""
    # The body may have any shape, because any service behind the gateway may have sent it.
    errors_by_node = members.get("node_errors")
    lines = []
    for node, node_errors in errors_by_node.items() if isinstance(errors_by_node, dict) else ():
        errors = node_errors.get("errors") if isinstance(node_errors, dict) else None
        for error in errors if isinstance(errors, list) else ():
            if isinstance(error, dict):
                line = f"node {node}: {error.get('message', '')} {error.get('details', '')}"
                lines.append(line.strip())
    return lines
