"""A broker's address holds a password, and brokers that are away are logged again and again."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

import pytest

from deployments.logs import JsonLines
from moyin.domain.identity import Identity
from moyin.jobs.intake import Broker, IntakeWorker
from moyin.jobs.intake.rabbit import RabbitBroker
from moyin.jobs.intake.streams import StreamBroker
from moyin.render.templates.catalog import Catalog

PASSWORD = "s3cr3t-0123456789"
NAMES = {"results": "r", "dead_letters": "d"}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def brokers() -> list[Broker]:
    """Nobody listens; what listens is no broker; there is no such host; the address is wrong."""
    places = (f"127.0.0.1:{closed_port()}", "nobody.invalid", "127.0.0.1:x")
    return [
        *(RabbitBroker(f"amqp://ann:{PASSWORD}@{p}/v", queue="q", **NAMES) for p in places),
        *(StreamBroker(f"redis://ann:{PASSWORD}@{p}/0", stream="s", **NAMES) for p in places),
    ]


async def test_a_brokers_password_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    unused = cast(Any, None)
    workers = [
        IntakeWorker(
            broker, name="list", service=unused, jobs=unused, feed=unused,
            templates=Catalog(()),
            submitter=Identity(owner="ann", key_id="intake"),
            limits=unused,
        )
        for broker in brokers()
    ]  # fmt: skip
    running = [asyncio.create_task(worker.run()) for worker in workers]

    def told() -> list[logging.LogRecord]:
        return [one for one in caplog.records if one.name.startswith("moyin.jobs.intake")]

    async with asyncio.timeout(60):
        while len(told()) < len(workers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    # As they are written: ours are redacted, those of libraries go to Ray's log as they are.
    ours = [JsonLines().format(one) for one in told()]
    others = [one.getMessage() for one in caplog.records if one not in told()]
    assert PASSWORD not in "\n".join(ours + others)
