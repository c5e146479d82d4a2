"""Stores the configurations that the gateway has used, so that operators see what changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.store.schema import config_history
from moyin.store.sql import Database, ensure_utc, now

KEPT = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedConfig:
    """A configuration, and when it was first used."""

    values: Mapping[str, Any]
    applied_at: datetime


class ConfigHistory:
    """Reads and writes the table ``config_history``, which keeps the newest `KEPT` configurations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, values: Mapping[str, Any]) -> None:
        """Store a configuration unless it equals the newest one; every replica calls this."""
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

        def add(connection: sa.Connection) -> None:
            if connection.dialect.name == "postgresql":
                # Replicas that start at once would record it twice. SQLite has one writer anyway.
                connection.execute(sa.text("LOCK TABLE config_history IN EXCLUSIVE MODE"))
            newest_query = sa.select(config_history.c.number, config_history.c.digest)
            row = connection.execute(newest_query.order_by(config_history.c.number.desc())).first()
            if row is not None and row.digest == digest:
                return
            number = 1 if row is None else row.number + 1
            connection.execute(
                config_history.insert().values(
                    number=number, digest=digest, settings=dict(values), applied_at=now()
                )
            )
            connection.execute(
                config_history.delete().where(config_history.c.number <= number - KEPT)
            )

        await self._database.write(add)

    async def list_newest(self, limit: int) -> list[RecordedConfig]:
        """Return up to ``limit`` configurations, newest first."""
        query = sa.select(config_history).order_by(config_history.c.number.desc()).limit(limit)
        return [
            RecordedConfig(values=row["settings"], applied_at=ensure_utc(row["applied_at"]))
            for row in await self._database.fetch_all(query)
        ]
