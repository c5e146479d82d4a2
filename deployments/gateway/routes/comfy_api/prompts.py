"""Defines the routes of ComfyUI's prompts, queue, history and job list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel

from deployments.gateway.graph_bodies import read_graph_body
from deployments.gateway.openapi import describe_body
from deployments.gateway.routes.jobs import validate_idempotency_key
from moyin.access.gatekeeper import context
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.prompts import ComfyPrompts
from moyin.comfy_api.protocol.response import JOB_LIST_STATES
from moyin.errors import InvalidRequest
from moyin.http.validation import parse_object, validate
from moyin.render.protocol import wire

B = TypeVar("B", bound=BaseModel)


def new_prompt_routes(prompts: ComfyPrompts, admission: GraphAdmission) -> APIRouter:
    """Return the routes of prompts, which ComfyUI serves at the root and under ``/api``."""
    router = APIRouter(tags=["comfyui"])

    @router.post("/prompt", openapi_extra=_describe_body(wire.PromptBody))
    async def submit(
        request: Request,
        idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> dict[str, Any]:
        """Queue a graph. The job that renders the graph has the prompt's id."""
        caller = context(request.scope).caller
        return await prompts.submit(
            caller,
            await read_graph_body(request, admission.get_bounds(caller)),
            idempotency_key=validate_idempotency_key(idempotency_key),
        )

    @router.get("/prompt", name="remaining")
    async def count_open(request: Request) -> dict[str, Any]:
        """Return the number of your waiting and running prompts."""
        count = await prompts.count_open(context(request.scope).owner)
        return {"exec_info": {"queue_remaining": count}}

    @router.get("/queue", name="queue", response_model=dict[str, Any])
    async def list_queue(request: Request) -> Response:
        """List your running and waiting prompts."""
        return _respond(await prompts.list_queue(context(request.scope).owner))

    @router.post("/queue", response_class=Response, openapi_extra=_describe_body(wire.RemovalBody))
    async def change_queue(request: Request) -> Response:
        """Remove waiting prompts from the queue, by id or with `clear`.

        `clear` removes all prompts of your key or account, or only those of `client_id`.
        """
        caller, body = context(request.scope).caller, await _read_body(request, wire.RemovalBody)
        await prompts.cancel_waiting(caller, body.prompt_ids, client_id=body.client_id)
        return Response()

    @router.get("/history", name="history", response_model=dict[str, Any])
    async def list_history(
        request: Request,
        max_items: Annotated[int | None, Query(ge=0, le=2**31)] = None,
        offset: Annotated[int | None, Query(ge=-1, le=2**31)] = None,
    ) -> Response:
        """List your ended prompts: by default the newest 200, and at most 1000."""
        owner = context(request.scope).owner
        return _respond(await prompts.list_history(owner, max_items=max_items, offset=offset))

    @router.get("/history/{prompt_id}", name="history_of", response_model=dict[str, Any])
    async def get_history(request: Request, prompt_id: str) -> Response:
        """Return an ended prompt, or an empty object if the prompt is unknown or has not ended."""
        return _respond(await prompts.get_history(context(request.scope).owner, prompt_id))

    @router.post(
        "/history", response_class=Response, openapi_extra=_describe_body(wire.RemovalBody)
    )
    async def change_history(request: Request) -> Response:
        """Remove prompts from the history, by id or with `clear`. Their jobs and files stay.

        `clear` removes all prompts of your key or account, or only those of `client_id`.
        """
        caller, body = context(request.scope).caller, await _read_body(request, wire.RemovalBody)
        await prompts.hide_from_history(caller, body.prompt_ids, client_id=body.client_id)
        return Response()

    @router.post(
        "/interrupt", response_class=Response, openapi_extra=_describe_body(wire.InterruptBody)
    )
    async def interrupt(request: Request) -> Response:
        """Cancel the prompt `prompt_id`, or without an id your running prompts.

        Without an id, all running prompts of your key or account are cancelled, or only those of
        `client_id`.
        """
        caller, body = context(request.scope).caller, await _read_body(request, wire.InterruptBody)
        await prompts.interrupt(caller, body.prompt_id, client_id=body.client_id)
        return Response()

    @router.post("/free", response_class=Response, name="free")
    async def ignore_free() -> Response:
        """Ignore the request to free GPU memory, which all tenants share."""
        return Response()

    return router


def new_job_list_routes(prompts: ComfyPrompts) -> APIRouter:
    """Return the routes of ComfyUI's job list, which ComfyUI serves only under ``/api``."""
    router = APIRouter(prefix="/api/jobs", tags=["comfyui"])

    @router.get("", name="jobs", response_model=dict[str, Any])
    async def list_jobs(
        request: Request,
        status: Annotated[str, Query(max_length=128)] = "",
        workflow_id: Annotated[str | None, Query(max_length=255)] = None,
        sort_by: Literal["created_at", "execution_duration"] = "created_at",
        sort_order: Literal["asc", "desc"] = "desc",
        limit: Annotated[int | None, Query(ge=1, le=1_000)] = None,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> Response:
        """List your prompts. `status` filters by a comma-separated list of states."""
        states = [state.strip().lower() for state in status.split(",") if state.strip()]
        if not set(states) <= set(JOB_LIST_STATES):
            raise InvalidRequest(
                f"status must be a comma-separated list of {', '.join(JOB_LIST_STATES)}",
                field="status",
            )
        content = await prompts.list_jobs(
            context(request.scope).owner, states=states, workflow_id=workflow_id,
            sorts_by_duration=sort_by == "execution_duration", is_ascending=sort_order == "asc", limit=limit,
            offset=offset,
        )  # fmt: skip
        return _respond(content)

    @router.get("/{job_id}", name="job", response_model=dict[str, Any])
    async def get_job(request: Request, job_id: str) -> Response:
        """Return a prompt with its graph and its outputs."""
        return _respond(await prompts.get_job(context(request.scope).owner, job_id))

    @router.post("/cancel", openapi_extra=_describe_body(wire.CancelBody), name="cancel_some")
    async def cancel_several(request: Request) -> dict[str, bool]:
        """Cancel several waiting or running prompts."""
        body = await _read_body(request, wire.CancelBody)
        caller = context(request.scope).caller
        return {"cancelled": await prompts.cancel(caller, body.job_ids)}

    @router.post("/{job_id}/cancel")
    async def cancel(request: Request, job_id: str) -> dict[str, bool]:
        """Cancel a waiting or running prompt."""
        caller = context(request.scope).caller
        return {"cancelled": await prompts.cancel(caller, [job_id])}

    return router


def _respond(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def _read_body(request: Request, model: type[B]) -> B:
    """Parse the body as JSON. An empty body counts as ``{}``, as in ComfyUI."""
    content = await request.body()
    body: Mapping[str, Any] = parse_object(content) if content.strip() else {}
    return validate(model, body)


def _describe_body(model: type[BaseModel]) -> dict[str, Any]:
    return describe_body(model.model_json_schema(), is_required=False)
