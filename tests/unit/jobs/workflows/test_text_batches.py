from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_core import from_json, to_json
from temporalio.testing import ActivityEnvironment

from moyin.domain.stored_file import INTERNAL, StoredFile
from moyin.domain.text_batch import BatchDialect, BatchStatus, TextBatch
from moyin.jobs.workflows.text_batches import TextBatchActivities, TextBatchInput
from moyin.store.batch_lines import BatchLineStore
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.sql import Database, now
from moyin.store.text_batches import TextBatchStore


@pytest.mark.parametrize("dialect", list(BatchDialect))
async def test_a_batch_cancelled_before_its_check_has_all_lines_in_its_results(
    tmp_path: Path, dialect: BatchDialect
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    batches, files = TextBatchStore(database), FileStore(database)
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    is_openai = dialect is BatchDialect.OPENAI
    endpoint = "/v1/chat/completions" if is_openai else "/v1/messages"
    request: dict[str, Any] = (
        {"method": "POST", "url": endpoint, "body": chat}
        if is_openai
        else {"params": {**chat, "max_tokens": 9}}
    )
    content = b"".join(to_json({"custom_id": name, **request}) + b"\n" for name in "ab")
    sha256 = await blobs.put(content)
    moment = now()
    await files.add(
        StoredFile(
            id="file-1",
            owner="ada",
            purpose=INTERNAL,
            filename="x",
            media_type="application/jsonl",
            size=len(content),
            sha256=sha256,
            created_at=moment,
        )
    )
    await batches.create(
        TextBatch(
            id="batch_1",
            owner="ada",
            dialect=dialect,
            endpoint=endpoint,
            input_file_id="file-1",
            created_at=moment,
            expires_at=moment + timedelta(hours=1),
        )
    )
    await batches.cancel("ada", "batch_1")
    activities = TextBatchActivities(
        batches=batches,
        lines=BatchLineStore(database),
        files=files,
        blobs=blobs,
        gateway=cast(Any, None),
        max_line_bytes=1000,
    )
    environment, batch_input = ActivityEnvironment(), TextBatchInput(batch_id="batch_1")
    assert await environment.run(activities.batch_prepare, batch_input) == BatchStatus.CANCELLING
    assert await environment.run(activities.batch_finish, batch_input) == BatchStatus.CANCELLED
    ended_batch = await batches.get("ada", "batch_1")
    file_id = ended_batch.error_file_id if is_openai else ended_batch.output_file_id
    assert ended_batch.total == 2 and file_id is not None
    results_file = await files.find("ada", file_id)
    assert results_file is not None
    results = [from_json(line) for line in (await blobs.get(results_file.sha256)).splitlines()]
    assert [result["custom_id"] for result in results] == ["a", "b"]
    await database.close()
