"""Tests which values of a configuration are recorded, and how their changes are listed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployments.gateway.cluster.config_changes import ConfigRecorder, build_changes
from deployments.gateway.config import GatewayConfig
from moyin.store.config_history import RecordedConfig
from moyin.store.sql import Database

BEGAN = datetime(2026, 11, 29, tzinfo=UTC)


def make_config(**values: Any) -> RecordedConfig:
    return RecordedConfig(values=values, applied_at=BEGAN)


def test_changes_name_the_values_that_differ() -> None:
    shop_route, wiki_route = {"name": "shop", "retries": 1}, {"name": "wiki", "retries": 1}
    changes_body = build_changes(
        [
            make_config(routes=[{**shop_route, "retries": 2}, wiki_route], pools=["a", "b"]),
            # The same routes in another order.
            make_config(routes=[wiki_route, shop_route], pools=["a"]),
            make_config(routes=[shop_route], pools=["a"]),
            make_config(routes=[], pools=["a"]),
        ]
    )
    assert [
        [
            (difference.path, difference.before, difference.after)
            for difference in change.differences
        ]
        for change in changes_body.changes
    ] == [
        [("pools", ["a"], ["a", "b"]), ("routes.shop.retries", 1, 2)],
        [("routes.wiki", None, wiki_route)],
        [("routes.shop", None, shop_route)],
    ]
    assert {change.more for change in changes_body.changes} == {0}


def test_the_list_of_differences_is_bounded() -> None:
    values_before, values_after = (
        {f"n{number}": value for number in range(120)} for value in (1, 2)
    )
    [change] = build_changes([make_config(**values_after), make_config(**values_before)]).changes
    assert (len(change.differences), change.more) == (100, 20)
    assert build_changes([make_config(a=1)]).changes == []


async def test_a_recorded_configuration_has_routes_pools_and_versions_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOYIN_SECRET", "MOYIN_ANTHROPIC_API_KEY", "MOYIN_SMTP_URL", "MOYIN_DATABASE_URL"):
        monkeypatch.setenv(name, "hunter2")
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    recorder = ConfigRecorder(database, ["b", "a"])
    route = {"name": "shop", "prefix": "/shop", "upstreams": ["http://one"]}
    await recorder.record(GatewayConfig.model_validate({"routes": [route]}))
    [config] = await recorder.store.list_newest(10)
    assert set(config.values) == {"routes", "pools", "versions"}
    assert config.values["pools"] == ["a", "b"]
    assert set(config.values["versions"]) == {"moyin", "ray", "temporalio"}
    assert "hunter2" not in str(config)
    await database.close()


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@one", "http://hunter2@one", "http://one/?key=hunter2"]
)
def test_a_configuration_with_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        GatewayConfig.model_validate(
            {"routes": [{"name": "shop", "prefix": "/shop", "upstreams": [url]}]}
        )


async def test_a_replica_works_without_a_database(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    (tmp_path / "moyin.db").mkdir()
    await ConfigRecorder(database, []).record(GatewayConfig())
    assert "the configuration was not recorded" in caplog.text
    await database.close()
