"""Keeps what a prompt alone knows out of ComfyUI's cache of other tenants' prompts.

A repeated node is answered from the cache when its inputs are equal. Hidden inputs are none of these:
the picture that ``SaveImage`` gives again holds the whole graph and workflow of the prompt that made
it, and what output nodes tell names nodes of that graph. So such nodes are repeated for the same
tenant only; models, latents and pictures on their way are as warm for everybody as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from .guard import brought_by

__all__ = ["TENANT", "by_tenant", "for_tenant"]

# Of what a prompt brings: whose it is, in a form that tells nobody who that is.
TENANT = "tenant"
_TELLING = frozenset({"PROMPT", "DYNPROMPT", "EXTRA_PNGINFO"})
_executing: ContextVar[str] = ContextVar("moyin_tenant", default="")


def for_tenant(execute: Callable[..., Any]) -> Callable[..., Any]:
    """``PromptExecutor.execute_async`` during which `by_tenant` knows whose the prompt is."""

    @functools.wraps(execute)
    async def execute_async(
        self: Any, prompt: Any, prompt_id: Any, extra_data: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        extra = {} if extra_data is None else extra_data
        _executing.set(str(brought_by(extra).get(TENANT, "")))
        return await execute(self, prompt, prompt_id, extra, *args, **kwargs)

    return execute_async


def by_tenant(signature: Callable[..., Any], classes: Mapping[str, Any]) -> Callable[..., Any]:
    """``CacheKeySetInputSignature.get_immediate_node_signature`` that tells tenants apart, where a
    node puts out more than its inputs say.

    Args:
        classes: ComfyUI's ``NODE_CLASS_MAPPINGS``.
    """
    known: dict[str, bool] = {}

    @functools.wraps(signature)
    async def get_immediate_node_signature(
        self: Any, dynprompt: Any, node_id: Any, *args: Any, **kwargs: Any
    ) -> Any:
        found = await signature(self, dynprompt, node_id, *args, **kwargs)
        if dynprompt.has_node(node_id):
            class_type = dynprompt.get_node(node_id)["class_type"]
            if class_type not in known:
                known[class_type] = _tells_more(classes[class_type])
            if known[class_type]:
                found = [*found, ("moyin_tenant", _executing.get())]
        return found

    return get_immediate_node_signature


def _tells_more(node: Any) -> bool:
    if getattr(node, "OUTPUT_NODE", False):
        return True
    try:
        hidden = node.INPUT_TYPES().get("hidden") or {}
        kinds = hidden.values() if isinstance(hidden, Mapping) else hidden
        return any(str(getattr(kind, "value", kind)) in _TELLING for kind in map(_first, kinds))
    except Exception:
        # It raises whatever it likes. What nobody knows is not shared.
        return True


def _first(kind: Any) -> Any:
    return kind[0] if isinstance(kind, (list, tuple)) and kind else kind
