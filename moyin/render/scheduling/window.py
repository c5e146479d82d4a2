"""Decides which waiting render of a pool begins next, and on which renderer.

`Window.choose_assignment` tries these rules in order:

1. A render that is due (`OrderingRules.compute_due_time`) begins first, on the free renderer with
   the lowest cost. This prevents starvation.
2. A free renderer *switches* to other models, namely those that have the longest queue for each
   renderer that has them loaded. It switches if (a) it has no models loaded, (b) no waiting render
   uses its models and the renderers of the other models will be busy for longer than a switch
   takes, or (c) the other queue has more work than its own, by several times the load time.
3. A renderer begins a render that uses its loaded models. These renders are ordered by class, which
   rises as they wait (`OrderingRules.compute_rank`), then by fair share of the owners, then by
   arrival.

A render waits for a renderer that has its models loaded, even if another renderer is free, because
nothing reduces the throughput of a farm more than loading models. It does not wait for the renderer
that caches the outputs of its nodes, but goes there if that one is free.

Where each process serves one tenant, a change of the tenant counts as loading models: it takes the
measured time of a restart and drops the loaded models. A process that has served nobody needs no
restart. A process that was restarted for a tenant keeps it for the time that others may wait at
most, as long as it has renders.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from moyin.domain.queue_place import Duration
from moyin.render.measurements import RenderMeasurements
from moyin.render.scheduling.rules import (
    OrderingRules,
    OwnerFairShare,
    PendingRender,
    RendererSlot,
    make_tenant_family,
)

# The assumed mean duration before any render has ended, and the weight of each new duration in the
# mean.
_FIRST_MEAN_SECONDS = 10.0
# The assumed duration of a restart before any has been measured.
_FIRST_RESTART_SECONDS = 10.0
_NEWEST_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Assignment:
    """The assignment of the render ``pending`` to the renderer ``slot``."""

    pending: PendingRender
    slot: RendererSlot


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """A render with its expected times.

    Attributes:
        starts_in: the time until the render begins, or None if that is unknown or the render has
            been assigned to a renderer.
        ends_in: the time until the render has been executed, or None if unknown.
    """

    pending: PendingRender
    starts_in: Duration | None
    ends_in: Duration | None


class _Queue:
    """The waiting renders of one family, which is the name of their largest model file.

    Attributes:
        flows: the waiting renders by owner and class, in the order of arrival.
    """

    def __init__(self) -> None:
        self.flows: dict[tuple[str, int], list[tuple[float, str, int, PendingRender]]] = {}
        self.count = 0

    def add(self, pending_render: PendingRender) -> None:
        flow = self.flows.setdefault((pending_render.owner, pending_render.priority), [])
        insort(
            flow, (pending_render.arrived, pending_render.id, id(pending_render), pending_render)
        )
        self.count += 1

    def remove(self, pending_render: PendingRender) -> None:
        flow = self.flows[pending_render.owner, pending_render.priority]
        del flow[bisect_left(flow, (pending_render.arrived, pending_render.id, id(pending_render)))]
        if not flow:
            del self.flows[pending_render.owner, pending_render.priority]
        self.count -= 1

    def list_heads(self) -> Iterator[PendingRender]:
        """Return the first render of each flow, that is, of each pair of owner and class."""
        return (flow[0][3] for flow in self.flows.values())


class Window:
    """The waiting renders and the renderers of a pool.

    The caller alternates `choose_assignment` and `begin_render`. All times are arguments in seconds
    named ``now``, so that a simulation can use the class.

    Attributes:
        measurements: the measured renders of the pool, which are used only for forecasts.
        mean_seconds: mean duration of a render, in seconds.
        model_change_count: number of times that a renderer had to load models.
        restart_seconds: duration of the restart of a renderer for another tenant, in seconds.
        tenant_change_count: number of these restarts.
    """

    def __init__(
        self,
        rules: OrderingRules | None = None,
        fair_share: OwnerFairShare | None = None,
        measurements: RenderMeasurements | None = None,
    ) -> None:
        self._rules = rules or OrderingRules()
        self._fair_share = fair_share or OwnerFairShare()
        self._slots: dict[str, RendererSlot] = {}
        self._free: dict[str, RendererSlot] = {}
        # The number of renderers that have a family's models loaded, including busy renderers.
        self._renderer_counts: Counter[str] = Counter()
        self._queues: dict[str, _Queue] = {}
        self._owners: Counter[str] = Counter()
        self._dues: list[tuple[float, float, int, PendingRender]] = []
        self._pending: dict[int, PendingRender] = {}
        self.measurements = measurements or RenderMeasurements()
        self.mean_seconds = _FIRST_MEAN_SECONDS
        self.model_change_count = 0
        self.restart_seconds = _FIRST_RESTART_SECONDS
        self.tenant_change_count = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def oldest_arrival(self) -> float | None:
        """The time at which the oldest waiting render arrived, or None if none is waiting."""
        return min((pending.arrived for pending in self._pending.values()), default=None)

    def add(self, pending_render: PendingRender) -> None:
        """Add a waiting render, whose ``entered`` must be the present time."""
        key = id(pending_render)
        self._pending[key] = pending_render
        self._queues.setdefault(pending_render.family, _Queue()).add(pending_render)
        self._owners[pending_render.owner] += 1
        heapq.heappush(
            self._dues,
            (
                self._rules.compute_due_time(pending_render),
                pending_render.arrived,
                key,
                pending_render,
            ),
        )

    def remove(self, pending_render: PendingRender) -> None:
        if self._pending.pop(id(pending_render), None) is None:
            return
        queue = self._queues[pending_render.family]
        queue.remove(pending_render)
        if not queue.count:
            del self._queues[pending_render.family]
        self._owners[pending_render.owner] -= 1
        if not self._owners[pending_render.owner]:
            del self._owners[pending_render.owner]

    @property
    def flow_count(self) -> int:
        """The number of different combinations of family, owner and class of the waiting renders.

        The time that `choose_assignment` takes is proportional to this number.
        """
        return sum(len(queue.flows) for queue in self._queues.values())

    @property
    def must_choose_again(self) -> bool:
        """Whether a renderer is free although renders wait, so that a later choice may succeed."""
        return bool(self._free and self._pending)

    def add_renderer(self, name: str, models: Sequence[str], now: float, tenant: str = "") -> None:
        """Add a free renderer with ``models`` in its memory, the largest first.

        Args:
            tenant: the tenant that the renderer's process is bound to, or "" if there is none.
        """
        slot = RendererSlot(
            name=name,
            models=frozenset(models),
            family=make_tenant_family(tenant, models[0] if models else ""),
            free_since=now,
            tenant=tenant,
            bound_since=now,
        )
        self._slots[name] = self._free[name] = slot
        self._count_renderer(slot)

    def set_tenant(self, name: str, tenant: str, models: Sequence[str], now: float) -> None:
        """Correct the tenant of a free renderer, for example after a crash of its process."""
        slot = self._free.get(name)
        if slot is not None and slot.tenant != tenant:
            free_since = slot.free_since
            self.remove_renderer(name)
            self.add_renderer(name, models, now, tenant)
            self._slots[name].free_since = free_since

    def list_renderers_of(self, tenant: str) -> list[str]:
        """Return the names of the renderers whose processes are bound to the tenant."""
        return [name for name, slot in self._slots.items() if slot.tenant == tenant]

    def remove_renderer(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        self._free.pop(name, None)
        if slot is not None:
            self._discount_renderer(slot)

    def mark_busy(self, name: str) -> None:
        """Mark a renderer as busy with a prompt that this window did not assign."""
        self._free.pop(name, None)

    def mark_free(self, name: str, now: float) -> None:
        if name not in self._free:
            self._slots[name].free_since = now
            self._free[name] = self._slots[name]

    def measure_idle_seconds(self, name: str, now: float) -> float | None:
        """Return how many seconds a renderer has been free, or None if it is busy."""
        return now - self._free[name].free_since if name in self._free else None

    def begin_render(self, choice: Assignment, now: float) -> None:
        """Mark the assignment's renderer as busy, and the models of its render as loaded."""
        pending_render, slot = choice.pending, choice.slot
        self.remove(pending_render)
        self._fair_share.charge(pending_render.owner, self._owners)
        del self._free[slot.name]
        slot.began, slot.latest = now, pending_render
        slot.signatures = pending_render.signatures
        slot.load_seconds = self._rules.estimate_load_seconds(pending_render, slot)
        must_restart = slot.must_restart_for(pending_render)
        slot.restart_seconds = self.restart_seconds if must_restart else 0.0
        self.tenant_change_count += must_restart
        is_bound_anew = slot.tenant != pending_render.tenant
        if pending_render.models or is_bound_anew:
            loaded_models = frozenset() if must_restart else slot.models
            self.model_change_count += not loaded_models.issuperset(pending_render.models)
            self._discount_renderer(slot)
            slot.models, slot.family = frozenset(pending_render.models), pending_render.family
            if is_bound_anew:
                slot.tenant, slot.bound_since = pending_render.tenant, now
            self._count_renderer(slot)

    def end_render(self, name: str, seconds: float, *, has_failed: bool = False) -> None:
        """Record how many seconds the latest render took; `mark_free` makes the renderer free."""
        self.record_render_seconds(seconds)
        slot = self._slots.get(name)
        if slot is not None:
            slot.latest = None
            if has_failed:
                # Otherwise a retry would prefer the process that failed.
                slot.signatures = frozenset()

    def record_render_seconds(self, seconds: float) -> None:
        """Update the mean duration of all renders by a new duration."""
        self.mean_seconds += _NEWEST_WEIGHT * (seconds - self.mean_seconds)

    def peek_next(self, name: str, now: float) -> PendingRender | None:
        """Return the render that the renderer could begin next without loading models, or None."""
        slot = self._slots.get(name)
        families = [] if slot is None else [f for f in slot.families if f in self._queues]
        first_renders = [self._find_first_render(family, now) for family in families]
        return min(first_renders, key=lambda render: self._make_sort_key(render, now), default=None)

    def forecast(self, now: float, max_renders: int) -> list[Expectation]:
        """Forecast the next ``max_renders`` renders in order, assuming that no others arrive.

        A render is assumed to take the mean duration of renders with the same shape
        (`moyin.render.protocol.shape`), or of the pool's renders if there are none. A pool without
        renderers is assumed to get one, at an unknown time.
        """
        forecast_start, is_time_known = now, bool(self._slots)
        pool_duration = self.measurements.estimate_any_shape()
        window_copy = self._copy_for_forecast(now)
        # The variances of the times at which the renderers become free, by renderer.
        variances: dict[str, float] = {}
        busy_until: list[tuple[float, str]] = []
        for name, slot in window_copy._slots.items():
            if name not in window_copy._free:
                known_remaining = self._estimate_remaining(slot, now)
                is_time_known = is_time_known and known_remaining is not None
                remaining_time = known_remaining or Duration(
                    mean=max(0.0, slot.began + self.mean_seconds - now)
                )
                variances[name] = remaining_time.variance
                busy_until.append((now + remaining_time.mean, name))
        heapq.heapify(busy_until)
        expectations: list[Expectation] = []
        while window_copy._pending and len(expectations) < max_renders:
            choice = window_copy.choose_assignment(now)
            if choice is not None:
                name = choice.slot.name
                window_copy.begin_render(choice, now)
                begin_time = now + choice.slot.restart_seconds
                starts_in = Duration(
                    mean=begin_time - forecast_start, variance=variances.get(name, 0.0)
                )
                shape_duration = self.measurements.estimate_duration(
                    choice.pending.shape, choice.slot.load_seconds
                )
                assumed_duration = (
                    shape_duration or pool_duration or Duration(mean=self.mean_seconds)
                )
                expectations.append(
                    Expectation(
                        pending=choice.pending,
                        starts_in=starts_in if is_time_known else None,
                        ends_in=starts_in + shape_duration
                        if is_time_known and shape_duration is not None
                        else None,
                    )
                )
                # Once a render of unknown duration has begun, only an idle renderer's time is known.
                is_time_known = is_time_known and (
                    shape_duration is not None or pool_duration is not None
                )
                variances[name] = starts_in.variance + assumed_duration.variance
                heapq.heappush(busy_until, (begin_time + assumed_duration.mean, name))
            elif busy_until:
                now, name = heapq.heappop(busy_until)
                window_copy.mark_free(name, now)
            else:
                # No renderer takes a render of other models yet, so continue with a later time.
                now += self._rules.min_limit_seconds
        return expectations

    def list_running(self, now: float) -> list[Expectation]:
        """Return the renders that the window has assigned to renderers and that have not ended."""
        return [
            Expectation(
                pending=slot.latest,
                starts_in=None,
                ends_in=self._estimate_latest(slot, slot.latest, now),
            )
            for slot in self._slots.values()
            if slot.latest is not None
        ]

    def _copy_for_forecast(self, now: float) -> Window:
        window_copy = Window(self._rules, self._fair_share.copy(), self.measurements)
        window_copy.mean_seconds = self.mean_seconds
        window_copy.restart_seconds = self.restart_seconds
        for slot in self._slots.values():
            window_copy._slots[slot.name] = replace(slot)
        window_copy._renderer_counts.update(self._renderer_counts)
        window_copy._free = {name: window_copy._slots[name] for name in self._free}
        if not window_copy._slots:
            window_copy.add_renderer("", (), now)
        for pending_render in self._pending.values():
            window_copy.add(pending_render)
        return window_copy

    def _estimate_remaining(self, slot: RendererSlot, now: float) -> Duration | None:
        """Return the remaining time of a busy renderer; None if no render has been measured."""
        elapsed_seconds = max(0.0, now - slot.began)
        if slot.latest is None:
            # The renderer executes a prompt of an earlier pool, whose shape and start are unknown.
            return self.measurements.estimate_any_shape()
        return self._estimate_latest(
            slot, slot.latest, now
        ) or self.measurements.estimate_any_shape(elapsed_seconds)

    def _estimate_latest(
        self, slot: RendererSlot, latest: PendingRender, now: float
    ) -> Duration | None:
        """Return the remaining time of a slot's latest render, with that of its restart."""
        elapsed_seconds = max(0.0, now - slot.began) - slot.restart_seconds
        remaining_time = self.measurements.estimate_remaining(
            latest.shape, max(0.0, elapsed_seconds), slot.load_seconds
        )
        if remaining_time is None:
            return None
        return remaining_time + Duration(mean=max(0.0, -elapsed_seconds))

    def choose_assignment(self, now: float) -> Assignment | None:
        """Return the next render to begin and its renderer, or None if no render should begin."""
        if not self._free or not self._pending:
            return None
        return (
            self._choose_due_render(now)
            or self._choose_switch(now)
            or self._choose_for_loaded_models(now)
        )

    def _choose_due_render(self, now: float) -> Assignment | None:
        while self._dues and self._dues[0][2] not in self._pending:
            heapq.heappop(self._dues)
        if not self._dues or self._dues[0][0] > now:
            return None
        pending_render = self._dues[0][3]
        return Assignment(
            pending_render, self._find_cheapest_slot(pending_render, self._free.values())
        )

    def _choose_switch(self, now: float) -> Assignment | None:
        families_slowest_first = sorted(
            filter(None, self._queues), key=self._estimate_delay, reverse=True
        )
        # The renderer that has been free for the longest time, by family.
        free_slots = {slot.family: slot for slot in reversed(self._free.values())}
        served_families = {family for slot in free_slots.values() for family in slot.families}
        for family in families_slowest_first:
            if family in served_families:
                continue
            oldest_render = min(self._queues[family].list_heads(), key=lambda head: head.entered)
            slots = [s for s in free_slots.values() if self._should_switch(s, oldest_render, now)]
            if slots:
                pending_render = self._find_first_render(family, now)
                return Assignment(pending_render, self._find_cheapest_slot(pending_render, slots))
        return None

    def _should_switch(self, slot: RendererSlot, oldest_render: PendingRender, now: float) -> bool:
        family, rules = oldest_render.family, self._rules
        # A process that has served nobody suits every tenant.
        if not slot.family or (oldest_render.tenant and not slot.tenant):
            return True
        load_seconds = self._estimate_switch_seconds(oldest_render, slot)
        if not slot.families.isdisjoint(self._queues):
            if not self._renderer_counts[family]:
                waits_since = oldest_render.entered
                if slot.must_restart_for(oldest_render):
                    # Otherwise two tenants with many renders would alternate after each render.
                    waits_since = max(waits_since, slot.bound_since)
                return now - waits_since > rules.compute_max_wait(load_seconds)
            difference = self._estimate_delay(family) - self._estimate_delay(
                slot.family, leaving_count=1
            )
            return difference > rules.compute_max_imbalance(load_seconds)
        if not self._renderer_counts[family] or self._estimate_delay(
            family
        ) > rules.compute_max_imbalance(load_seconds):
            return True
        # Switch anyway if the renderers that have these models are busy with long renders.
        latest_begin = max(s.began for s in self._slots.values() if family in s.families)
        return now - max(latest_begin, oldest_render.entered, slot.free_since) > load_seconds

    def _choose_for_loaded_models(self, now: float) -> Assignment | None:
        families = {family for slot in self._free.values() for family in slot.families} | {""}
        first_renders = [
            self._find_first_render(family, now) for family in families if family in self._queues
        ]
        if not first_renders:
            return None
        pending_render = min(first_renders, key=lambda render: self._make_sort_key(render, now))
        suitable_slots = [
            slot
            for slot in self._free.values()
            if not pending_render.family or pending_render.family in slot.families
        ]
        return Assignment(pending_render, self._find_cheapest_slot(pending_render, suitable_slots))

    def _estimate_delay(self, family: str, leaving_count: int = 0) -> float:
        """Return the seconds until a family's queue is empty; infinite if no renderer serves it.

        Args:
            leaving_count: how many renderers that have the family's models loaded will switch to
                other models.
        """
        if family not in self._queues:
            return 0.0
        renderer_count = self._renderer_counts[family] - leaving_count
        return (
            self._queues[family].count * self.mean_seconds / renderer_count
            if renderer_count > 0
            else math.inf
        )

    def _find_cheapest_slot(
        self, pending_render: PendingRender, slots: Collection[RendererSlot]
    ) -> RendererSlot:
        """Return the renderer that needs the least time for the render.

        Loading its models adds time, and cached outputs of its nodes save time. Among equally fast
        renderers, one of the tenant's is chosen, then the one whose loaded models are needed least.
        """
        return min(
            slots,
            key=lambda slot: (
                self._estimate_switch_seconds(pending_render, slot)
                - self._estimate_saved_seconds(pending_render, slot),
                slot.tenant != pending_render.tenant,
                self._estimate_delay(slot.family),
                -self._renderer_counts[slot.family],
                slot.free_since,
            ),
        )

    def _estimate_saved_seconds(self, pending_render: PendingRender, slot: RendererSlot) -> float:
        """Return the seconds that the outputs in the renderer's cache save; all nodes count alike."""
        cached_share = slot.compute_cached_share(pending_render)
        if not cached_share:
            return 0.0
        duration = self.measurements.estimate_duration(pending_render.shape)
        return cached_share * (self.mean_seconds if duration is None else duration.mean)

    def _estimate_switch_seconds(self, pending_render: PendingRender, slot: RendererSlot) -> float:
        """Return the seconds for loading the render's models and, if necessary, for a restart."""
        load_seconds = self._rules.estimate_load_seconds(pending_render, slot)
        return load_seconds + self.restart_seconds * slot.must_restart_for(pending_render)

    def _count_renderer(self, slot: RendererSlot) -> None:
        self._renderer_counts.update(_list_counted_families(slot))

    def _discount_renderer(self, slot: RendererSlot) -> None:
        for family in _list_counted_families(slot):
            self._renderer_counts[family] -= 1
            if not self._renderer_counts[family]:
                del self._renderer_counts[family]

    def _find_first_render(self, family: str, now: float) -> PendingRender:
        return min(
            self._queues[family].list_heads(), key=lambda head: self._make_sort_key(head, now)
        )

    def _make_sort_key(
        self, pending_render: PendingRender, now: float
    ) -> tuple[int, float, float, str]:
        rank = self._rules.compute_rank(pending_render, now)
        return (
            rank,
            self._fair_share.get_virtual_time(pending_render.owner),
            pending_render.arrived,
            pending_render.id,
        )


def _list_counted_families(slot: RendererSlot) -> set[str]:
    return slot.families if slot.tenant else {slot.family}
