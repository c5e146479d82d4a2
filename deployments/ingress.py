"""What the apps with a door have in common: FastAPI with our errors, and metrics through Ray."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from ray.util import metrics
from starlette.exceptions import HTTPException

from moyin.errors import InvalidJson, InvalidRequest, MoyinError, RouteNotFound
from moyin.gatekeeper import ErrorRenderer, context

__all__ = ["ServeMetrics", "new_fastapi"]

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]
_HAND_OVER_SECONDS = 1.0
# More than a replica can answer between two hand-overs.
_MOST_NOTED = 50_000


def new_fastapi(title: str, *, errors: ErrorRenderer, description: str, **options: Any) -> FastAPI:
    """A FastAPI app that answers every error in the shape of ``errors``."""
    app = FastAPI(title=title, description=description, version="1", **options)

    def render(request: Request, error: MoyinError) -> Response:
        rendered = errors(error, context(request.scope).request_id, request.url.path)
        return Response(rendered.body, rendered.status, dict(rendered.headers))

    async def on_moyin_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, MoyinError)
        return render(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return render(request, _invalid(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code in (404, 405):
            told = RouteNotFound(f"there is no {request.method} {request.url.path}")
            return render(request, told)
        return render(request, InvalidRequest(str(error.detail)))

    app.add_exception_handler(MoyinError, on_moyin_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    return app


def _invalid(error: RequestValidationError) -> MoyinError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return InvalidJson(f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    # The first part only says where it was found: body, query, path.
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return InvalidRequest(f"{field}: {first['msg']}", field=field)


class ServeMetrics:
    """Request metrics through Ray, which serves them to Prometheus.

    Handing one value to Ray costs as much as routing a request, so requests are only noted here
    and handed over by the second, in a thread, counted together where they are alike.
    """

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "moyin_requests_total",
            "Requests by service, method and status.",
            tag_keys=("service", "method", "status"),
        )
        self._seconds = metrics.Histogram(
            "moyin_request_seconds",
            "Seconds from the request's arrival to its last byte.",
            boundaries=_SECONDS,
            tag_keys=("service",),
        )
        self._noted: deque[tuple[str, str, int, float]] = deque(maxlen=_MOST_NOTED)
        threading.Thread(target=self._hand_over_forever, daemon=True).start()

    def observe(self, service: str, method: str, status: int, seconds: float) -> None:
        self._noted.append((service, method, status, seconds))

    def _hand_over_forever(self) -> None:
        pause = threading.Event()
        while not pause.wait(_HAND_OVER_SECONDS):
            alike: Counter[tuple[str, str, int]] = Counter()
            for _ in range(len(self._noted)):
                service, method, status, seconds = self._noted.popleft()
                alike[service, method, status] += 1
                self._seconds.observe(seconds, tags={"service": service})
            for (service, method, status), count in alike.items():
                tags = {"service": service, "method": method, "status": str(status)}
                self._requests.inc(count, tags=tags)
