"""Named actors that outlive whoever started them, and end only by their own doing."""

from __future__ import annotations

from typing import Any

import ray

__all__ = ["NAMESPACE", "end_for_good", "start_once"]

NAMESPACE = "moyin"


def start_once(kind: type, name: str, *arguments: Any, **options: Any) -> Any:
    """The handle of the actor ``name``, started if there is none. Does not wait for its place.

    Args:
        arguments: of the actor's constructor.
        options: of Ray: what it needs, and where.
    """
    actor = ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        # Over the nodes first: the loss of one costs less.
        scheduling_strategy="SPREAD",
        **options,
    )
    return actor.remote(*arguments)


def end_for_good() -> None:
    """End the actor that calls. Unlike an exit of its process, this is not answered by a restart."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
