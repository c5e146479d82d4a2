"""Separates the tenants of a ComfyUI in its cache, so that nobody learns what others render.

ComfyUI reuses the result of a node if the node's inputs are equal, and reports the node in
``execution_cached``. A tenant who guesses a graph could so find out that another has rendered it. The
keys of the cache therefore contain the tenant: results of other tenants are neither reported nor
used, and neither are the instances of nodes, which may keep what they have seen.

Loaded models are the exception, because loading takes long: see `loaded_models`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from .guard import NodeRules, get_moyin_data
from .loaded_models import LoadedModels, LoaderClasses, compute_loader_keys

# The member of Moyin's data in a prompt that holds an anonymous id of the tenant.
TENANT_KEY = "tenant"
# With ComfyUI's other caches, results are kept for no later prompt, or are dropped when memory is
# short.
_KEEPING_CACHES = ("CLASSIC", "LRU")
_tenant: ContextVar[str] = ContextVar("moyin_tenant", default="")
_models: ContextVar[LoadedModels | None] = ContextVar("moyin_models", default=None)


def wrap_execution(
    execute: Callable[..., Any], classes: Mapping[str, Any], rules: NodeRules
) -> Callable[..., Any]:
    """Wrap ``PromptExecutor.execute_async`` to store the prompt's tenant and its loaded models.

    `wrap_keys` and `wrap_output_data` need them.
    """
    loaders = LoaderClasses(classes, rules)

    @functools.wraps(execute)
    async def execute_async(
        self: Any, prompt: Any, prompt_id: Any, extra_data: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        extra = {} if extra_data is None else extra_data
        _tenant.set(str(get_moyin_data(extra).get(TENANT_KEY, "")))
        models = _find_models(self)
        if models is not None:
            models.begin_prompt(compute_loader_keys(prompt, loaders))
        _models.set(models)
        return await execute(self, prompt, prompt_id, extra, *args, **kwargs)

    return execute_async


def wrap_keys(add_keys: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``add_keys`` of ComfyUI's sets of cache keys to add the tenant to all keys."""

    @functools.wraps(add_keys)
    async def add_tenant_keys(self: Any, node_ids: Any) -> None:
        new_ids = [node_id for node_id in node_ids if node_id not in self.keys]
        await add_keys(self, new_ids)
        for node_id in new_ids:
            for keys in (self.keys, self.subcache_keys):
                if node_id in keys:
                    keys[node_id] = (_tenant.get(), keys[node_id])

    return add_tenant_keys


def wrap_output_data(get_output_data: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``execution.get_output_data``, which executes a node, to reuse loaded models.

    ComfyUI sends the events of a node that is executed, whoever has loaded the model.
    """

    async def load_and_keep(
        models: LoadedModels, prompt_id: Any, unique_id: Any, *args: Any, **kwargs: Any
    ) -> Any:
        result = models.find(unique_id)
        if result is None:
            result = await get_output_data(prompt_id, unique_id, *args, **kwargs)
            models.keep(unique_id, result)
        return result

    @functools.wraps(get_output_data)
    def get_model_or_output(prompt_id: Any, unique_id: Any, *args: Any, **kwargs: Any) -> Any:
        models = _models.get()
        if models is None or not models.is_loader(unique_id):
            # Returned and not awaited, so that tracebacks of failed nodes are those of ComfyUI.
            return get_output_data(prompt_id, unique_id, *args, **kwargs)
        return load_and_keep(models, prompt_id, unique_id, *args, **kwargs)

    return get_model_or_output


def _find_models(executor: Any) -> LoadedModels | None:
    """Return the loaded models of ComfyUI's present cache; None if the cache keeps no results."""
    if getattr(executor.cache_type, "name", "") not in _KEEPING_CACHES:
        return None
    # ComfyUI frees its memory by a new cache, so the models are freed as well.
    caches = executor.caches
    if not hasattr(caches, "moyin_models"):
        caches.moyin_models = LoadedModels()
    models: LoadedModels = caches.moyin_models
    return models
