"""Tests that viewers share what is read from a source, but never the data of another tenant."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from dataclasses import replace

from deployments.gateway.cluster.bodies import ClusterBody, DoctorBody, PoolBody
from deployments.gateway.cluster.doctor import describe_checks
from deployments.gateway.cluster.feeds import (
    READING_SECONDS,
    ClusterFeeds,
    FeedSources,
    Included,
    Viewer,
)
from moyin.stack.doctor.machine import check_python

_CLUSTER = ClusterBody(
    pools=[PoolBody(name=name, is_responding=True, renderers=[]) for name in ("a", "b")], nodes=[]
)
_CLUSTER_JSON = _CLUSTER.model_dump_json(ensure_ascii=True)


class CountingSources:
    """Counts how often each source is read, and for which tenant."""

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

    async def read_models(self, viewer: Viewer) -> str:
        self.readings[f"models {viewer}"] += 1
        return f'"models of {viewer}"'

    async def read_jobs(self, owner: str) -> str:
        self.readings[f"jobs {owner}"] += 1
        return f'"jobs of {owner}"'

    def read_routes(self, cluster: ClusterBody) -> str:
        assert cluster is _CLUSTER
        self.readings["routes"] += 1
        return '"routes"'

    async def check_machine(self) -> DoctorBody:
        self.readings["doctor"] += 1
        return describe_checks([check_python()])

    def build_sources(self) -> FeedSources:
        return FeedSources(
            cluster=self.read_cluster,
            backends=self.read_backends,
            usage=self.read_usage,
            models=self.read_models,
            jobs=self.read_jobs,
            routes=self.read_routes,
            doctor=self.check_machine,
        )

    def build_feeds(self) -> ClusterFeeds:
        return ClusterFeeds(self.build_sources())


def make_viewer(owner: str) -> Viewer:
    return Viewer(owner=owner, is_operator=False)


async def see_all_pools() -> None:
    """Stand for the rights of an operator."""


async def collect_first_values(
    feeds: ClusterFeeds, viewer: Viewer, *included: Included
) -> dict[str, str | None]:
    """Return the first value of each stream by its name.

    Args:
        included: the streams to follow in addition to the cluster's.
    """
    first_values: dict[str, str | None] = {}
    async with aclosing(feeds.follow(viewer, included, see_all_pools)) as changes:
        while len(first_values) < 1 + len(included):
            change = await anext(changes)
            assert change is not None
            first_values[change[0]] = change[1]
    return first_values


async def test_viewers_share_readings_within_their_tenant_only() -> None:
    sources = CountingSources()
    feeds = sources.build_feeds()
    ann, bob = make_viewer("ann"), make_viewer("bob")
    # An operator belongs to a tenant, but sees the back ends of all.
    operator = Viewer(owner="ann", is_operator=True)
    viewers = [operator, ann, bob] * 20
    views = await asyncio.gather(
        *(collect_first_values(feeds, viewer, *Included) for viewer in viewers)
    )
    for viewer, values in zip(viewers, views, strict=True):
        assert values == {
            "cluster": _CLUSTER_JSON,
            "backends": f'"backends of {viewer.tenant}"',
            "usage": f'"usage of {viewer.tenant}"',
            "models": f'"models of {viewer}"',
            "jobs": f'"jobs of {viewer.owner}"',
            "routes": '"routes"',
        }
    assert sources.readings.keys() == {
        "cluster",
        "routes",
        *(f"{kind} {tenant}" for kind in ("backends", "usage") for tenant in (None, "ann", "bob")),
        *(f"models {viewer}" for viewer in (operator, ann, bob)),
        "jobs ann",
        "jobs bob",
    }
    assert set(sources.readings.values()) == {1}
    await feeds.close()


async def test_all_callers_share_a_checkup() -> None:
    sources = CountingSources()
    feeds = sources.build_feeds()
    first_checkup, second_checkup = await asyncio.gather(feeds.doctor.get(), feeds.doctor.get())
    assert first_checkup is second_checkup is await feeds.doctor.get()
    assert [check.name for check in first_checkup.checks] == ["python"]
    assert sources.readings["doctor"] == 1
    await feeds.close()


async def test_at_most_two_usage_sums_are_read_concurrently() -> None:
    """At most two sums of usage are requested at once, so that the models app's queue is never full.

    That app refuses calls while eight others wait.
    """
    sources = CountingSources()
    feeds = sources.build_feeds()
    tenants = [f"tenant{number}" for number in range(20)]
    views = await asyncio.gather(
        *(collect_first_values(feeds, make_viewer(tenant), Included.USAGE) for tenant in tenants)
    )
    assert [values["usage"] for values in views] == [f'"usage of {tenant}"' for tenant in tenants]
    assert sources.most_sums_at_once == 2
    await feeds.close()


async def test_excluded_sections_are_not_read() -> None:
    sources = CountingSources()
    feeds = sources.build_feeds()
    assert await collect_first_values(feeds, make_viewer("ann")) == {"cluster": _CLUSTER_JSON}
    assert sources.readings == {"cluster": 1}
    assert await collect_first_values(feeds, make_viewer("broken"), Included.USAGE) == {
        "cluster": _CLUSTER_JSON,
        "usage": None,
    }
    await feeds.close()


async def test_changes_of_what_a_viewer_does_not_see_are_not_noticed() -> None:
    queued_counts = iter(range(1_000_000))

    async def read_changing_cluster() -> ClusterBody:
        hidden_pool = PoolBody(name="b", is_responding=True, queued=next(queued_counts))
        return ClusterBody(pools=[PoolBody(name="a", is_responding=True), hidden_pool])

    async def see_one_pool() -> list[str]:
        return ["a"]

    sources = replace(CountingSources().build_sources(), cluster=read_changing_cluster)
    feeds = ClusterFeeds(sources, intervals=dict.fromkeys(READING_SECONDS, 0.0))
    async with (
        aclosing(feeds.follow(make_viewer("bob"), (), see_one_pool)) as views,
        aclosing(feeds.follow(make_viewer("bob"), (), see_all_pools)) as complete_views,
    ):
        first_view, next_view = await anext(views), asyncio.create_task(anext(views))
        assert first_view is not None and '"b"' not in str(first_view[1])
        for _ in range(20):
            await anext(complete_views)
        assert next(queued_counts) >= 20 and not next_view.done()
        next_view.cancel()
        await asyncio.gather(next_view, return_exceptions=True)
    await feeds.close()


async def test_a_view_is_formatted_once_for_all_with_the_same_rights() -> None:
    feeds = CountingSources().build_feeds()
    complete_json, restricted_json = (
        feeds.format_cluster(_CLUSTER, None),
        feeds.format_cluster(_CLUSTER, ["a"]),
    )
    assert ClusterBody.model_validate_json(complete_json) == _CLUSTER
    restricted_cluster = ClusterBody.model_validate_json(restricted_json)
    assert (restricted_cluster.nodes, restricted_cluster.pools[0].renderers) == (None, None)
    assert [pool.name for pool in restricted_cluster.pools] == ["a"]
    assert feeds.format_cluster(_CLUSTER, ["a"]) is restricted_json
    assert feeds.format_cluster(_CLUSTER, None) is complete_json
    changed_cluster = _CLUSTER.model_copy(update={"pools": []})
    assert ClusterBody.model_validate_json(feeds.format_cluster(changed_cluster, ["a"])).pools == []
