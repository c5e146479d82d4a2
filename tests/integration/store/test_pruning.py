"""Tests pruning on SQLite and on a real PostgreSQL, and through the command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moyin.errors import JobNotFound
from moyin.store import blob_references
from moyin.store.pruning import Pruner
from moyin.store.sql import Database
from tests.unit.store.test_pruning import BEFORE, PastJobs


async def test_concurrent_pruning_deletes_each_job_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas that prune concurrently delete each old job once, and no file that is in use."""
    monkeypatch.setattr(blob_references, "CHUNK", 3)
    databases = [Database(database_url) for _ in range(3)]
    await databases[0].ensure_schema()
    past_jobs = PastJobs(databases[0], tmp_path / "blobs")
    for index in range(30):
        await past_jobs.create_job(graph=str(index % 7), picture=str(index % 5).encode())
    young_job_id = await past_jobs.create_job(days=1, graph="0", picture=b"0")
    past_jobs.make_files_old()

    async def prune(database: Database) -> int:
        return sum([pruned.jobs async for pruned in Pruner(database, past_jobs.blobs).run(BEFORE)])

    assert sum(await asyncio.gather(*map(prune, databases))) == 30
    assert (await past_jobs.list_job_ids(), len(past_jobs.list_files())) == ({young_job_id}, 3)
    for database in databases:
        await database.close()


async def test_the_pruning_lock_excludes_other_connections(database_url: str) -> None:
    first_database, second_database = Database(database_url), Database(database_url)
    async with (
        first_database.advisory_lock("pruning") as first_acquired,
        second_database.advisory_lock("pruning") as second_acquired,
    ):
        assert (first_acquired, second_acquired) == (True, False)
    async with second_database.advisory_lock("pruning") as is_acquired:
        assert is_acquired
    await first_database.close()
    await second_database.close()


async def test_old_jobs_are_pruned_by_an_operator(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    await database.ensure_schema()
    past_jobs = PastJobs(database, tmp_path / "blobs")
    old_job_ids = [await past_jobs.create_job(graph=str(index)) for index in range(3)]
    young_job_id = await past_jobs.create_job(days=1, graph="0")
    remaining_files = past_jobs.list_files()
    past_jobs.make_files_old()
    environ = {
        **os.environ,
        "MOYIN_DATABASE_URL": database_url,
        "MOYIN_ARTIFACTS_URL": f"file://{tmp_path / 'blobs'}",
    }
    command = [sys.executable, "-m", "moyin.cli.main", "prune", "--days", "30"]

    def run_prune(*options: str) -> str:
        process = subprocess.run(
            [*command, *options],
            env=environ,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        assert process.returncode == (1 if not options else 0), process.stderr
        return process.stdout

    assert run_prune("--dry-run") == "3 jobs and 0 batches ended at least 30 days ago\n"
    assert run_prune().strip() == "", "nobody said that it may"
    assert past_jobs.list_files() == remaining_files
    # Of three graphs one is the young job's as well, as is the picture.
    assert run_prune("--yes").startswith("deleted 3 jobs, 0 batches and 5 files, ")
    assert run_prune("--yes").startswith("deleted 0 jobs, 0 batches and 0 files, ")
    for job_id in old_job_ids:
        with pytest.raises(JobNotFound):
            await past_jobs.jobs.get("ada", job_id)
    assert (await past_jobs.jobs.get("ada", young_job_id)).artifacts
    await database.close()
