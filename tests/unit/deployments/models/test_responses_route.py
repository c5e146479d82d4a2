from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError

from deployments.models.routes.responses import _SavedStream, _storage_errors
from moyin.errors import MoyinError, ServiceUnavailable


async def _pieces() -> AsyncGenerator[bytes, None]:
    yield b'data: {"id":"resp_1"}\n\n'
    yield b"data: last\n\n"


async def test_answer_that_cannot_be_stored_ends_with_an_error_event() -> None:
    attempts: list[str | None] = []

    async def save(response_id: str | None) -> bool:
        attempts.append(response_id)
        if len(attempts) < 2:
            return False
        with _storage_errors():
            raise OperationalError("INSERT", {}, Exception("the database is away"))

    def render(error: MoyinError) -> bytes:
        return error.code.encode()

    stream = _SavedStream(cast(Any, _pieces()), save, render)
    assert [piece async for piece in stream] == [
        b'data: {"id":"resp_1"}\n\n',
        b"service_unavailable",
    ]
    assert attempts == ["resp_1", "resp_1"]


def test_database_errors_tell_clients_to_try_again(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServiceUnavailable) as caught, _storage_errors():
        raise OperationalError("SELECT", {"input": "secret prompt"}, Exception("away"))
    assert caught.value.retry_after
    assert "secret" not in caught.value.message + caplog.text
