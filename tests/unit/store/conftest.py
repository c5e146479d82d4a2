from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moyin.store.sql import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield database
    await database.close()
