"""Writes the results of lines in groups, with one transaction per group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from pydantic_core import to_json
from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.text_batch import LineResult
from moyin.errors import MoyinError
from moyin.store.batch_lines import BatchLineStore, FinishedLine
from moyin.store.usage import is_outage

_log = logging.getLogger(__name__)
_GROUP = 64
_GROUP_BYTES = 16 * 1024 * 1024
_GATHER_SECONDS = 0.03
_RETRY_SECONDS = 0.5
_INTERNAL = {
    "error": {
        "message": "the answer cannot be stored in the database; send the request again",
        "type": "server_error",
        "param": None,
        "code": MoyinError.code,
    }
}


class ResultWriter:
    """Writes results to the database; keeps them in memory while the database is unavailable.

    The number of results in memory is bounded by the number of running lines.

    Args:
        on_written: called with each result that was written.
    """

    def __init__(
        self, lines: BatchLineStore, on_written: Callable[[LineResult], None] | None = None
    ) -> None:
        self._lines = lines
        self._on_written = on_written
        self._waiting_lines: list[tuple[FinishedLine, asyncio.Future[None]]] = []
        self._writing_task: asyncio.Task[None] | None = None

    async def write(self, finished_line: FinishedLine) -> None:
        """Write a result, and return once it is in the database."""
        written_future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_lines.append((finished_line, written_future))
        if self._writing_task is None or self._writing_task.done():
            self._writing_task = asyncio.create_task(self._write_waiting_lines())
        await asyncio.shield(written_future)

    async def close(self) -> None:
        """Write all remaining results, giving up after a few failed attempts."""
        if self._writing_task is not None and not self._writing_task.done():
            _, pending_tasks = await asyncio.wait([self._writing_task], timeout=4 * _RETRY_SECONDS)
            for task in pending_tasks:
                task.cancel()
            await asyncio.gather(*pending_tasks, return_exceptions=True)
            if pending_tasks:
                _log.error(
                    "%d results of batches were not written; their lines run again",
                    len(self._waiting_lines),
                )

    async def _write_waiting_lines(self) -> None:
        while self._waiting_lines:
            await asyncio.sleep(_GATHER_SECONDS)
            group = self._waiting_lines[: self._count_next_group()]
            await self._write_group([finished_line for finished_line, _ in group])
            del self._waiting_lines[: len(group)]
            for _, written_future in group:
                if not written_future.done():
                    written_future.set_result(None)

    def _count_next_group(self) -> int:
        """Return the number of results to write in the next transaction, at least one."""
        size = 0
        for count, (finished_line, _) in enumerate(self._waiting_lines[:_GROUP]):
            size += len(finished_line.result.body)
            if count and size > _GROUP_BYTES:
                return count
        return min(len(self._waiting_lines), _GROUP)

    async def _write_group(self, group: list[FinishedLine]) -> None:
        is_replaced = False
        while True:
            try:
                refused_lines = await self._lines.finish(group)
                break
            except (SQLAlchemyError, OSError) as error:
                # The error's text contains the statement's parameters, which are answers.
                if is_outage(error):
                    _log.warning("results of batches are not written: %s", type(error).__name__)
                    await asyncio.sleep(_RETRY_SECONDS)
                elif len(group) > 1:
                    for finished_line in group:
                        await self._write_group([finished_line])
                    return
                elif is_replaced:
                    _log.error("a line's result cannot be stored; it runs again")
                    return
                else:
                    group, is_replaced = [self._replace_invalid_result(group[0], error)], True
        for finished_line in refused_lines:
            _log.warning(
                "line %d of batch %s had a result already; another answer was thrown away",
                finished_line.result.number,
                finished_line.batch_id,
            )
        if self._on_written is not None:
            written_ids = {id(finished_line) for finished_line in group} - {
                id(finished_line) for finished_line in refused_lines
            }
            for finished_line in group:
                if id(finished_line) in written_ids:
                    self._on_written(finished_line.result)

    def _replace_invalid_result(
        self, finished_line: FinishedLine, error: Exception
    ) -> FinishedLine:
        """Return an error result in place of a result that the database rejects."""
        _log.error(
            "line %d of batch %s has an answer or usage that cannot be stored: %s",
            finished_line.result.number,
            finished_line.batch_id,
            type(error).__name__,
        )
        error_result = LineResult(
            number=finished_line.result.number,
            http_status=500,
            body=to_json(_INTERNAL),
            error_code=MoyinError.code,
        )
        return replace(finished_line, result=error_result, usage=())
