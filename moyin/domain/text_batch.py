"""Defines batches of text requests, which have a lower priority than interactive requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from moyin.domain.identity import Identity

COMPLETION_WINDOW = timedelta(hours=24)
# The maximum number of lines of a batch, and of characters of a line's own id.
MAX_LINES = 50_000
MAX_CUSTOM_ID = 256
# The code of lines that were not run because the batch expired or was cancelled.
EXPIRED_LINE = "batch_expired"
CANCELLED_LINE = "batch_cancelled"


class BatchDialect(StrEnum):
    """The API that created a batch, which determines how the batch is rendered for clients."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class BatchStatus(StrEnum):
    """The status of a batch, with OpenAI's names.

    The usual order is ``validating``, ``in_progress``, ``finalizing``, then ``completed`` or
    ``expired``. A batch with an invalid input is ``failed``. A cancelled batch is ``cancelling``
    until its running lines have ended.
    """

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class LineStatus(StrEnum):
    """The status of a line: ``pending`` until it is ``completed`` (answered) or ``failed``."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchError:
    """Describes why an input file is invalid.

    Attributes:
        line: the number of the line, from 1; None if the error concerns the whole file.
        param: the invalid member of the line.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatch:
    """A batch of text requests of one tenant.

    Attributes:
        id: ``batch_`` (OpenAI) or ``msgbatch_`` (Anthropic) and 32 hexadecimal digits.
        endpoint: the path that every line calls, such as ``/v1/chat/completions``.
        input_file_id: the file whose lines are the requests.
        key_id, user, scopes: the submitter, with whose rights the lines run.
        total: the number of lines; 0 until they are validated.
        completed, failed: the numbers of lines that were answered or have failed.
        output_file_id: the file with the results of answered lines; None until the batch has ended.
        error_file_id: the file with the errors of lines that failed or were not run.
        errors: the problems of an invalid input file, at most a hundred.
        ended_at: the time at which the final status was reached.
        output_expires_after: the seconds for which the results are kept; None means no limit.
    """

    id: str
    owner: str
    dialect: BatchDialect
    endpoint: str
    input_file_id: str
    created_at: datetime
    expires_at: datetime
    status: BatchStatus = BatchStatus.VALIDATING
    key_id: str = ""
    user: str | None = None
    scopes: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[BatchError, ...] = ()
    in_progress_at: datetime | None = None
    cancelling_at: datetime | None = None
    finalizing_at: datetime | None = None
    ended_at: datetime | None = None
    output_expires_after: int | None = None

    @property
    def submitter(self) -> Identity:
        """The identity that created the batch, with whose rights its lines run."""
        return Identity(owner=self.owner, key_id=self.key_id, scopes=self.scopes, user=self.user)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewLine:
    """A line of an input file, to be run as one request.

    Attributes:
        number: the number of the line in the file, from 1.
        start, size: the position and length of the line in bytes, without the line break.
    """

    number: int
    custom_id: str
    start: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LineResult:
    """The result of a line.

    Attributes:
        http_status: the status that an interactive request would have received.
        body: the JSON of the answer or of the error, in the format of the endpoint.
        error_code: the stable code of the error; None for an answer.
    """

    number: int
    http_status: int
    body: bytes
    error_code: str | None = None

    @property
    def status(self) -> LineStatus:
        return LineStatus.COMPLETED if self.error_code is None else LineStatus.FAILED


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLine:
    """A line of a batch; ``result`` is None until the line has been answered or has failed."""

    number: int
    custom_id: str
    start: int
    size: int
    result: LineResult | None = None


def new_batch_id(dialect: BatchDialect) -> str:
    """Return the id of a new batch, with the prefix that the dialect's clients expect."""
    prefix = "batch" if dialect is BatchDialect.OPENAI else "msgbatch"
    return f"{prefix}_{secrets.token_hex(16)}"


def get_line_request_id(batch_id: str, number: int) -> str:
    """Return the request id of a line, which is the same for every attempt to run the line.

    Args:
        number: the number of the line.
    """
    return f"{batch_id}-{number}"
