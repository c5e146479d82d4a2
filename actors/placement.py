"""Starts named Ray actors that outlive their creator, and keeps other processes off render nodes."""

from __future__ import annotations

from typing import Any

import ray

__all__ = ["NAMESPACE", "NOT_FOR_RENDERS", "end_for_good", "find_or_start_actor"]

NAMESPACE = "moyin"
# Label selector for all other processes: on a node that an autoscaler has started for renders, they
# would keep it running for ever. Nodes without the label, such as the only node of a small
# installation, take every process.
NOT_FOR_RENDERS = {"moyin-use": "!render"}


def find_or_start_actor(actor_class: type, name: str, *arguments: Any, **options: Any) -> Any:
    """Return the handle of the detached actor ``name``; start it if there is none.

    Does not wait for Ray to place the actor.

    Args:
        arguments: arguments of the actor's constructor.
        options: Ray's options: resources and labels.
    """
    actor = ray.remote(actor_class).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        # Spread over the nodes: the loss of one costs less.
        scheduling_strategy="SPREAD",
        **options,
    )
    return actor.remote(*arguments)


def end_for_good() -> None:
    """End the calling actor; unlike after an exit of its process, Ray does not restart it."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
