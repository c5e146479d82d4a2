"""Runs text calls as durable jobs if the client sends ``Prefer: respond-async`` (RFC 7240)."""

from __future__ import annotations

from typing import Any

from deployments.models.routes.sending import JSON, send_body
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import RawHeaders, Scope, Send, header
from moyin.client.gateway import GatewayClient
from moyin.domain.references import escape_references
from moyin.errors import MissingKey, MoyinError, RequestError, UnsupportedFeature
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.router import Router

__all__ = ["Deferral", "asks_for_a_job"]

# Headers that affect the answer or the choice of the back end. A chat job cannot carry them.
_UNSUPPORTED_HEADERS = (
    b"anthropic-beta",
    b"x-moyin-quality",
    b"x-moyin-residency",
    b"x-moyin-timeout",
    b"x-moyin-usd-per-bad-answer",
)
# A job stores the whole answer, so the members that ask for a stream are removed.
_STREAM_MEMBERS = frozenset({"stream", "stream_options"})


def asks_for_a_job(headers: RawHeaders) -> bool:
    """Tell whether the client asks for an asynchronous answer."""
    return any(
        preference.partition(b";")[0].strip() == b"respond-async"
        for name, value in headers
        if name == b"prefer"
        for preference in value.lower().split(b",")
    )


class Deferral:
    """Submits calls as jobs of the caller.

    The response is that of ``POST /jobs``: 202, ``Location`` and the job. The job's output is the
    answer of the call in the client's protocol. ``Idempotency-Key`` works as for ``POST /jobs``.
    """

    def __init__(self, text_router: Router, gateway: GatewayClient) -> None:
        self._text_router = text_router
        self._gateway = gateway

    async def __call__(
        self, codec: ProtocolCodec, call: ParsedRequest, scope: Scope, send: Send
    ) -> None:
        """Submit the call and send the response.

        Raises:
            RequestError: the call would fail whenever it runs.
            MoyinError: the jobs API refused the job.
        """
        request_context = context(scope)
        identity = request_context.identity
        if identity is None:
            raise MissingKey("this needs an API key")
        for name in _UNSUPPORTED_HEADERS:
            if header(scope, name) is not None:
                field = name.decode()
                raise UnsupportedFeature(
                    f"the header {field} cannot be used with `Prefer: respond-async`", field=field
                )
        routing_context = RoutingContext(
            request_id=request_context.request_id, owner=request_context.owner, headers=()
        )
        error = self._text_router.explain(codec, call, routing_context).error
        if isinstance(error, RequestError):
            raise error
        try:
            accepted = await self._gateway.submit_job(
                _job(codec, call, scope["path"]),
                identity=identity,
                idempotency_key=header(scope, b"idempotency-key"),
            )
        except MoyinError as error:
            # The client sent only the request, so the field is named without the job's member.
            error.field = error.field and error.field.removeprefix("request.")
            raise
        headers = [
            JSON,
            (b"location", accepted.location.encode()),
            (b"preference-applied", b"respond-async"),
        ]
        if accepted.replayed:
            headers.append((b"idempotent-replayed", b"true"))
        await send_body(send, 202, headers, accepted.body)


def _job(codec: ProtocolCodec, call: ParsedRequest, path: str) -> dict[str, Any]:
    request = {name: value for name, value in call.data.items() if name not in _STREAM_MEMBERS}
    if call.derive_needs().embeddings:
        http_request = {"method": "POST", "path": path, "body": escape_references(request)}
        return {"kind": "http", "request": http_request}
    return {
        "kind": "chat",
        "protocol": codec.api_format.value,
        "request": escape_references(request),
    }
