"""ComfyUI's own routes: prompts, the queue and the history. Every one is also under ``/api``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel

from deployments.gateway.routes.jobs import idempotency_key
from moyin.access.gatekeeper import context
from moyin.comfy_api.prompts import FarmPrompts
from moyin.comfy_api.protocol.response import STATES
from moyin.errors import InvalidGraph, InvalidRequest
from moyin.http.validation import parse_object, validate
from moyin.render.protocol import wire

__all__ = ["comfyui_job_routes", "comfyui_routes"]

B = TypeVar("B", bound=BaseModel)
_NO_PROMPT = {
    "error": {
        "type": "no_prompt",
        "message": "No prompt provided",
        "details": "No prompt provided",
        "extra_info": {},
    },
    "node_errors": {},
}


def comfyui_routes(prompts: FarmPrompts) -> APIRouter:
    """The routes that ComfyUI itself has under both paths."""
    router = APIRouter(tags=["comfyui"])

    @router.post("/prompt", openapi_extra=_body(wire.PromptBody))
    async def submit(
        request: Request, key: Annotated[str | None, Header(alias="Idempotency-Key")] = None
    ) -> dict[str, Any]:
        """Queue a graph. The job that renders it has the prompt's id."""
        told = parse_object(await request.body())
        if "prompt" not in told:
            raise InvalidGraph("No prompt provided", details=_NO_PROMPT)
        return await prompts.submit(
            context(request.scope).caller,
            validate(wire.PromptBody, told),
            idempotency_key=idempotency_key(key),
        )

    @router.get("/prompt")
    async def remaining(request: Request) -> dict[str, Any]:
        """How many of your prompts wait or run."""
        count = await prompts.remaining(context(request.scope).owner)
        return {"exec_info": {"queue_remaining": count}}

    @router.get("/queue")
    async def queue(request: Request) -> dict[str, Any]:
        """Your prompts that run, and those that wait."""
        return await prompts.queue(context(request.scope).owner)

    @router.post("/queue", response_class=Response, openapi_extra=_body(wire.IdsBody))
    async def change_queue(request: Request) -> Response:
        """Take waiting prompts out of the queue: some, or with `clear` those that your own key or
        account has queued through this API (of one `client_id`, if the body names it)."""
        caller, asked = context(request.scope).caller, await _read(request, wire.IdsBody)
        await prompts.remove(caller, asked.chosen, client_id=asked.client_id)
        return Response()

    @router.get("/history")
    async def history(
        request: Request,
        max_items: Annotated[int | None, Query(ge=0, le=2**31)] = None,
        offset: Annotated[int | None, Query(ge=-1, le=2**31)] = None,
    ) -> dict[str, Any]:
        """Your prompts that have ended: by default the newest 200, at most 1000."""
        return await prompts.history(
            context(request.scope).owner,
            max_items=max_items,
            offset=offset,
        )

    @router.get("/history/{prompt_id}")
    async def history_of(request: Request, prompt_id: str) -> dict[str, Any]:
        """One of them; an empty object when it has not ended, or is not known."""
        return await prompts.history_of(context(request.scope).owner, prompt_id)

    @router.post("/history", response_class=Response, openapi_extra=_body(wire.IdsBody))
    async def change_history(request: Request) -> Response:
        """Take prompts out of the history: some, or with `clear` those that your own key or account
        has queued through this API. Their jobs and files stay."""
        caller, asked = context(request.scope).caller, await _read(request, wire.IdsBody)
        await prompts.forget(caller, asked.chosen, client_id=asked.client_id)
        return Response()

    @router.post("/interrupt", response_class=Response, openapi_extra=_body(wire.InterruptBody))
    async def interrupt(request: Request) -> Response:
        """End one prompt; without a `prompt_id`, those that run and that your own key or account has
        queued through this API (of one `client_id`, if the body names it)."""
        caller, asked = context(request.scope).caller, await _read(request, wire.InterruptBody)
        await prompts.interrupt(caller, asked.prompt_id, client_id=asked.client_id)
        return Response()

    @router.post("/free", response_class=Response)
    async def free() -> Response:
        """Accepted and ignored: what is in the cards' memory is everybody's."""
        return Response()

    return router


def comfyui_job_routes(prompts: FarmPrompts) -> APIRouter:
    """ComfyUI's job list, which it has under ``/api`` only."""
    router = APIRouter(prefix="/api/jobs", tags=["comfyui"])

    @router.get("")
    async def jobs(
        request: Request,
        status: Annotated[str, Query(max_length=128)] = "",
        workflow_id: Annotated[str | None, Query(max_length=255)] = None,
        sort_by: Literal["created_at", "execution_duration"] = "created_at",
        sort_order: Literal["asc", "desc"] = "desc",
        limit: Annotated[int | None, Query(ge=1, le=1_000)] = None,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> dict[str, Any]:
        """Your prompts in any state; `status` names some of them with commas between."""
        states = [state.strip().lower() for state in status.split(",") if state.strip()]
        if not set(states) <= set(STATES):
            raise InvalidRequest(f"status must be of {', '.join(STATES)}", field="status")
        return await prompts.jobs(
            context(request.scope).owner,
            states=states,
            workflow_id=workflow_id,
            by_duration=sort_by == "execution_duration",
            ascending=sort_order == "asc",
            limit=limit,
            offset=offset,
        )

    @router.get("/{job_id}")
    async def job(request: Request, job_id: str) -> dict[str, Any]:
        """One of them, with its graph and its outputs."""
        return await prompts.job(context(request.scope).owner, job_id)

    @router.post("/cancel", openapi_extra=_body(wire.CancelBody))
    async def cancel_some(request: Request) -> dict[str, bool]:
        """End those that have not ended."""
        asked = await _read(request, wire.CancelBody)
        caller = context(request.scope).caller
        return {"cancelled": await prompts.cancel(caller, asked.job_ids)}

    @router.post("/{job_id}/cancel")
    async def cancel(request: Request, job_id: str) -> dict[str, bool]:
        """End one, if it has not ended."""
        caller = context(request.scope).caller
        return {"cancelled": await prompts.cancel(caller, [job_id])}

    return router


async def _read(request: Request, shape: type[B]) -> B:
    """The body; an empty one is legal in ComfyUI."""
    body = await request.body()
    told: Mapping[str, Any] = parse_object(body) if body.strip() else {}
    return validate(shape, told)


def _body(shape: type[BaseModel]) -> dict[str, Any]:
    """Bodies are read by hand: clients send them without saying that they are JSON."""
    return {"requestBody": {"content": {"application/json": {"schema": shape.model_json_schema()}}}}
