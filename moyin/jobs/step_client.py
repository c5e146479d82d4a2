"""Sends the HTTP requests of chat and http steps, with the rights of the job's submitter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic_core import from_json

from moyin.client.errors import GatewayUnreachable, RequestRefused
from moyin.client.gateway import GatewayClient
from moyin.domain.identity import Identity
from moyin.errors import BackendTimeout, BackendUnavailable, StepFailed
from moyin.http.client import BodyTooLong, read_up_to
from moyin.jobs.protocol.step_requests import check_step_path

_MAX_RESPONSE_BYTES = 32 * 1024 * 1024
_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
# Headers that a job can't set, because this client or the connection sets them. A job's value could
# act for another caller, or request a response in an encoding that this client can't decode.
_RESERVED_HEADERS = frozenset(
    {
        "accept-encoding", "authorization", "connection", "content-length", "cookie", "expect",
        "forwarded", "host", "idempotency-key", "keep-alive", "proxy-authorization", "te",
        "trailer", "transfer-encoding", "upgrade", "x-api-key", "x-request-disconnect-disabled",
        "x-request-id", "x-request-timeout-seconds",
    }
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResponse:
    """The successful response to a step's request.

    Attributes:
        media_type: the media type in lower case, without parameters.
        cost_usd: the cost of the request in US dollars, as the gateway reports it.
        backend: the name of the back end that responded, if the gateway reports one.
    """

    status: int
    media_type: str
    content: bytes
    cost_usd: Decimal
    backend: str | None

    def json(self) -> Any:
        """Return the content as a JSON value that a step's output can store.

        An unpaired surrogate, as in a text that was cut off within an emoji, becomes ``?``.

        Raises:
            StepFailed: the content is not JSON, or is nested too deeply.
        """
        try:
            json_text = json.dumps({"body": json.loads(self.content)}, ensure_ascii=False)
            return from_json(json_text.encode(errors="replace"))["body"]
        except (ValueError, RecursionError):
            raise StepFailed(
                f"the service's response has the type {self.media_type}, but is not valid JSON"
            ) from None


class StepClient:
    """Sends the requests of steps to the gateway and to the services behind the gateway.

    Args:
        gateway: a client that can act for any identity, because it can make tokens.
        max_response_bytes: the largest response in bytes; a larger response fails the step.
    """

    def __init__(
        self, gateway: GatewayClient, *, max_response_bytes: int = _MAX_RESPONSE_BYTES
    ) -> None:
        self._gateway = gateway
        self._max_response_bytes = max_response_bytes

    async def call(
        self,
        identity: Identity,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str,
    ) -> StepResponse:
        """Send a request with the rights of ``identity`` and return the response.

        Args:
            body: bytes are sent unchanged, a string as text, and other values as JSON.

        Raises:
            InvalidRequest: a step must not call this path.
            StepFailed: a header contains control characters, or the response is too large. Also
                raised if the service rejected the request, with the response in ``details``.
            BackendUnavailable, BackendTimeout: the request may succeed later.
        """
        check_step_path(path, field="path")
        allowed_headers = {
            k: v for k, v in (headers or {}).items() if k.lower() not in _RESERVED_HEADERS
        }
        for name, value in allowed_headers.items():
            if _CONTROL.search(value):
                # For example, the text of an earlier step may contain line breaks.
                raise StepFailed(f"the header {name} must not contain control characters")
        allowed_headers["idempotency-key"] = idempotency_key
        encoded_body = _encode_body(body, allowed_headers)
        try:
            # Sent exactly as it was checked, without another percent-encoding.
            async with self._gateway.open(
                method,
                path,
                encoded_body,
                headers=allowed_headers,
                identity=identity,
                is_encoded=True,
            ) as response:
                content = await read_up_to(response, self._max_response_bytes)
        except BodyTooLong:
            raise StepFailed(
                f"the response to {method} {_strip_query(path)} is larger than "
                f"the {self._max_response_bytes} bytes that a step can receive"
            ) from None
        except GatewayUnreachable as error:
            if isinstance(error.__cause__, TimeoutError):
                raise BackendTimeout(
                    f"{method} {_strip_query(path)} did not respond within the time limit of a request"
                ) from None
            error_name = type(error.__cause__).__name__
            raise BackendUnavailable(
                f"{method} {_strip_query(path)} failed, because the gateway could not be reached "
                f"({error_name})"
            ) from error
        except RequestRefused as error:
            raise _to_step_error(method, path, error) from None
        return StepResponse(
            status=response.status,
            media_type=response.content_type,
            content=content,
            cost_usd=_parse_cost(response.headers.get("x-moyin-cost-usd")),
            backend=response.headers.get("x-moyin-backend"),
        )


def _encode_body(body: Any, headers: dict[str, str]) -> bytes | None:
    """Return the body as bytes, or None without a body; add a missing content-type to ``headers``.

    A string is encoded as UTF-8; other values that are not bytes are encoded as JSON.
    """
    if body is None or isinstance(body, bytes):
        return body
    has_type = any(name.lower() == "content-type" for name in headers)
    if isinstance(body, str):
        if not has_type:
            headers["content-type"] = "text/plain; charset=utf-8"
        return body.encode()
    if not has_type:
        headers["content-type"] = "application/json"
    return json.dumps(body).encode()


def _to_step_error(
    method: str, path: str, refusal: RequestRefused
) -> BackendUnavailable | StepFailed:
    """Return the error of a step whose request was refused with an error status.

    The error is `BackendUnavailable` for a status after which a retry may succeed.
    """
    message = f"{method} {_strip_query(path)} answered with status {refusal.status}"
    response_text = refusal.body[:2_000].decode(errors="replace")
    details = {"status": refusal.status, "answer": response_text}
    if refusal.status in _RETRYABLE_STATUSES:
        return BackendUnavailable(message, details=details, retry_after=refusal.retry_after)
    return StepFailed(message, details=details)


def _strip_query(path: str) -> str:
    """Return the path without its query, for messages: a query may contain secrets."""
    return path.partition("?")[0][:200]


def _parse_cost(header: str | None) -> Decimal:
    try:
        cost = Decimal(header or 0)
    except InvalidOperation:
        return Decimal(0)
    return cost if cost.is_finite() and cost > 0 else Decimal(0)
