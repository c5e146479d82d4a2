"""Tests the rows of artifacts on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import JobStatus, StepKind, StepResult
from moyin.store.artifacts import ArtifactStore, derive_step_artifact_id, insert_artifacts
from moyin.store.jobs import JobStore, NewJob
from moyin.store.prompts import build_submitter_condition
from moyin.store.sql import Database

ARTIFACT = Artifact(
    id="art_00000000000000000000000000000001",
    name="out.png",
    media_type="image/png",
    size=3,
    sha256="0" * 64,
)


async def test_concurrent_writes_of_one_artifact_store_it_once(database_url: str) -> None:
    """Prompts that load the same output for the first time store the same artifact concurrently."""
    databases = [Database(database_url) for _ in range(4)]
    stores = [ArtifactStore(database) for database in databases]
    await asyncio.gather(*(store.add(ARTIFACT, owner="ann") for store in stores * 5))
    assert (await stores[0].get("ann", ARTIFACT.id)).name == "out.png"
    for database in databases:
        await database.close()


async def test_newest_output_by_name_is_found_among_many_through_an_index(
    database_url: str,
) -> None:
    database = Database(database_url)
    store, jobs = ArtifactStore(database), JobStore(database)
    own_condition = build_submitter_condition(Identity(owner="ann", key_id="own"))

    async def store_render(owner: str, key_id: str) -> Artifact:
        job_id = str(uuid.uuid4())
        await jobs.create(
            NewJob(
                id=job_id,
                owner=owner,
                kind="render",
                spec="0" * 64,
                key_id=key_id,
                comfyui=True,
                heads=((StepKind.RENDER, "default"),),
            )
        )
        output = replace(ARTIFACT, id=derive_step_artifact_id(job_id, 0, 0))
        result = StepResult(index=0, output="1" * 64, artifacts=(output,))
        await jobs.start(job_id, 1)
        await jobs.finish(job_id, 1, JobStatus.SUCCEEDED, None, results=[result])
        return output

    own_output, other_output = await store_render("ann", "own"), await store_render("ann", "other")
    await store_render("bob", "own")
    uploads = [replace(ARTIFACT, id=f"art_{uuid.uuid4().hex}") for _ in range(300)]
    await database.write(lambda c: insert_artifacts(c, uploads, owner="ann", job_id=None))
    assert await store.find_newest_output("ann", "out.png", own_condition) == own_output
    assert await store.find_newest_output("ann", "out.png", sa.false()) == other_output
    for owner, name in (("eve", "out.png"), ("ann", "OUT.png"), ("ann", "out%"), ("", "out.png")):
        assert await store.find_newest_output(owner, name, own_condition) is None

    explained_database = _ExplainingDatabase(database_url)
    await ArtifactStore(explained_database).find_newest_output("ann", "out.png", own_condition)
    assert "ix_artifacts_outputs_by_name" in explained_database.plan
    assert (
        "SCAN artifacts" not in explained_database.plan
        and "Seq Scan on artifacts" not in explained_database.plan
    )

    # The owner deletes the jobs.
    await jobs.delete("ann", [row.id for row in (await jobs.list_page("ann", limit=9))[0]])
    assert await store.find_newest_output("ann", "out.png", own_condition) is None
    await explained_database.close()
    await database.close()


class _ExplainingDatabase(Database):
    """Stores in ``plan`` how the database executes the last query for a single row."""

    plan = ""

    async def fetch_first(self, query: sa.Select[Any]) -> sa.RowMapping | None:
        def explain(connection: sa.Connection) -> str:
            is_sqlite = connection.dialect.name == "sqlite"
            if not is_sqlite:
                # The tables are so small that reading them whole would be cheaper.
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            sql = query.compile(connection, compile_kwargs={"literal_binds": True})
            prefix = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
            rows = connection.exec_driver_sql(f"{prefix} {sql}").all()
            return "\n".join(str(row) for row in rows)

        self.plan = await self.read(explain)
        return await super().fetch_first(query)
