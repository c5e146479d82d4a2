"""Fills the database of a gateway with the history of a studio, for `benchmarks.console`."""

from __future__ import annotations

import io
import random
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import sqlalchemy as sa
from argon2 import PasswordHasher
from PIL import Image

from moyin.domain.artifact import Artifact
from moyin.domain.job import StepKind, StepResult
from moyin.domain.serialization import to_plain
from moyin.store.artifacts import derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.job_rows import NewJob, build_row
from moyin.store.schema import api_keys, artifacts, audit, jobs, usage, users
from moyin.store.sql import Database, now
from moyin.store.tokens import generate_id

PASSWORD = "a long password of the benchmark"
MEMBERS = 500
ADMINISTRATORS = 51
_KEYS = 1_000
_AUDIT_ENTRIES = 20_000
# Calls of models for text this month; renders are counted as calls, too.
_CALLS = 50_000
# Two pages of the gallery, which shows 48 pictures on each.
_DIFFERENT_PICTURES = 96
_PICTURE_PIXELS = 512
_ROWS_PER_INSERT = 5_000
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOrganisation:
    """The benchmark's organisation: its id, and how many jobs and pictures it gets.

    All objects date from this month.
    """

    owner: str
    jobs: int
    pictures: int

    @staticmethod
    def get_email(number: int) -> str:
        """Return the email of the member ``number``; the first members are administrators."""
        return f"member-{number}@benchmark.example"


async def fill_database(
    database: Database, blobs: BlobStore, studio: BenchmarkOrganisation
) -> None:
    """Insert jobs, pictures, calls, members, keys and entries of the audit log."""
    picture_files = [await _store_picture(blobs, number) for number in range(_DIFFERENT_PICTURES)]
    rng, members = random.Random(7), list(_build_members(studio.owner))
    await _insert(database, users, iter(members))
    ids = [member["id"] for member in members]
    for first_number in range(0, studio.jobs, _ROWS_PER_INSERT):
        ordinals = range(first_number, min(first_number + _ROWS_PER_INSERT, studio.jobs))
        job_rows = [_build_job(rng, studio, picture_files, ids, number) for number in ordinals]
        await _insert(database, jobs, (job for job, _, _ in job_rows))
        await _insert(database, artifacts, (file for _, file, _ in job_rows if file))
        await _insert(database, usage, (call for _, _, call in job_rows if call))
        print(f"\r{ordinals.stop:,} jobs", end="", file=sys.stderr)
    print(file=sys.stderr)
    await _insert(database, usage, _build_calls(rng, studio.owner))
    await _insert(database, api_keys, _build_keys(rng, studio.owner, ids))
    await _insert(database, audit, _build_audit_entries(rng, studio.owner, ids))
    await database.write(lambda connection: connection.execute(sa.text("ANALYZE")))


