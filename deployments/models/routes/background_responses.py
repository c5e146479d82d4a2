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
    first_events,
    has_ended,
    is_pending,
    last_events,
    render_failure,
    render_job,
    require_storable,
    start_event,
    to_job_request,
)
from moyin.text.protocol.responses.codec import ParsedResponseRequest, ResponsesCodec
from moyin.text.protocol.responses.errors import encode_error_event

_ID_PREFIX = "resp_"
# Proxies close connections that are silent for longer.
_SILENCE_SECONDS = 15.0
_KEEP_ALIVE = b": still here\n\n"
_CANCEL_SECONDS = 10.0
_STARTED = frozenset(EventType) - {EventType.QUEUED}


class BackgroundResponses:
    """Submits, shows, follows and cancels responses that run as jobs.

    The id of a response contains that of its job. It is stored as queued when the job is accepted,
    and receives the answer when it is first read after the job has ended.
    """

    def __init__(
        self, stored: StoredResponses, submitter: JobSubmitter, gateway: GatewayClient
    ) -> None:
        self._stored = stored
        self._submitter = submitter
        self._gateway = gateway
        self._codec = ResponsesCodec()

    async def submit(self, call: ParsedResponseRequest, scope: Scope) -> StoredResponse:
        """Submit a request as a job and store the response as queued; raise errors like `JobSubmitter`."""
        require_storable(call)
        _, body = await self._submitter.submit(
            self._codec, replace(call, data=to_job_request(call)), scope, asked_by="background"
        )
        response_id = _ID_PREFIX + from_json(body)["id"]
        owner = context(scope).owner
        stored = StoredResponse(
            id=response_id,
            owner=owner,
            previous=call.body.previous_response_id,
            input=call.own_items,
            response=call.render_queued(response_id),
            proofs={},
        )
        # A repeat under one Idempotency-Key finds the row, unless the first request ended between
        # the job and the row.
        await self._stored.add(stored)
        return await self._stored.get(owner, response_id)

    async def get(self, scope: Scope, response_id: str) -> StoredResponse:
        """Return a stored response in its current state.

        Raises:
            ResponseNotFound: the tenant has none with this id.
            MoyinError: the state of its job cannot be read.
        """
        return await self._update(
            await self._stored.get(context(scope).owner, response_id), context(scope).identity
        )

    async def cancel(self, scope: Scope, response_id: str) -> StoredResponse:
        """Cancel a response, and return it once that is done or has taken ten seconds.

        Raises:
            InvalidRequest: the response does not run in the background.
        """
        stored = await self.get(scope, response_id)
        if not stored.response["background"]:
            raise InvalidRequest(
                "only responses with background: true can be cancelled", field="response_id"
            )
        if await self._cancel_job(stored, context(scope).identity):
            identity = context(scope).identity
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._gateway.wait_for_job(_job_id(stored), identity=identity)
        return await self.get(scope, response_id)

    async def delete(self, scope: Scope, response_id: str) -> None:
        """Delete a response; cancel its job if that has not ended."""
        owner = context(scope).owner
        stored = await self._stored.get(owner, response_id)
        await self._cancel_job(stored, context(scope).identity)
        await self._stored.delete(owner, response_id)

    async def follow(
        self, scope: Scope, stored: StoredResponse, after: int = -1
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a response up to its end, those numbered up to ``after`` left out.

        Each event has the same number for all readers. An error while the job is followed
        ends the stream with an event of its own; the reader can resume.
        """
        number = 0

        def encode(event: tuple[str, dict[str, Any]]) -> bytes:
            nonlocal number
            name, members = event
            numbered = {"type": name, "sequence_number": number, **members}
            number += 1
            return encode_event(numbered, name=name) if number - 1 > after else b""

        try:
            yield b"".join(map(encode, first_events(stored.response)))
            response = (await self.get(scope, stored.id)).response
            while not has_ended(response):
                job_events = self._follow_job(stored, context(scope).identity)
                async with aclosing(job_events):
                    async for event in job_events:
                        if event is None:
                            yield _KEEP_ALIVE
                        elif number == 2 and event.type in _STARTED:
                            yield encode(start_event(stored.response))
                response = (await self.get(scope, stored.id)).response
            if number == 2:
                yield encode(start_event(stored.response))
            yield b"".join(map(encode, last_events(response)))
        except MoyinError as error:
            # The number of the last event: a reader that resumes after it misses nothing.
            yield encode_error_event(error, context(scope).request_id, max(number - 1, 0))

    async def _follow_job(
        self, stored: StoredResponse, identity: Identity | None
    ) -> AsyncGenerator[ServerSentEvent | None, None]:
        """Yield the events of a job, and None after each while without one."""
        events = self._gateway.follow_job(_job_id(stored), identity=identity)
        async with aclosing(events):
            following = asyncio.ensure_future(anext(events))
            try:
                while True:
                    done, _ = await asyncio.wait({following}, timeout=_SILENCE_SECONDS)
                    if not done:
                        yield None
                        continue
                    try:
                        event = following.result()
                    except StopAsyncIteration:
                        return
                    yield event
                    following = asyncio.ensure_future(anext(events))
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _update(self, stored: StoredResponse, identity: Identity | None) -> StoredResponse:
        """Return a stored response in the state of its job; store the answer if there is one."""
        if not is_pending(stored.response):
            return stored
        if identity is None:
            raise MissingKey("a response in the background needs an API key")
        try:
            path = f"/jobs/{_job_id(stored)}"
            job = await self._gateway.read_json(path, identity=identity)
        except JobNotFound:
            message = "its job was deleted before the response was read"
            return replace(stored, response=render_failure(stored.response, "job_gone", message))
        updated = replace(stored, response=render_job(stored.response, job))
        # A failed or cancelled job can be retried, so only an answer is final.
        if updated.response["status"] in ("completed", "incomplete"):
            await self._stored.update(updated)
        return updated

    async def _cancel_job(self, stored: StoredResponse, identity: Identity | None) -> bool:
        """Cancel the job of a response; return False if there is none that runs."""
        if has_ended(stored.response):
            return False
        try:
            await self._gateway.cancel_job(f"/jobs/{_job_id(stored)}", identity=identity)
        except (JobFinished, JobNotFound):
            return False
        return True


def require_ended(response: Mapping[str, Any]) -> None:
    """Check that a response can be continued; raise InvalidRequest if not."""
    status = response["status"]
    if status not in ("completed", "incomplete"):
        raise InvalidRequest(
            f"previous_response_id: the response is {status}; only one that has an answer can be "
            "continued",
            field="previous_response_id",
        )


def _job_id(stored: StoredResponse) -> str:
    return stored.id.removeprefix(_ID_PREFIX)
