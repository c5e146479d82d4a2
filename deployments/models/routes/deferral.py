"""``Prefer: respond-async`` (RFC 7240): a text call becomes a durable job."""

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

# Headers that change what is answered, or by whom, and that a chat job has no place for.
_LOST = (
    b"anthropic-beta",
    b"x-moyin-quality",
    b"x-moyin-residency",
    b"x-moyin-timeout",
    b"x-moyin-usd-per-bad-answer",
)
# How a request wants its answer: a job gives it whole.
_OF_STREAMS = frozenset({"stream", "stream_options"})


def asks_for_a_job(headers: RawHeaders) -> bool:
    """Whether a client would rather not wait."""
    preferences = [value for name, value in headers if name == b"prefer"]
    return any(map(_names_a_job, preferences))


def _names_a_job(preferences: bytes) -> bool:
    wishes = preferences.lower().split(b",")
    return any(wish.partition(b";")[0].strip() == b"respond-async" for wish in wishes)


class Deferral:
    """Answers calls with a job that will make them, in the caller's name.

    The answer is the one of ``POST /jobs``: 202, ``Location``, the job; the job's output is the
    answer of the call, in the client's protocol. ``Idempotency-Key`` works as there.
    """

    def __init__(self, text_router: Router, gateway: GatewayClient) -> None:
        self._text_router = text_router
        self._gateway = gateway

    async def __call__(
        self, codec: ProtocolCodec, call: ParsedRequest, scope: Scope, send: Send
    ) -> None:
        """Raises what is wrong with the request, as far as waiting would not help, and what the
        jobs API says is wrong."""
        asked = context(scope)
        identity = asked.identity
        if identity is None:
            raise MissingKey("this needs an API key")
        for name in _LOST:
            if header(scope, name) is not None:
                field = name.decode()
                raise UnsupportedFeature(f"a job carries no header {field}", field=field)
        routing_context = RoutingContext(request_id=asked.request_id, owner=asked.owner, headers=())
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
            # The client does not know the job's member that holds its request.
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
    request = {name: value for name, value in call.data.items() if name not in _OF_STREAMS}
    if call.needs().embeddings:
        asked = {"method": "POST", "path": path, "body": escape_references(request)}
        return {"kind": "http", "request": asked}
    return {
        "kind": "chat",
        "protocol": codec.api_format.value,
        "request": escape_references(request),
    }
