"""Serves OpenAI's ``POST /v1/images/generations`` by jobs that render the pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from deployments.models.routing_config import ImagesConfig
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import RawHeaders
from moyin.client.gateway import AcceptedJob
from moyin.domain.identity import Identity
from moyin.errors import MoyinError
from moyin.http.headers import prefers_async_response
from moyin.jobs.images import ImageJobs, JobEndedWithoutImages, JobStillRunning
from moyin.text.protocol.openai import images as protocol
from moyin.text.protocol.openai.errors import render_error
from moyin.text.routing.request_preferences import parse_preferences

IMAGES_PATH = "/images/generations"
_RESIDENCY_HEADER = b"x-moyin-residency"
_ANSWER_SCHEMA: dict[str, Any] = {
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
    200: {
        "description": "The pictures.",
        "content": {"application/json": {"schema": _ANSWER_SCHEMA}},
    },
    202: {"description": "With `Prefer: respond-async`: the job; `Location` is its path."},
}


class PictureSubmitter(Protocol):
    """Function that submits the render job of an image request and returns the job."""

    def __call__(
        self, identity: Identity, /, *, cache: bool, idempotency_key: str | None
    ) -> Coroutine[Any, Any, AcceptedJob]: ...


def new_image_routes(
    images: ImageJobs, get_settings: Callable[[], ImagesConfig], public_url: str
) -> APIRouter:
    """Return the route that generates pictures.

    Args:
        get_settings: returns the current settings.
        public_url: first part of links to pictures; if empty, the address that the client used.
    """
    router = APIRouter(tags=["images"])
    renderer = PictureRenderer(images, get_settings, public_url)

    @router.post(
        IMAGES_PATH,
        operation_id="generate_images_generations_post",
        summary="Generate images with OpenAI's API",
        responses=_RESPONSES,
    )
    async def generate_images(request: Request) -> Response:
        """Generate pictures by the template that `model` names, which needs an input `prompt`.

        The request waits for the pictures. If that takes too long, the error names the job, which
        continues. If the client disconnects earlier, the job is cancelled unless the request has an
        `Idempotency-Key`. `GET /templates` lists the templates.
        """
        body = protocol.parse_images_request(await request.body())
        return await renderer.respond(request, body, partial(images.submit, body=body))

    return router


class PictureRenderer:
    """Answers image requests with pictures that a job renders.

    Args:
        get_settings: returns the current settings.
        public_url: first part of links to pictures; if empty, the address that the client used.
    """

    def __init__(
        self, images: ImageJobs, get_settings: Callable[[], ImagesConfig], public_url: str
    ) -> None:
        self._images = images
        self._get_settings = get_settings
        self._public_url = public_url

    async def respond(
        self, request: Request, body: protocol.ImagesBody, submit: PictureSubmitter
    ) -> Response:
        """Submit a job, wait for its pictures, and return a response with the pictures."""
        images, caller = self._images, context(request.scope).caller
        headers: RawHeaders = request.scope["headers"]
        preferences = parse_preferences(
            [h for h in headers if h[0] != _RESIDENCY_HEADER], frozenset()
        )
        idempotency_key = request.headers.get("idempotency-key")
        submit_task = asyncio.create_task(
            submit(caller, cache=not preferences.bypass_cache, idempotency_key=idempotency_key)
        )
        waits_for_pictures, settings = not prefers_async_response(headers), self._get_settings()
        try:
            accepted_job = await asyncio.shield(submit_task)
            if not waits_for_pictures:
                return _new_accepted_response(accepted_job)
            wait_seconds = min(settings.timeout_s, preferences.timeout or settings.timeout_s)
            job = await images.wait_for_job(caller, _parse_job_id(accepted_job), wait_seconds)
        except asyncio.CancelledError:
            # The client disconnected. If it sent an Idempotency-Key, it may request the same job
            # again.
            await images.abandon(
                caller, submit_task, cancel=waits_for_pictures and idempotency_key is None
            )
            raise
        except JobStillRunning as error:
            return _new_error_response(request, error, error.job)
        except JobEndedWithoutImages as ended:
            assert isinstance(ended.__cause__, MoyinError)
            return _new_error_response(request, ended.__cause__, ended.job)
        base_url = self._public_url or f"{request.url.scheme}://{request.headers.get('host', '')}"
        data = await images.render_data(caller, job, body, base_url, settings.link_seconds)
        return _new_pictures_response(job, data)


def _parse_job_id(accepted_job: AcceptedJob) -> str:
    return accepted_job.location.rpartition("/")[2]


def _new_accepted_response(accepted_job: AcceptedJob) -> Response:
    headers = {"location": accepted_job.location, "preference-applied": "respond-async"}
    if accepted_job.replayed:
        headers["idempotent-replayed"] = "true"
    return Response(accepted_job.body, 202, headers, "application/json")


def _new_pictures_response(job: Mapping[str, Any], data: list[dict[str, str]]) -> Response:
    headers = {
        "x-moyin-job": job["id"],
        "x-moyin-cache": "hit" if job["cached"] else "miss",
        "x-moyin-cost-usd": f"{job['cost_usd']:g}",
    }
    body = {"created": int(time.time()), "data": data}
    return Response(to_json(body), 200, headers, "application/json")


def _new_error_response(request: Request, error: MoyinError, job_id: str) -> Response:
    """Render the error of a job, with a header that prevents retries by OpenAI's SDKs."""
    error_body = render_error(error, context(request.scope).request_id, request.url.path)
    headers = {"x-should-retry": "false", "x-moyin-job": job_id, "location": f"/jobs/{job_id}"}
    return Response(error_body.body, error_body.status, {**error_body.headers, **headers})
