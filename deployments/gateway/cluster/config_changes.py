"""Records each configuration that the gateway begins to use, and lists the changed values."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from deployments.gateway.cluster.bodies import ConfigChangeBody, ConfigChangesBody, DifferenceBody
from deployments.gateway.cluster.routes_view import read_versions
from deployments.gateway.config import GatewayConfig
from moyin.store.config_history import ConfigHistory, RecordedConfig
from moyin.store.sql import Database

_log = logging.getLogger(__name__)
CHANGES = 20
_MAX_DIFFERENCES = 100
_RECORD_SECONDS = 5.0


class ConfigRecorder:
    """Records the gateway's configurations, each with the names of pools and versions of packages.

    The configuration has no fields for secrets. But a secret that an operator wrote into the path
    of a health check or of a rewrite would be recorded with it.

    Attributes:
        store: the recorded configurations.
    """

    def __init__(self, database: Database, pools: Sequence[str]) -> None:
        self._database = database
        self._pools = sorted(pools)
        self.store = ConfigHistory(database)

    async def record(self, config: GatewayConfig) -> None:
        """Record the configuration in use, unless another replica has recorded it already.

        If the database is unavailable, the configuration is not recorded and the replica continues.
        What this configuration changed is then listed as changed by the next one that is recorded.
        """
        values = config.model_dump(mode="json", by_alias=True)
        values |= {"pools": self._pools, "versions": read_versions()}
        try:
            async with asyncio.timeout(_RECORD_SECONDS):
                await self._database.ensure_schema()
                await self.store.record(values)
        except Exception as error:
            # Any exception of the database's driver, because Serve would stop a replica that raises
            # here.
            _log.warning("the configuration was not recorded: %r", error)


def build_changes(recorded_configs: Sequence[RecordedConfig]) -> ConfigChangesBody:
    """Return how each configuration differs from the previous one.

    Args:
        recorded_configs: the configurations, the newest first.
    """
    changes = []
    for after, before in pairwise(recorded_configs):
        differences = sorted(
            find_differences(before.values, after.values), key=lambda item: item.path
        )
        if not differences:
            continue  # Only the order of routes has changed.
        changes.append(
            ConfigChangeBody(
                applied_at=after.applied_at,
                differences=differences[:_MAX_DIFFERENCES],
                more=max(0, len(differences) - _MAX_DIFFERENCES),
            )
        )
    return ConfigChangesBody(changes=changes)


def find_differences(before: Any, after: Any, path: str = "") -> Iterator[DifferenceBody]:
    """Yield the values that differ in two configurations, each with its path.

    Objects are compared member by member. In lists of named objects, objects of the same name are
    compared, so that a changed order is no difference.

    Args:
        path: the path of ``before`` and ``after`` in their configurations; empty for the whole.
    """
    if before == after:
        return  # Most routes do not change, and comparing them by members takes seconds.
    before, after = _index_by_name(before), _index_by_name(after)
    # An empty list is compared with a list of named objects as if it were an empty object.
    if before == [] and isinstance(after, Mapping):
        before = {}
    if after == [] and isinstance(before, Mapping):
        after = {}
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in before.keys() | after.keys():
            inner_path = f"{path}.{name}" if path else name
            yield from find_differences(before.get(name), after.get(name), inner_path)
    elif before != after:
        yield DifferenceBody(path=path, before=before, after=after)


def _index_by_name(value: Any) -> Any:
    if isinstance(value, list) and value and all(_has_name(item) for item in value):
        return {item["name"]: item for item in value}
    return value


def _has_name(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("name"), str)
