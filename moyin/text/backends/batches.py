"""Defines the interface to a back end's own batch API, which is cheaper than single calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import from_json

from moyin.domain.chat import ChatRequest, ChatResponse
from moyin.errors import BackendUnavailable
from moyin.http.validation import new_malformed_response_error

# The most bytes of one line of results; the longest answer of any model has fewer.
_MAX_LINE_BYTES = 64 * 1024 * 1024


class RemoteState(StrEnum):
    """The state of a batch at a back end; a ``rejected`` batch was never started."""

    RUNNING = "running"
    ENDED = "ended"
    REJECTED = "rejected"


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteBatch:
    """A batch as its back end reports it.

    Attributes:
        count: the number of its requests; None while the back end does not know it.
        reason: why the batch was rejected.
        files: the ids of files that the back end keeps for the batch, the results first.
        input_file: the id of the file with the requests at the back end; None if it has no such file.
    """

    id: str
    state: RemoteState
    count: int | None = None
    reason: str = ""
    files: tuple[str, ...] = ()
    input_file: str | None = None


class RemoteOutcome(StrEnum):
    """The outcome of one request in a batch that the back end runs.

    ``UNANSWERED``: the request was cancelled or expired before its answer, and cost nothing.
    """

    ANSWERED = "answered"
    FAILED = "failed"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteResult:
    """The result of one request in a batch; ``body`` is the answer or the back end's error."""

    custom_id: str
    outcome: RemoteOutcome
    body: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """A local file with the requests of a new batch, one line per request.

    Attributes:
        key: unique id of the batch, chosen by Moyin.
        path: the path of the call that all requests make, such as ``/chat/completions``.
    """

    key: str
    path: str
    file: Path
    size: int
    count: int


class BatchApi(Protocol):
    """The interface of a back end's own batch API.

    Every ``deadline`` is the ``loop.time()`` by which a call must end. A failed call raises one of
    the errors that `ModelBackend` documents.

    Attributes:
        chat_path: the path of the call to which chat requests are translated.
        identifies_by_key: True if the back end stores and reports the key of each `Payload`.
        max_requests, max_bytes: the largest batch that the back end accepts.
    """

    chat_path: str
    identifies_by_key: bool
    max_requests: int
    max_bytes: int

    def supports(self, path: str) -> bool:
        """Return True if batches may consist of calls of this path, such as ``/embeddings``."""

    def encode_request(self, custom_id: str, path: str, body: Mapping[str, Any]) -> bytes:
        """Encode one request of a batch as a line of a `Payload` file.

        Args:
            custom_id: the id that the result of the request will have.
            path: the path of the call, such as ``/chat/completions``.
        """

    def encode_chat(self, request: ChatRequest) -> dict[str, Any]:
        """Translate a chat request to the body of a batch's request, for `encode_request`."""

    def read_chat(self, body: Mapping[str, Any]) -> ChatResponse:
        """Translate the JSON body of a successful result to a `ChatResponse`."""

    async def submit(self, payload: Payload, deadline: float) -> RemoteBatch:
        """Send a new batch, and return the back end's report about it, which has the batch's id.

        Args:
            deadline: the ``loop.time()`` by which the call must end.

        Raises:
            BackendRejected, BackendKeyRejected, ModelNotFound: the back end refused the batch.
            BackendError, Overloaded: the call failed, but the back end may have received the batch.
        """

    def find_submitted(
        self, key: str, count: int, since: datetime, deadline: float
    ) -> AsyncGenerator[RemoteBatch, None]:
        """Search the back end for a batch that Moyin sent, but whose id was lost.

        Yields each of the back end's batches that may be that batch.

        Args:
            key: the key of the sent `Payload`.
            count: the number of requests in the sent batch.
            since: the earliest time at which the batch may have been sent.
            deadline: the ``loop.time()`` by which the search must end.
        """

    async def poll(self, batch_id: str, deadline: float) -> RemoteBatch:
        """Return the current state of a batch.

        Args:
            deadline: the ``loop.time()`` by which the call must end.
        """

    async def cancel(self, batch_id: str, deadline: float) -> None:
        """Ask the back end to cancel a batch; a batch that has ended stays as it is.

        Args:
            deadline: the ``loop.time()`` by which the call must end.
        """

    def read_results(
        self, batch: RemoteBatch, deadline: float
    ) -> AsyncGenerator[RemoteResult, None]:
        """Yield the results of a batch that has ended, in any order.

        Args:
            deadline: the ``loop.time()`` by which all results must have arrived.
        """

    async def discard(self, batch: RemoteBatch, deadline: float) -> None:
        """Delete the files that the back end keeps of a batch whose results have been read.

        Args:
            deadline: the ``loop.time()`` by which the call must end.
        """


async def read_json_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the objects of a stream with one JSON object per line.

    Raises:
        BackendUnavailable: a line is too long, or is not a JSON object.
    """
    incomplete_line = b""
    async for piece in pieces:
        *lines, incomplete_line = (incomplete_line + piece).split(b"\n")
        if len(incomplete_line) > _MAX_LINE_BYTES:
            raise BackendUnavailable(
                f"a line of the back end's batch results exceeds {_MAX_LINE_BYTES} bytes"
            )
        for line in lines:
            if line.strip():
                yield parse_object(line)
    if incomplete_line.strip():
        yield parse_object(incomplete_line)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object from a back end; raise `BackendUnavailable` if it is malformed."""
    try:
        data = from_json(body)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise new_malformed_response_error()
    return data
