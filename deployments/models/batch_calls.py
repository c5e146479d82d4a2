"""Sends the requests of batch lines through the same routes as clients' requests."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from deployments.models.errors import render_error
from deployments.models.routes.calls import CallRoute, set_background
from moyin.access.gatekeeper import RequestContext
from moyin.access.gatekeeper.asgi import Message, Scope
from moyin.access.gatekeeper.authorization import set_admission
from moyin.access.gatekeeper.limits import Admission, RequestMeter
from moyin.domain.identity import Identity
from moyin.domain.text_batch import LineResult
from moyin.errors import MoyinError, UnsupportedFeature
from moyin.store.usage import UsageEntry
from moyin.text.batches.runner import LineOutcome
from moyin.text.routing.ledger import Ledger

_log = logging.getLogger(__name__)
_HEADERS = ((b"content-type", b"application/json"),)


class BatchLineCaller:
    """Calls a model for each line of a batch, through the same routes as clients' requests.

    Args:
        routes: the routes of model calls by their full path.
        meter: counts requests and costs for limits and budgets; if None, there are no limits.
        ledger: records the usage of incomplete calls. The usage of complete calls is part of the
            `LineOutcome` that `call` returns.
    """

    def __init__(
        self, routes: Mapping[str, CallRoute], meter: RequestMeter | None, ledger: Ledger
    ) -> None:
        self._routes = routes
        self._meter = meter
        self._ledger = ledger

    async def call(
        self, endpoint: str, body: bytes, *, number: int, request_id: str, identity: Identity
    ) -> LineOutcome:
        usage: list[UsageEntry] = []
        response = _Response()
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": endpoint,
            "headers": _HEADERS,
            "moyin": RequestContext(request_id=request_id, identity=identity),
        }

        def record_usage(entry: UsageEntry) -> None:
            if entry.complete:
                usage.append(entry)
            else:
                self._ledger.record(entry)

        set_background(scope, record_usage)
        admission = None
        if identity.limits and self._meter is not None:
            admission = Admission(self._meter, identity.limits, identity.owner)
            set_admission(scope, admission)
        try:
            await self._call_route(endpoint, scope, body, response)
        except MoyinError as error:
            error_body = render_error(error, request_id, endpoint)
            failure_result = LineResult(
                number=number,
                http_status=error_body.status,
                body=error_body.body,
                error_code=error.code,
            )
            return LineOutcome(result=failure_result, error=error, usage=usage)
        finally:
            if admission is not None:
                admission.release()
        answer_result = LineResult(number=number, http_status=response.status, body=response.body)
        return LineOutcome(result=answer_result, usage=usage)

    async def _call_route(
        self, endpoint: str, scope: Scope, body: bytes, response: _Response
    ) -> None:
        """Call the route of an endpoint; convert unexpected exceptions to a `MoyinError`."""
        route = self._routes.get(endpoint)
        if route is None:
            raise UnsupportedFeature(
                f"url: must be one of {', '.join(sorted(self._routes))}, not {endpoint}",
                field="url",
            )

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await route(scope, receive, response.send)
        except MoyinError:
            raise
        except Exception as error:
            request_id = scope["moyin"].request_id
            _log.exception("the request %s of a batch raised an unexpected error", request_id)
            raise MoyinError(
                f"an internal error occurred; the server's log has the cause for request {request_id}"
            ) from error


class _Response:
    """Collects the ASGI messages of a response that a route sends."""

    def __init__(self) -> None:
        self.status = 500
        self._pieces: list[bytes] = []

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self._pieces.append(message.get("body", b""))
