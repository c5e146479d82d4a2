"""Defines `AsyncClient`, which has the same methods as `Client`, for asyncio."""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx

from moyin_client import calls
from moyin_client.calls import Call, Tries
from moyin_client.errors import MoyinError, build_error, translate_errors
from moyin_client.files import Download, Upload
from moyin_client.following import Following, OnProgress, report_progress
from moyin_client.models import (
    Artifact,
    BulkResult,
    Event,
    EventToken,
    Job,
    Link,
    Page,
    Picture,
    UsageReport,
)
from moyin_client.requests import (
    ArtifactFilter,
    JobConditions,
    JobFilter,
    JobOptions,
    UsageQuery,
    Work,
)
from moyin_client.retry import Patience, RetryPolicy

T = TypeVar("T")


class AsyncClient:
    """Submits jobs to a gateway, and reads jobs, files and usage; methods raise `MoyinError`.

    A client belongs to one event loop. Use it as an async context manager, or call `close`. A job
    or file is given by its id, or as the `Job` or `Artifact` that another method returned.

    Args:
        url: the gateway's address, such as `http://127.0.0.1:8000`.
        api_key: the key for every request.
        timeout: the longest time in seconds without a byte from or to the gateway.
        retry: how often failed requests are sent again, and after which pauses.
    """

    def __init__(
        self, url: str, api_key: str, *, timeout: float = 60.0, retry: RetryPolicy | None = None
    ) -> None:
        self._policy = retry or RetryPolicy()
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(**calls.build_http_options(self._url, api_key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to the gateway."""
        await self._http.aclose()

    async def submit(
        self, work: Work, *, idempotency_key: str | None = None, **options: Unpack[JobOptions]
    ) -> Job:
        """Submit a job and return it; a retry after a lost response does not submit a second job.

        Args:
            work: what the job does.
            idempotency_key: by default, each call has a new key. If several calls have the same
                key, also in different processes, only the first submits a job, and all return it.
            options: `priority`, `deadline`, `metadata` and `webhook`.
        """
        return await self._send(calls.submit(work, options, idempotency_key))

    async def job(self, job: Job | str) -> Job:
        """Return the current state of a job, with its outputs."""
        return await self._send(calls.get_job(job))

    def jobs(self, **conditions: Unpack[JobFilter]) -> AsyncIterator[Job]:
        """Yield the jobs that meet all conditions, newest first; pages are requested as needed."""
        return self._read_pages(lambda cursor: calls.list_jobs(conditions, cursor))

    async def cancel(self, job: Job | str) -> Job:
        """Request the cancellation of a job and return the job, which may still be running.

        The job ends soon: usually as `cancelled`, or as `succeeded` if its work was already done.
        """
        return await self._send(calls.cancel(job))

    async def retry(self, job: Job | str) -> Job:
        """Continue a failed or cancelled job after its last finished step, and return the job."""
        return await self._send(calls.retry(job))

    async def delete(self, job: Job | str) -> None:
        """Delete a job that has ended, with its events and files."""
        await self._send(calls.delete_job(job))

    async def cancel_jobs(
        self, *, dry_run: bool = False, **conditions: Unpack[JobConditions]
    ) -> BulkResult:
        """Cancel the queued and running jobs that meet all conditions.

        With ``dry_run`` the jobs are only counted.
        """
        return await self._change_jobs("cancel", conditions, dry_run)

    async def delete_jobs(
        self, *, dry_run: bool = False, **conditions: Unpack[JobConditions]
    ) -> BulkResult:
        """Delete the ended jobs that meet all conditions.

        With ``dry_run`` the jobs are only counted.
        """
        return await self._change_jobs("delete", conditions, dry_run)

    async def graph(self, job: Job | str, *, step: int = 0) -> Mapping[str, Any]:
        """Return the graph of a render.

        Args:
            step: the index, from 0, of the step in a pipeline, or of the child in a batch.
        """
        return await self._send(calls.get_graph(job, step))

    async def events(
        self, job: Job | str, *, last_event_id: str | None = None, previews: bool = False
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a job until it ends, even if connections break or the gateway stops.

        Args:
            last_event_id: the id of the last event that you have received; None begins with the
                first event.
            previews: True to yield `preview` events, too, while a render shows pictures of its
                work.
        """
        following = Following(job, last_event_id, previews, self._policy)
        while not following.has_ended:
            try:
                async with self._open(following.connect()) as response:
                    async for piece in response.aiter_bytes():
                        for event in following.feed(piece):
                            yield event
                    following.close(response.status_code)
                continue
            except MoyinError as error:
                pause = following.pause_after(error)
            await sleep(pause)

    async def wait(
        self,
        job: Job | str,
        *,
        on_progress: OnProgress | None = None,
        longest_outage: float = 600.0,
    ) -> Job:
        """Wait until a job has ended, and return it with its outputs.

        A failed or cancelled job raises no error, so check the returned job's ``status``.

        Args:
            longest_outage: the seconds for which the gateway may be away at a time. They begin with
                its last answer; a longer outage raises the error of the last try.
        """
        patience = Patience(self._policy, longest_outage)
        last_event_id: str | None = None
        while True:
            try:
                async with aclosing(self.events(job, last_event_id=last_event_id)) as events:
                    async for event in events:
                        patience.renew()
                        last_event_id = event.id or last_event_id
                        report_progress(event, on_progress)
                current_job = await self.job(job)
            except MoyinError as error:
                await sleep(patience.pause_after(error))
                continue
            patience.renew()
            if current_job.has_ended:
                return current_job
            # The job was retried after the last event.
            await sleep(self._policy.first_pause)

    async def preview(self, job: Job | str) -> Picture | None:
        """Return the newest preview of a render, or None if there is none now.

        The gateway keeps previews only while a client follows the job's events with ``previews``,
        or calls this method at least every fifteen seconds.
        """
        try:
            return await self._send(calls.get_preview(job))
        except MoyinError as error:
            if error.code == "preview_not_found":
                return None
            raise

    async def create_token(self, job: Job | str, *, expires_in: int = 300) -> EventToken:
        """Return a token with which a web page can read the job's events, previews and files.

        Args:
            expires_in: the seconds for which the token is valid, 1 to 3600.
        """
        return await self._send(calls.create_token(job, expires_in))

    async def upload(
        self,
        file: str | Path | bytes,
        *,
        name: str | None = None,
        media_type: str | None = None,
        idempotency_key: str | None = None,
    ) -> Artifact:
        """Store a file and return it; in graphs and inputs, refer to it as `artifact:<id>`.

        Args:
            file: the path of the file, or its content as bytes.
            name: the name of the stored file; by default that of ``file``.
            media_type: by default, the ending of the name determines it.
            idempotency_key: calls with the same key store the file only once.
        """
        content = await asyncio.to_thread(Upload, file, name=name, media_type=media_type)
        return await self._send(calls.upload(content, idempotency_key))

    @overload
    async def download(self, artifact: Artifact | str, *, width: int | None = None) -> bytes: ...

    @overload
    async def download(
        self, artifact: Artifact | str, to: str | Path, *, width: int | None = None
    ) -> Path: ...

    async def download(
        self, artifact: Artifact | str, to: str | Path | None = None, *, width: int | None = None
    ) -> bytes | Path:
        """Return the content of a file, or store it at the path ``to`` and return the path.

        Args:
            to: the path of the new file, which replaces an existing one once it is complete.
            width: the largest width in pixels, 64 to 1024: returns the picture as WebP, made
                smaller if it is wider.
        """
        call, tries = calls.download(artifact, width), Tries(self._policy)
        path = None if to is None else Path(to)
        while True:
            try:
                async with self._open(call) as response:
                    with await asyncio.to_thread(Download, path) as target:
                        async for piece in response.aiter_bytes():
                            await asyncio.to_thread(target.write, piece)
                        content = await asyncio.to_thread(target.finish)
                return content if path is None else path
            except MoyinError as error:
                pause = tries.pause_after(error)
            await sleep(pause)

    def artifacts(self, **conditions: Unpack[ArtifactFilter]) -> AsyncIterator[Artifact]:
        """Yield the files that meet all conditions, newest first; pages are requested as needed."""
        return self._read_pages(lambda cursor: calls.list_artifacts(conditions, cursor))

    async def delete_artifact(self, artifact: Artifact | str) -> None:
        """Delete an uploaded file. To delete a file that a job made, delete the job."""
        await self._send(calls.delete_artifact(artifact))

    async def link(self, artifact: Artifact | str, *, expires_in: int = 3600) -> Link:
        """Return a link with which anyone can read a file without a key.

        Args:
            expires_in: the seconds for which the link is valid, at most a day.
        """
        return await self._send(calls.link(artifact, expires_in, self._url))

    async def usage(self, **query: Unpack[UsageQuery]) -> UsageReport:
        """Return the numbers of calls and tokens, and the costs, in a period."""
        return await self._send(calls.get_usage(query))

    async def webhook_secret(self) -> str:
        """Return the secret that signs your webhooks, for `verify_webhook`."""
        return await self._send(calls.get_webhook_secret())

    async def _change_jobs(
        self, action: Literal["cancel", "delete"], conditions: JobConditions, dry_run: bool
    ) -> BulkResult:
        pages = self._read_pages(
            lambda cursor: calls.change_jobs(action, conditions, dry_run, cursor)
        )
        return calls.sum_results([result async for result in pages])

    async def _send(self, call: Call[T]) -> T:
        tries = Tries(self._policy)
        while True:
            try:
                async with self._open(call) as response:
                    await response.aread()
                    return call.parse(response)
            except MoyinError as error:
                if tries.has_settled(call, error):
                    return (
                        await self._send(call.read_back)
                        if call.read_back
                        else call.parse(httpx.Response(204))
                    )
                pause = tries.pause_after(error)
            await sleep(pause)

    @asynccontextmanager
    async def _open(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        """Send a request and yield the successful response, before its body is read."""
        content = _read_in_threads(call.pieces()) if call.pieces else None
        with translate_errors():
            async with self._http.stream(**call.to_arguments(), content=content) as response:
                if not response.is_success:
                    body = await response.aread()
                    raise build_error(response.status_code, response.headers, body)
                yield response

    async def _read_pages(
        self, get_call: Callable[[str | None], Call[Page[T]]]
    ) -> AsyncIterator[T]:
        cursor: str | None = None
        while True:
            page = await self._send(get_call(cursor))
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return


async def _read_in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a file, read in threads so that reading does not block the event loop."""
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece
