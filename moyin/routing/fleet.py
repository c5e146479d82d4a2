"""All back ends of one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moyin.routing.catalog import Catalog
from moyin.routing.choice import Standing
from moyin.routing.lane import Lane

__all__ = ["Fleet"]

_UNCONFIGURED = Standing(up=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Replaced as a whole when the configuration changes. A back end that is not configured has
    offers in the catalog but no lane."""

    catalog: Catalog
    lanes: Mapping[str, Lane]

    def standing(self, name: str) -> Standing:
        lane = self.lanes.get(name)
        return lane.standing if lane is not None else _UNCONFIGURED

    @property
    def usable(self) -> bool:
        """Whether at least one back end would be asked now."""
        return any(lane.standing.up for lane in self.lanes.values())
