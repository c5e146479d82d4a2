"""Defines the rules of the render order and of the number of renderers in a pool.

All times are seconds of the same clock. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from moyin.system.bounded import BoundedDict

_MAX_OWNERS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingRender:
    """A render that waits for a renderer.

    Attributes:
        id: id of the render's prompt.
        job_id: id of the render's job.
        priority: class of the render, from 1 (first) to 5 (last).
        arrived: time at which the job was accepted; a retried render has the time of its first try.
        owner: id of the tenant that submitted the render.
        entered: time at which the render entered the window; its age is counted from this time.
        deadline: time by which the render must be finished, or None if it has no deadline.
        models: sizes in bytes of the model files that the render loads, by file name.
        shape: digest of the graph's members that determine the duration (`compute_shape`).
        tenant: anonymous id of the tenant whose process must render it, or "" if any process may.
        signatures: signatures of the graph's nodes (`compute_signatures`).
        family: name of the largest model file, or "" without models; with a tenant, the result of
            `make_tenant_family`. A renderer executes renders of the same family without loading
            models or a restart in between.
    """

    id: str
    priority: int
    arrived: float
    job_id: str = ""
    owner: str = ""
    entered: float = 0.0
    deadline: float | None = None
    models: Mapping[str, int] = field(default_factory=dict)
    shape: str = ""
    tenant: str = ""
    signatures: frozenset[int] = field(default=frozenset(), repr=False)
    family: str = field(init=False)

    def __post_init__(self) -> None:
        largest_model = max(self.models, key=lambda name: (self.models[name], name), default="")
        object.__setattr__(self, "family", make_tenant_family(self.tenant, largest_model))


@dataclass(slots=True)
class RendererSlot:
    """The state of a renderer that the render order depends on.

    Attributes:
        models: names of the model files in the renderer's memory.
        family: name of the largest of these files, or "" if no model is loaded.
        began: time at which the renderer's latest render began.
        latest: the unfinished render that the window assigned to the renderer, if any.
        load_seconds: estimated seconds to load the models of the render ``latest``.
        free_since: time at which the renderer became free.
        tenant: anonymous id of the only tenant whose renders the process executes, or "" if it is
            bound to none.
        bound_since: time at which the process was bound to the tenant.
        restart_seconds: estimated seconds to restart the process for the render ``latest``.
        signatures: signatures of the nodes of the process's latest prompt, whose outputs it caches.
    """

    name: str
    models: frozenset[str] = frozenset()
    family: str = ""
    began: float = 0.0
    latest: PendingRender | None = None
    load_seconds: float = 0.0
    free_since: float = 0.0
    tenant: str = ""
    bound_since: float = 0.0
    restart_seconds: float = 0.0
    signatures: frozenset[int] = frozenset()

    @property
    def families(self) -> set[str]:
        """The families of renders that can begin without loading models or a restart."""
        return {self.family, make_tenant_family(self.tenant)}

    def must_restart_for(self, pending_render: PendingRender) -> bool:
        """Return whether the process is bound to another tenant than the render's."""
        return bool(self.tenant) and self.tenant != pending_render.tenant

    def compute_cached_share(self, pending_render: PendingRender) -> float:
        """Return the share of the render's nodes (0 to 1) whose outputs the process caches."""
        if not pending_render.signatures:
            return 0.0
        return len(self.signatures & pending_render.signatures) / len(pending_render.signatures)


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderingRules:
    """Limits how much the order of renders may change to avoid loading models.

    Attributes:
        ageing_seconds: a render moves up by one class whenever it has waited in the window for this
            many seconds. A render of class ``p`` is *due* after ``p * ageing_seconds``; from then
            on, later renders can't overtake it.
        deadline_margin_seconds: seconds before its deadline at which a render becomes due.
        bytes_per_second: speed at which renderers load models, in bytes per second.
        wait_factor: a render whose models no renderer has loaded waits at most this many times the
            load time of the models, even if all renderers have work for their loaded models.
        imbalance_factor: a renderer switches to the models of another queue when that queue has
            more work than its own, by this many times the load time. Work is counted in seconds per
            renderer.
        min_limit_seconds: smallest value in seconds of the limits that ``wait_factor`` and
            ``imbalance_factor`` define.
    """

    ageing_seconds: float = 300.0
    deadline_margin_seconds: float = 60.0
    bytes_per_second: float = 5e8
    wait_factor: float = 4.0
    imbalance_factor: float = 12.0
    min_limit_seconds: float = 5.0

    def compute_max_wait(self, load_seconds: float) -> float:
        """Return the seconds that a render may wait while no renderer has its models loaded."""
        return max(self.min_limit_seconds, self.wait_factor * load_seconds)

    def compute_max_imbalance(self, load_seconds: float) -> float:
        """Return how much more work another queue must have before a renderer switches to it.

        The result is in seconds of work per renderer (see ``imbalance_factor``).
        """
        return max(self.min_limit_seconds, self.imbalance_factor * load_seconds)

    def compute_due_time(self, pending_render: PendingRender) -> float:
        """Return the time after which no render that entered later can overtake this render."""
        due_time = pending_render.entered + pending_render.priority * self.ageing_seconds
        if pending_render.deadline is None:
            return due_time
        return min(due_time, pending_render.deadline - self.deadline_margin_seconds)

    def compute_rank(self, pending_render: PendingRender, now: float) -> int:
        """Return the class of a render, which improves by one every ``ageing_seconds`` of waiting.

        The class is from 1 (first) to 5 (last).
        """
        gained_classes = int(max(0.0, now - pending_render.entered) // self.ageing_seconds)
        return max(1, pending_render.priority - gained_classes)

    def estimate_load_seconds(self, pending_render: PendingRender, slot: RendererSlot) -> float:
        """Return how many seconds the renderer needs to load the render's models."""
        loaded_models = () if slot.must_restart_for(pending_render) else slot.models
        missing_bytes = sum(
            size for name, size in pending_render.models.items() if name not in loaded_models
        )
        return missing_bytes / self.bytes_per_second


def make_tenant_family(tenant: str, model: str = "") -> str:
    """Return the family of a tenant's renders with the largest model ``model``, or with none."""
    return f"{tenant}:{model}" if tenant else model


class OwnerFairShare:
    """Decides which owner's render is next, by start-time fair queueing.

    Each render adds ``1 / weight`` to the virtual time of its owner, and the owner with the
    smallest virtual time is next. An owner who returns after a pause starts at the present virtual
    time, so that unused turns do not add up.

    Args:
        weights: weights by owner; an owner who is not listed has weight 1.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        # If there are too many owners, the least recently served owner is dropped, who loses no
        # turn.
        self._served: BoundedDict[str, float] = BoundedDict(_MAX_OWNERS)
        self._present = 0.0

    def copy(self) -> OwnerFairShare:
        """Return a copy, so that a forecast can charge owners without changing this object."""
        copy = OwnerFairShare(self._weights)
        copy._served.update(self._served)
        copy._present = self._present
        return copy

    def get_virtual_time(self, owner: str) -> float:
        return max(self._served.get(owner, self._present), self._present)

    def charge(self, owner: str, waiting_owners: Iterable[str] = ()) -> None:
        """Increase the virtual time of ``owner``, because a render of this owner begins.

        Args:
            waiting_owners: the owners with waiting renders; the smallest of their virtual times is
                the present virtual time.
        """
        start_time = self.get_virtual_time(owner)
        # The present virtual time is the smallest one of the waiting owners. If an owner is served
        # out of turn, because its models are loaded, the other owners must not lose their turns.
        self._present = min(
            (self.get_virtual_time(waiting_owner) for waiting_owner in waiting_owners),
            default=start_time,
        )
        self._present = min(self._present, start_time)
        self._served[owner] = start_time + 1.0 / self._weights.get(owner, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPolicy:
    """Defines when a pool adds and removes renderers.

    Attributes:
        minimum: smallest number of renderers, which remain in an idle pool; may be 0.
        maximum: largest number of renderers.
        patience: seconds within which all waiting renders should begin.
        idle: seconds after which an idle renderer is removed.
    """

    minimum: int
    maximum: int
    patience: float = 30.0
    idle: float = 300.0

    def count_needed_renderers(self, waiting_count: int, mean_seconds: float) -> int:
        """Return how many renderers are needed to begin all waiting renders within ``patience``.

        Args:
            waiting_count: the number of waiting renders.
            mean_seconds: the mean duration of a render.
        """
        needed_count = math.ceil(waiting_count * mean_seconds / self.patience)
        return max(self.minimum, min(self.maximum, needed_count))

    def select_removable_renderers(
        self, idle_seconds: list[float | None], waiting_count: int
    ) -> list[int]:
        """Return the indexes of renderers to remove, in descending order; none while renders wait.

        Args:
            idle_seconds: how long each renderer has been idle; None for a busy renderer.
            waiting_count: the number of waiting renders.
        """
        if waiting_count:
            return []
        removable_count = len(idle_seconds) - self.minimum
        idle_positions = [
            position
            for position, seconds in enumerate(idle_seconds)
            if seconds is not None and seconds >= self.idle
        ]
        return idle_positions[::-1][: max(0, removable_count)]
