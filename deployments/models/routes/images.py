"""Serves ``POST /v1/images/generations``, OpenAI's image API, by jobs on the render farm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from deployments.models.routes.deferral import asks_for_a_job
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import RawHeaders
from moyin.client.gateway import AcceptedJob
from moyin.errors import MoyinError
from moyin.jobs.images import Images, JobEndedWithoutImages, JobStillRunning
from moyin.text.protocol.openai import images as protocol
from moyin.text.protocol.openai.errors import render_error
from moyin.text.routing.request_preferences import parse_preferences

__all__ = ["IMAGES_PATH", "ImageRules", "image_routes"]

IMAGES_PATH = "/images/generations"
_RESIDENCY = b"x-moyin-residency"
_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["created", "data"],
    "properties": {
        "created": {"type": "integer"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"url": {"type": "string"}, "b64_json": {"type": "string"}},
            },
        },
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The pictures.", "content": {"application/json": {"schema": _ANSWER}}},
    202: {"description": "With `Prefer: respond-async`: the job; `Location` is its path."},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRules:
    """Holds the current settings of image requests.

    Attributes:
        timeout: longest wait of a request in seconds.
        link_seconds: seconds for which links to pictures are valid.
        base_url: start of the links; empty: the address that the client used.
    """

    timeout: float = 120.0
    link_seconds: float = 3600.0
    base_url: str = ""


def image_routes(images: Images, rules: Callable[[], ImageRules]) -> APIRouter:
    """Return the route of image generation; ``rules`` returns the current settings."""
    router = APIRouter(tags=["images"])

    @router.post(IMAGES_PATH, summary="Generate images with OpenAI's API", responses=_RESPONSES)
    async def generate(request: Request) -> Response:
        """Generate pictures by the template that `model` names, one of `GET /templates` that has an
        input `prompt`. The request waits for the pictures. If that takes too long, the error names
        the job, which continues. If the client disconnects before, the job is cancelled unless the
        request has an `Idempotency-Key`."""
        caller, body = (
            context(request.scope).caller,
            protocol.parse_images_request(await request.body()),
        )
        headers: RawHeaders = request.scope["headers"]
        preferences = parse_preferences([h for h in headers if h[0] != _RESIDENCY], frozenset())
        key = request.headers.get("idempotency-key")
        submission = asyncio.create_task(
            images.submit(caller, body, cache=not preferences.bypass_cache, idempotency_key=key)
        )
        waits, rule = not asks_for_a_job(headers), rules()
        try:
            accepted = await asyncio.shield(submission)
            if not waits:
                return _accepted(accepted)
            seconds = min(rule.timeout, preferences.timeout or rule.timeout)
            job = await images.wait(caller, _job_id(accepted), seconds)
        except asyncio.CancelledError:
            # The client disconnected. A client that sent a key may ask for the same job again.
            await images.abandon(caller, submission, cancel=waits and key is None)
            raise
        except JobStillRunning as error:
            return _error_response(request, error, error.job)
        except JobEndedWithoutImages as ended:
            assert isinstance(ended.__cause__, MoyinError)
            return _error_response(request, ended.__cause__, ended.job)
        base = rule.base_url or f"{request.url.scheme}://{request.headers.get('host', '')}"
        data = await images.data(caller, job, body, base, rule.link_seconds)
        return _pictures(job, data)

    return router


def _job_id(accepted: AcceptedJob) -> str:
    return accepted.location.rpartition("/")[2]


def _accepted(accepted: AcceptedJob) -> Response:
    headers = {"location": accepted.location, "preference-applied": "respond-async"}
    if accepted.replayed:
        headers["idempotent-replayed"] = "true"
    return Response(accepted.body, 202, headers, "application/json")


def _pictures(job: Mapping[str, Any], data: list[dict[str, str]]) -> Response:
    headers = {
        "x-moyin-job": job["id"],
        "x-moyin-cache": "hit" if job["cached"] else "miss",
        "x-moyin-cost-usd": f"{job['cost_usd']:g}",
    }
    body = {"created": int(time.time()), "data": data}
    return Response(to_json(body), 200, headers, "application/json")


def _error_response(request: Request, error: MoyinError, job_id: str) -> Response:
    """Render the error of a job.

    ``x-should-retry`` stops OpenAI's SDKs from retrying, which would render the pictures again.
    """
    rendered = render_error(error, context(request.scope).request_id, request.url.path)
    headers = {"x-should-retry": "false", "x-moyin-job": job_id, "location": f"/jobs/{job_id}"}
    return Response(rendered.body, rendered.status, {**rendered.headers, **headers})
