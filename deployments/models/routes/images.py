"""``POST /v1/images/generations``: OpenAI's clients get pictures from the render farm."""

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
from moyin.text.routing.policy import parse_preferences

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
    """Attributes:
    timeout: seconds that a request waits at most.
    link_seconds: for which links to pictures are good.
    base_url: of links; empty: the address that the client used.
    """

    timeout: float = 120.0
    link_seconds: float = 3600.0
    base_url: str = ""


def image_routes(images: Images, rules: Callable[[], ImageRules]) -> APIRouter:
    """``rules``: those in force."""
    router = APIRouter(tags=["images"])

    @router.post(IMAGES_PATH, summary="OpenAI image generation", responses=_RESPONSES)
    async def generate(request: Request) -> Response:
        """Pictures by a template of `GET /templates` that has an input `prompt`; `model` names it.
        Waits for them; a request that has waited too long says which job to follow. A client that
        leaves before cancels the job, unless it gave an `Idempotency-Key`."""
        caller, body = context(request.scope).caller, protocol.parse(await request.body())
        headers: RawHeaders = request.scope["headers"]
        preferences = parse_preferences([h for h in headers if h[0] != _RESIDENCY], frozenset())
        key = request.headers.get("idempotency-key")
        wanted = asyncio.create_task(
            images.submit(caller, body, cache=not preferences.bypass_cache, idempotency_key=key)
        )
        waits, rule = not asks_for_a_job(headers), rules()
        try:
            accepted = await asyncio.shield(wanted)
            if not waits:
                return _accepted(accepted)
            seconds = min(rule.timeout, preferences.timeout or rule.timeout)
            job = await images.wait(caller, _job_id(accepted), seconds)
        except asyncio.CancelledError:
            # The client has left. Who sent a key means to ask for the same job again.
            await images.abandon(caller, wanted, cancel=waits and key is None)
            raise
        except JobStillRunning as error:
            return _refused(request, error, error.job)
        except JobEndedWithoutImages as lost:
            assert isinstance(lost.__cause__, MoyinError)
            return _refused(request, lost.__cause__, lost.job)
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


def _refused(request: Request, error: MoyinError, job_id: str) -> Response:
    """OpenAI's SDKs repeat what a server failed at, unless told: they would render it again."""
    told = render_error(error, context(request.scope).request_id, request.url.path)
    ours = {"x-should-retry": "false", "x-moyin-job": job_id, "location": f"/jobs/{job_id}"}
    return Response(told.body, told.status, {**told.headers, **ours})
