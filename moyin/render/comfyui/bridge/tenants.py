"""Prevents tenants from getting each other's cached results where these reveal a graph.

ComfyUI reuses the cached result of a node if the visible inputs are equal. But a node such as
``SaveImage`` also gets the prompt's whole graph as a hidden input and writes it into its picture,
and the results of output nodes contain ids of nodes in that graph. The cached results of such nodes
are therefore used only for the same tenant. All tenants share cached models, latents and
intermediate pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from .guard import get_moyin_data

# The member of Moyin's data in a prompt that holds an anonymous id of the tenant.
TENANT_KEY = "tenant"
_REVEALING_INPUTS = frozenset({"PROMPT", "DYNPROMPT", "EXTRA_PNGINFO"})
_tenant: ContextVar[str] = ContextVar("moyin_tenant", default="")


def wrap_execution(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``PromptExecutor.execute_async`` to store the prompt's tenant for `wrap_signature`."""

    @functools.wraps(execute)
    async def execute_async(
        self: Any, prompt: Any, prompt_id: Any, extra_data: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        extra = {} if extra_data is None else extra_data
        _tenant.set(str(get_moyin_data(extra).get(TENANT_KEY, "")))
        return await execute(self, prompt, prompt_id, extra, *args, **kwargs)

    return execute_async


def wrap_signature(
    get_signature: Callable[..., Any], classes: Mapping[str, Any]
) -> Callable[..., Any]:
    """Wrap ``CacheKeySetInputSignature.get_immediate_node_signature`` to separate tenants.

    The wrapper adds the tenant to the signatures of nodes whose results reveal the graph.
    """
    reveals_graph: dict[str, bool] = {}

    @functools.wraps(get_signature)
    async def get_immediate_node_signature(
        self: Any, dynprompt: Any, node_id: Any, *args: Any, **kwargs: Any
    ) -> Any:
        signature_parts = await get_signature(self, dynprompt, node_id, *args, **kwargs)
        if dynprompt.has_node(node_id):
            class_type = dynprompt.get_node(node_id)["class_type"]
            if class_type not in reveals_graph:
                reveals_graph[class_type] = _reveals_graph(classes[class_type])
            if reveals_graph[class_type]:
                signature_parts = [*signature_parts, ("moyin_tenant", _tenant.get())]
        return signature_parts

    return get_immediate_node_signature


def _reveals_graph(node_class: Any) -> bool:
    if getattr(node_class, "OUTPUT_NODE", False):
        return True
    try:
        hidden_inputs = node_class.INPUT_TYPES().get("hidden") or {}
        kinds = [
            _get_first_item(kind)
            for kind in (
                hidden_inputs.values() if isinstance(hidden_inputs, Mapping) else hidden_inputs
            )
        ]
        return any(str(getattr(kind, "value", kind)) in _REVEALING_INPUTS for kind in kinds)
    except Exception:
        return True  # the class's own code failed, so its hidden inputs are unknown


def _get_first_item(kind: Any) -> Any:
    return kind[0] if isinstance(kind, (list, tuple)) and kind else kind
