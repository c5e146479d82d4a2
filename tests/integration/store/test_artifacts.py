"""Rows of artifacts on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio

from moyin.domain.artifact import Artifact
from moyin.store.artifacts import ArtifactStore
from moyin.store.sql import Database

ARTIFACT = Artifact(
    id="art_00000000000000000000000000000001",
    name="out.png",
    media_type="image/png",
    size=3,
    sha256="0" * 64,
)


async def test_concurrent_writes_of_one_artifact_store_it_once(database_url: str) -> None:
    """As prompts do that load the same output for the first time."""
    databases = [Database(database_url) for _ in range(4)]
    stores = [ArtifactStore(database) for database in databases]
    await asyncio.gather(*(store.add(ARTIFACT, owner="ann") for store in stores * 5))
    assert (await stores[0].get("ann", ARTIFACT.id)).name == "out.png"
    for database in databases:
        await database.close()
