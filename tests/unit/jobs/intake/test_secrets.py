"""Tests that the password in a broker's URL is not logged when the broker is unavailable."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

import pytest

from deployments.logs import JsonFormatter
from moyin.domain.identity import Identity
from moyin.jobs.intake import Broker, IntakeWorker
from moyin.jobs.intake.rabbit import RabbitBroker
from moyin.jobs.intake.streams import StreamBroker
from moyin.render.templates.catalog import TemplateCatalog
from tests.waiting import eventually

PASSWORD = "s3cr3t-0123456789"
NAMES: dict[str, Any] = {"results": "r", "dead_letters": "d"}


def find_closed_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
        return port


def make_brokers() -> list[Broker]:
    """Return brokers at a closed port, at an unknown host, and with an invalid port."""
    addresses = (f"127.0.0.1:{find_closed_port()}", "nobody.invalid", "127.0.0.1:x")
    return [
        *(RabbitBroker(f"amqp://ann:{PASSWORD}@{p}/v", queue="q", **NAMES) for p in addresses),
        *(StreamBroker(f"redis://ann:{PASSWORD}@{p}/0", stream="s", **NAMES) for p in addresses),
    ]


async def test_a_brokers_password_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    unused_service = cast(Any, None)
    workers = [
        IntakeWorker(
            broker, name="list", service=unused_service, jobs=unused_service, feed=unused_service,
            templates=TemplateCatalog(()),
            submitter=Identity(owner="ann", key_id="intake"),
            limits=unused_service,
        )
        for broker in make_brokers()
    ]  # fmt: skip
    worker_tasks = [asyncio.create_task(worker.run()) for worker in workers]

    def list_intake_records() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name.startswith("moyin.jobs.intake")]

    await eventually(lambda: len(list_intake_records()) >= len(workers), 60)
    for task in worker_tasks:
        task.cancel()
    await asyncio.gather(*worker_tasks, return_exceptions=True)
    # In the form in which they are written: ours are redacted, those of libraries are not.
    own_lines = [JsonFormatter().format(record) for record in list_intake_records()]
    other_lines = [r.getMessage() for r in caplog.records if r not in list_intake_records()]
    assert PASSWORD not in "\n".join(own_lines + other_lines)
