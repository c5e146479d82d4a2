"""Tests that all viewers of a tenant share readings, but never with another tenant's viewers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing

from deployments.gateway.cluster.bodies import ClusterBody, PoolBody
from deployments.gateway.cluster.feeds import ClusterFeeds, Included

_CLUSTER = ClusterBody(
    pools=[PoolBody(name=name, is_responding=True, renderers=[]) for name in ("a", "b")], nodes=[]
)


class Sources:
    """Counts the readings for each tenant."""

    def __init__(self) -> None:
        self.readings = Counter[str]()
        self.sums_at_once = self.most_sums_at_once = 0

    async def read_cluster(self) -> ClusterBody:
        self.readings["cluster"] += 1
        return _CLUSTER

    async def read_backends(self, tenant: str | None) -> str:
        self.readings[f"backends {tenant}"] += 1
        return f'"backends of {tenant}"'

    async def read_usage(self, tenant: str | None) -> str | None:
        self.readings[f"usage {tenant}"] += 1
        self.sums_at_once += 1
        self.most_sums_at_once = max(self.most_sums_at_once, self.sums_at_once)
        await asyncio.sleep(0)
        self.sums_at_once -= 1
        return None if tenant == "broken" else f'"usage of {tenant}"'

    def build_feeds(self) -> ClusterFeeds:
        return ClusterFeeds(self.read_cluster, self.read_backends, self.read_usage)


async def view(
    feeds: ClusterFeeds, tenant: str | None, *included: Included
) -> dict[str, ClusterBody | str | None]:
    """Return the first value of each stream."""
    first_values: dict[str, ClusterBody | str | None] = {}
    async with aclosing(feeds.follow(tenant, included)) as changes:
        while len(first_values) < 1 + len(included):
            change = await anext(changes)
            assert change is not None
            first_values[change[0]] = change[1]
    return first_values


async def test_viewers_of_a_tenant_share_readings_and_tenants_do_not() -> None:
    sources = Sources()
    feeds = sources.build_feeds()
    tenants = [None, "ann", "bob"] * 20
    views = await asyncio.gather(*(view(feeds, tenant, *Included) for tenant in tenants))
    for tenant, view_of_tenant in zip(tenants, views, strict=True):
        assert view_of_tenant == {
            "cluster": _CLUSTER,
            "backends": f'"backends of {tenant}"',
            "usage": f'"usage of {tenant}"',
        }
    assert sources.readings.keys() == {
        "cluster",
        *(f"{kind} {tenant}" for kind in Included for tenant in (None, "ann", "bob")),
    }
    assert set(sources.readings.values()) == {1}
    await feeds.close()


async def test_at_most_two_sums_are_read_concurrently() -> None:
    """Otherwise the models app would refuse calls, because it lets at most eight of them wait."""
    sources = Sources()
    feeds = sources.build_feeds()
    tenants = [f"tenant{number}" for number in range(20)]
    views = await asyncio.gather(*(view(feeds, tenant, Included.USAGE) for tenant in tenants))
    assert [values["usage"] for values in views] == [f'"usage of {tenant}"' for tenant in tenants]
    assert sources.most_sums_at_once == 2
    await feeds.close()


async def test_excluded_sections_are_not_read() -> None:
    sources = Sources()
    feeds = sources.build_feeds()
    assert await view(feeds, "ann") == {"cluster": _CLUSTER}
    assert sources.readings == {"cluster": 1}
    assert await view(feeds, "broken", Included.USAGE) == {"cluster": _CLUSTER, "usage": None}
    await feeds.close()


async def test_a_view_is_formatted_once_for_all_with_the_same_rights() -> None:
    feeds = Sources().build_feeds()
    whole_json, part_json = (
        feeds.format_cluster(_CLUSTER, None),
        feeds.format_cluster(_CLUSTER, ["a"]),
    )
    assert ClusterBody.model_validate_json(whole_json) == _CLUSTER
    restricted_cluster = ClusterBody.model_validate_json(part_json)
    assert (restricted_cluster.nodes, restricted_cluster.pools[0].renderers) == (None, None)
    assert [pool.name for pool in restricted_cluster.pools] == ["a"]
    assert feeds.format_cluster(_CLUSTER, ["a"]) is part_json
    assert feeds.format_cluster(_CLUSTER, None) is whole_json
    changed_cluster = _CLUSTER.model_copy(update={"pools": []})
    assert ClusterBody.model_validate_json(feeds.format_cluster(changed_cluster, ["a"])).pools == []
