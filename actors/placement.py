"""Starts and terminates detached Ray actors.

`NON_RENDER_NODES` keeps actors that do not render off nodes that an autoscaler starts for renders.
"""

from __future__ import annotations

from typing import Any

import ray

NAMESPACE = "moyin"
# Label selector of all actors except ComfyUI's. It keeps them off nodes that an autoscaler started
# for renders, because the autoscaler could not stop a node while another actor runs there. Nodes
# without the label, such as the only node of a small installation, accept every actor.
NON_RENDER_NODES = {"moyin-use": "!render"}


def find_or_start_actor(actor_class: type, name: str, *arguments: Any, **options: Any) -> Any:
    """Return the handle of the detached actor ``name``, and start the actor if it does not exist.

    The call does not wait until Ray has placed the actor on a node. ``options`` are Ray's actor
    options.
    """
    actor = ray.remote(actor_class).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        # If a node fails, actors on other nodes continue.
        scheduling_strategy="SPREAD",
        **options,
    )
    return actor.remote(*arguments)


def terminate_actor() -> None:
    """Terminate the calling actor for good; Ray would restart it if its process just exited."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