async def _store_picture(blobs: BlobStore, number: int) -> Artifact:
    size = (_PICTURE_PIXELS, _PICTURE_PIXELS)
    noise_channel = Image.effect_noise(size, 20 + number)
    colour = Image.new("L", size, number * 255 // _DIFFERENT_PICTURES)
    content = io.BytesIO()
    Image.merge("RGB", (noise_channel, colour, noise_channel)).save(content, "png")
    png_bytes = content.getvalue()
    return Artifact(
        id="", name=f"picture_{number:05}_.png", media_type="image/png", size=len(png_bytes),
        sha256=await blobs.put(png_bytes),
    )  # fmt: skip


async def _insert(database: Database, table: sa.Table, rows: Iterator[Row]) -> None:
    """Insert rows, a few thousand in each transaction."""
    while chunk := list(islice(rows, _ROWS_PER_INSERT)):

        def insert(connection: sa.Connection, chunk: list[Row] = chunk) -> None:
            connection.execute(table.insert(), chunk)

        await database.write(insert)


def _choose_time(rng: random.Random) -> datetime:
    """Return a random time of this month, because the overview shows the sums of this month."""
    newest_time = now()
    month_start = newest_time.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return newest_time - rng.random() * (newest_time - month_start)


def _build_members(owner: str) -> Iterator[Row]:
    password = PasswordHasher().hash(PASSWORD)
    for number in range(MEMBERS):
        is_administrator = number < ADMINISTRATORS
        yield {
            "id": generate_id("usr"), "kind": "member",
        "email": BenchmarkOrganisation.get_email(number),
            "name": f"Member {number}", "password": password if is_administrator else None,
            "organisation_id": owner, "role": "admin" if is_administrator else "member",
            "profile": {}, "created_at": now() - timedelta(minutes=number), "disabled_at": None,
        }  # fmt: skip


def _build_job(
    rng: random.Random,
    studio: BenchmarkOrganisation,
    files: list[Artifact],
    members: list[str],
    number: int,
) -> tuple[Row, Row | None, Row | None]:
    """Return the rows of an ended job, of its picture, and of its model call.

    The rows of the picture and of the call are None if the job has no picture.
    """
    # Jobs with a picture are spread evenly, so that every page has jobs with and without one.
    has_picture = (number + 1) * studio.pictures // studio.jobs > (
        number * studio.pictures // studio.jobs
    )
    created_at, member = _choose_time(rng), rng.choice(members)
    seconds = rng.uniform(2, 30)
    kind = StepKind.RENDER if has_picture else StepKind.CHAT
    new_job = NewJob(
        id=str(uuid.uuid4()), owner=studio.owner, kind=kind.value, spec=uuid.uuid4().hex * 2,
        heads=((kind, "default"),), metadata={"project": f"p{rng.randrange(50)}"},
        user=member, templates=("portrait",) if has_picture else (),
    )  # fmt: skip
    status = "succeeded" if has_picture else rng.choices(
        ("succeeded", "failed", "cancelled"), (90, 7, 3)
    )[0]  # fmt: skip
    finished_at = created_at + timedelta(seconds=seconds)
    job = {
        **build_row(new_job), "status": status, "created_at": created_at, "queued_at": created_at,
        "started_at": created_at + timedelta(seconds=1), "finished_at": finished_at,
        "dispatched": True,
    }  # fmt: skip
    if not has_picture:
        return job, None, None
    file = files[number % len(files)]
    picture = Artifact(
        id=derive_step_artifact_id(new_job.id, 0, 0), name=file.name, media_type=file.media_type,
        size=file.size, sha256=file.sha256,
    )  # fmt: skip
    step_result = StepResult(
        index=0, output=uuid.uuid4().hex * 2, artifacts=(picture,), backend="comfyui-default-0",
        gpu_seconds=seconds, load_seconds=0.0, pictures=1,
    )  # fmt: skip
    nano_usd = round(seconds * 1e9 / 3600)
    artifact = {
        "id": picture.id, "owner": studio.owner, "job_id": new_job.id, "name": picture.name,
        "media_type": picture.media_type, "size": picture.size, "sha256": picture.sha256,
        "blake3": None, "created_at": finished_at, "deleted_at": None, "favourite": False,
    }  # fmt: skip
    call = _build_call(rng, studio.owner, finished_at) | {
        "request_id": new_job.id, "backend": "default", "model": "comfyui", "operation": "render",
        "unit": "gpu_milliseconds", "quantity": round(1000 * seconds), "load_milliseconds": 0,
        "cost_nano_usd": nano_usd, "input_tokens": 0, "output_tokens": 0, "complete": True,
    }  # fmt: skip
    job |= {"results": [to_plain(step_result)], "render_nano_usd": nano_usd}
    return job, artifact, call


def _build_calls(rng: random.Random, owner: str) -> Iterator[Row]:
    for _ in range(_CALLS):
        yield _build_call(rng, owner, _choose_time(rng))


def _build_call(rng: random.Random, owner: str, created_at: datetime) -> Row:
    return {
        "id": uuid.uuid4().hex, "request_id": uuid.uuid4().hex, "owner": owner,
        "backend": "claude", "model": rng.choice(("large", "medium", "small")),
        "input_tokens": rng.randrange(4_000), "cached_tokens": 0,
        "output_tokens": rng.randrange(800), "cost_nano_usd": rng.randrange(10**7),
        "complete": rng.random() < 0.97, "created_at": created_at,
        "key_id": f"key_{rng.randrange(_KEYS):012x}", "requested_model": "auto", "error": None,
        "operation": None, "unit": None, "quantity": None, "load_milliseconds": None,
    }  # fmt: skip


def _build_keys(rng: random.Random, owner: str, members: list[str]) -> Iterator[Row]:
    for number in range(_KEYS):
        yield {
            "id": f"key_{number:012x}", "owner": owner, "name": f"key {number}",
            "digest": uuid.uuid4().hex * 2, "created_at": _choose_time(rng),
            "user_id": rng.choice(members), "scopes": "jobs:read text",
        }  # fmt: skip


def _build_audit_entries(rng: random.Random, owner: str, members: list[str]) -> Iterator[Row]:
    for _ in range(_AUDIT_ENTRIES):
        yield {
            "id": str(uuid.uuid4()), "at": _choose_time(rng), "owner": owner,
            "actor": f"user:{rng.choice(members)}", "action": "key.created",
            "target": f"key:key_{rng.randrange(_KEYS):012x}", "details": {"name": "key"},
            "request_id": uuid.uuid4().hex, "address": "127.0.0.1",
        }  # fmt: skip
