"""Defines what the dialects of batches differ in: the lines of input files and of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from moyin.domain.text_batch import BatchDialect, BatchLine, TextBatch
from moyin.text.protocol.anthropic.batches import AnthropicBatchFormat
from moyin.text.protocol.openai.batches import OpenAIBatchFormat


class BatchFormat(Protocol):
    """Reads the lines of input files, and renders the results of lines."""

    @property
    def max_lines(self) -> int:
        """The most lines of an input file."""

    @property
    def has_error_file(self) -> bool:
        """True if failed lines have a file of their own; if False, all are in the output file."""

    def check_line(self, line: bytes, endpoint: str) -> str:
        """Return the line's own id, ``custom_id``.

        Raises:
            InvalidLine: the line cannot be run.
        """

    def read_body(self, line: bytes) -> bytes:
        """Return the body of the request that the line makes to the batch's endpoint."""

    def render_result(self, batch: TextBatch, line: BatchLine) -> bytes:
        """Return the result of a line as JSON, without a line break.

        A line without a result was not run, because the batch was cancelled or expired.
        """


FORMATS: Mapping[BatchDialect, BatchFormat] = {
    BatchDialect.OPENAI: OpenAIBatchFormat(),
    BatchDialect.ANTHROPIC: AnthropicBatchFormat(),
}
