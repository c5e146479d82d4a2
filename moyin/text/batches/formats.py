"""Defines the interface of a batch format, which reads input lines and writes result lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from moyin.domain.text_batch import BatchDialect, BatchLine, TextBatch
from moyin.text.protocol.anthropic.batches import AnthropicBatchFormat
from moyin.text.protocol.openai.batches import OpenAIBatchFormat


class BatchFormat(Protocol):
    """Reads input lines and renders result lines in the format of one batch protocol."""

    @property
    def max_lines(self) -> int:
        """The maximum number of lines in an input file."""

    @property
    def has_error_file(self) -> bool:
        """True if failed lines go to a separate error file; False if all go to the output file."""

    def check_line(self, line: bytes, endpoint: str) -> str:
        """Validate a line of an input file and return its ``custom_id``.

        Args:
            endpoint: the path of the call that all lines of the batch make.

        Raises:
            InvalidLine: the line is not a valid request.
        """

    def read_body(self, line: bytes) -> bytes:
        """Return the request body that the line contains, for a call of the batch's endpoint."""

    def render_result(self, batch: TextBatch, line: BatchLine) -> bytes:
        """Return the result of a line as JSON, without a line break.

        If the batch was cancelled or expired before the line was run, the result is an error that
        states this.
        """


FORMATS: Mapping[BatchDialect, BatchFormat] = {
    BatchDialect.OPENAI: OpenAIBatchFormat(),
    BatchDialect.ANTHROPIC: AnthropicBatchFormat(),
}
