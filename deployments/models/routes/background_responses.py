"""Runs responses of the Responses API as jobs (``background: true``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from deployments.models.routes.deferral import JobSubmitter
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Scope
from moyin.client.gateway import GatewayClient, ServerSentEvent
from moyin.domain.identity import Identity
from moyin.domain.job import EventType
from moyin.errors import InvalidRequest, JobFinished, JobNotFound, MissingKey, MoyinError
from moyin.http.sse import encode_event
from moyin.store.stored_responses import StoredResponse, StoredResponses
from moyin.text.protocol.responses.background import (
    add_job_status,
    build_first_events,
    build_last_events,
    build_start_event,
    has_ended,
    is_pending,
    render_failure,
    require_storable,
    to_job_request,
)
from moyin.text.protocol.responses.codec import ParsedResponseRequest, ResponsesCodec
from moyin.text.protocol.responses.errors import encode_error_event

_ID_PREFIX = "resp_"
# Seconds; proxies close connections that are silent for longer.
_SILENCE_SECONDS = 15.0
_KEEP_ALIVE = b": still here\n\n"
_CANCEL_SECONDS = 10.0
_STARTED = frozenset(EventType) - {EventType.QUEUED}


class BackgroundResponses:
    """Submits, shows, follows and cancels responses that run as jobs.

    The id of a response contains the id of its job. The response is stored as queued when the job
    is accepted, and the answer is stored when the response is first read after the job has ended.
    """

    def __init__(
        self, stored_responses: StoredResponses, submitter: JobSubmitter, gateway: GatewayClient
    ) -> None:
        self._stored_responses = stored_responses
        self._submitter = submitter
        self._gateway = gateway
        self._codec = ResponsesCodec()

    async def submit(self, call: ParsedResponseRequest, scope: Scope) -> StoredResponse:
        """Submit a request as a job, and store and return a queued response.

        Raises:
            RequestError: the request is invalid and would always fail.
            MoyinError: the jobs API rejected the job.
        """
        require_storable(call)
        _, body = await self._submitter.submit(
            self._codec, replace(call, data=to_job_request(call)), scope, requested_by="background"
        )
        response_id = _ID_PREFIX + from_json(body)["id"]
        owner = context(scope).owner
        queued_response = StoredResponse(
            id=response_id,
            owner=owner,
            previous=call.body.previous_response_id,
            input=call.own_items,
            response=call.render_queued(response_id),
            proofs={},
        )
        # A repetition with the same Idempotency-Key finds the stored row, unless the first request
        # ended after the job was created and before the row was stored.
        await self._stored_responses.add(queued_response)
        return await self._stored_responses.get(owner, response_id)

    async def get(self, scope: Scope, response_id: str) -> StoredResponse:
        """Return a stored response in its current state.

        Raises:
            ResponseNotFound: the tenant has no response with this id.
            MoyinError: the state of its job cannot be read.
        """
        return await self._update_from_job(
            await self._stored_responses.get(context(scope).owner, response_id),
            context(scope).identity,
        )

    async def cancel(self, scope: Scope, response_id: str) -> StoredResponse:
        """Cancel a response, and return it when the cancellation is done or after ten seconds.

        Raises:
            InvalidRequest: the response was not requested with ``background: true``.
        """
        stored_response = await self.get(scope, response_id)
        if not stored_response.response["background"]:
            raise InvalidRequest(
                "only responses with background: true can be cancelled", field="response_id"
            )
        if await self._cancel_job(stored_response, context(scope).identity):
            identity = context(scope).identity
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._gateway.wait_for_job(
                        _get_job_id(stored_response), identity=identity
                    )
        return await self.get(scope, response_id)

    async def delete(self, scope: Scope, response_id: str) -> None:
        """Delete a response, and cancel its job if the job has not ended."""
        owner = context(scope).owner
        stored_response = await self._stored_responses.get(owner, response_id)
        await self._cancel_job(stored_response, context(scope).identity)
        await self._stored_responses.delete(owner, response_id)

    async def follow(
        self, scope: Scope, stored_response: StoredResponse, after: int = -1
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a response up to its end, omitting those numbered up to ``after``.

        Each event has the same number for all readers. If following the job fails, an error event
        ends the stream, and the reader can resume.
        """
        sequence_number = 0

        def encode(event: tuple[str, dict[str, Any]]) -> bytes:
            nonlocal sequence_number
            name, members = event
            numbered_event = {"type": name, "sequence_number": sequence_number, **members}
            sequence_number += 1
            return encode_event(numbered_event, name=name) if sequence_number - 1 > after else b""

        try:
            yield b"".join(map(encode, build_first_events(stored_response.response)))
            response = (await self.get(scope, stored_response.id)).response
            while not has_ended(response):
                job_events = self._follow_job(stored_response, context(scope).identity)
                async with aclosing(job_events):
                    async for event in job_events:
                        if event is None:
                            yield _KEEP_ALIVE
                        elif sequence_number == 2 and event.type in _STARTED:
                            yield encode(build_start_event(stored_response.response))
                response = (await self.get(scope, stored_response.id)).response
            if sequence_number == 2:
                yield encode(build_start_event(stored_response.response))
            yield b"".join(map(encode, build_last_events(response)))
        except MoyinError as error:
            # The error event gets the number of the last event, so that a reader that resumes after
            # it misses nothing.
            yield encode_error_event(error, context(scope).request_id, max(sequence_number - 1, 0))

    async def _follow_job(
        self, stored_response: StoredResponse, identity: Identity | None
    ) -> AsyncGenerator[ServerSentEvent | None, None]:
        """Yield the events of a job, and None whenever no event came for some seconds."""
        events = self._gateway.follow_job(_get_job_id(stored_response), identity=identity)
        async with aclosing(events):
            next_event = asyncio.ensure_future(anext(events))
            try:
                while True:
                    done_tasks, _ = await asyncio.wait({next_event}, timeout=_SILENCE_SECONDS)
                    if not done_tasks:
                        yield None
                        continue
                    try:
                        event = next_event.result()
                    except StopAsyncIteration:
                        return
                    yield event
                    next_event = asyncio.ensure_future(anext(events))
            finally:
                next_event.cancel()
                await asyncio.gather(next_event, return_exceptions=True)

    async def _update_from_job(
        self, stored_response: StoredResponse, identity: Identity | None
    ) -> StoredResponse:
        """Return a stored response with its job's state; store the answer of a successful job."""
        if not is_pending(stored_response.response):
            return stored_response
        if identity is None:
            raise MissingKey("background: true requires an API key: send one as a Bearer token")
        try:
            path = f"/jobs/{_get_job_id(stored_response)}"
            job = await self._gateway.read_json(path, identity=identity)
        except JobNotFound:
            message = (
                "the job of this response was deleted before its answer was read; send the request "
                "again"
            )
            return replace(
                stored_response,
                response=render_failure(stored_response.response, "job_gone", message),
            )
        updated_response = replace(
            stored_response, response=add_job_status(stored_response.response, job)
        )
        # A failed or cancelled job can be retried, so only an answer is final.
        if updated_response.response["status"] in ("completed", "incomplete"):
            await self._stored_responses.update(updated_response)
        return updated_response

    async def _cancel_job(self, stored_response: StoredResponse, identity: Identity | None) -> bool:
        """Cancel the job of a response; return False if the job does not run."""
        if has_ended(stored_response.response):
            return False
        try:
            await self._gateway.cancel_job(
                f"/jobs/{_get_job_id(stored_response)}", identity=identity
            )
        except (JobFinished, JobNotFound):
            return False
        return True


def require_ended(response: Mapping[str, Any]) -> None:
    """Raise InvalidRequest if a response has no answer yet and so cannot be continued."""
    status = response["status"]
    if status not in ("completed", "incomplete"):
        raise InvalidRequest(
            f"previous_response_id: the response is {status}; only a response with an answer can "
            "be continued",
            field="previous_response_id",
        )


def _get_job_id(stored_response: StoredResponse) -> str:
    return stored_response.id.removeprefix(_ID_PREFIX)
