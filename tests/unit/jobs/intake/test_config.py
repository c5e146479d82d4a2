from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.intake.config import IntakeArgs
from deployments.intake.deployment import open_workers
from moyin.settings import Settings

RABBIT = {"type": "rabbitmq", "url_env": "STUDIO_RABBITMQ_URL", "owner": "studio"}
STREAM = {"type": "redis", "url_env": "STUDIO_REDIS_URL", "owner": "studio"}


class AnyGraph:
    async def validate(self, pool: str, graph: Any, **_: Any) -> dict[str, Any]:
        return {}


# These intakes neither validate nor ask a pool.
ANYTHING: Any = AnyGraph()


@pytest.mark.parametrize(
    "source",
    [
        {**RABBIT, "type": "kafka"},
        {**RABBIT, "stream": "x"},
        {**RABBIT, "url_env": "amqp://user:password@host"},
        {**RABBIT, "owner": ""},
        {**RABBIT, "owner": "moyin:judge"},
        {**STREAM, "claim_after": 0},
        {**STREAM, "scopes": ["*"]},
    ],
)
def test_an_invalid_source_is_refused(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        IntakeArgs.model_validate({"sources": [source]})


OTHER = {**RABBIT, "url_env": "STUDIO_RABBITMQ_2_URL"}


@pytest.mark.parametrize(
    "other_source",
    [OTHER, {**OTHER, "name": "rabbitmq-moyin.jobs"}, {**STREAM, "name": "rabbitmq-moyin.jobs"}],
)
def test_two_sources_with_the_same_name_are_refused(other_source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"have the name 'rabbitmq-moyin\.jobs'"):
        IntakeArgs.model_validate({"sources": [RABBIT, other_source]})


@pytest.mark.parametrize(
    "other_source",
    [{**OTHER, "name": "second"}, {**OTHER, "owner": "ann"}, {**OTHER, "queue": "b"}, STREAM],
)
def test_sources_with_different_names_or_owners_are_accepted(other_source: dict[str, Any]) -> None:
    args = IntakeArgs.model_validate({"sources": [RABBIT, other_source]})
    assert IntakeArgs.model_validate(args.model_dump()) == args


def test_the_default_scopes_of_a_source_are_those_of_jobs() -> None:
    [source] = IntakeArgs.model_validate({"sources": [STREAM]}).sources
    assert source.scopes == {"text", "jobs:read", "jobs:write"}


async def test_a_missing_broker_url_names_its_variable(tmp_path: Path) -> None:
    args = IntakeArgs.model_validate({"sources": [RABBIT]})
    with pytest.raises(ValueError, match="STUDIO_RABBITMQ_URL"):
        async with open_workers(args, Settings(data=tmp_path), {}, ANYTHING, ANYTHING):
            pass


async def test_every_source_gets_a_worker(tmp_path: Path) -> None:
    args = IntakeArgs.model_validate({"sources": [RABBIT, STREAM]})
    environ = {
        "STUDIO_RABBITMQ_URL": "amqp://127.0.0.1:1",
        "STUDIO_REDIS_URL": "redis://127.0.0.1:1",
    }
    async with open_workers(args, Settings(data=tmp_path), environ, ANYTHING, ANYTHING) as workers:
        assert len(workers) == 2
