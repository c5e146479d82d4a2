"""Adds routes and limits to ComfyUI, inside its process.

The module imports ComfyUI only in `register`, so that tests can import the module. It has these
effects:

* ``POST /moyin/validate`` responds like ``POST /prompt``, without adding the prompt to the queue,
  and also lists the inputs that ComfyUI has checked only for their type and range.
* ``POST /moyin/look`` returns a prompt's state, and drops earlier prompts from the history.
* ``GET /moyin/volatile`` lists the node classes that may return different outputs for equal inputs.
* ``GET /moyin/pulse`` responds with 200 if the thread that executes prompts is alive, or else 503.
* A prompt's output files are written to a folder named after the prompt. So file names are unique,
  and the graph, from which ComfyUI computes its cache keys, stays unchanged. Events report a file
  in that folder even if the node has written it elsewhere; `WrittenFiles.open_file` searches both
  places.
* The names of Moyin's input files pass validation before the files exist.
* Nodes and file names that a prompt may not use are refused (see ``guard.py``).
* Cached results are used only for the tenant whose prompt gave them (see ``tenants.py``).
* Python objects that exist at the start are exempt from garbage collection. ComfyUI collects
  garbage after prompts, which would otherwise block the process for a quarter of a second.
* ``MOYIN_GPU_SHARE`` limits the fraction of the GPU's memory that this process uses.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import posixpath
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import guard
from .input_rules import leads_outside
from .tenants import wrap_execution, wrap_keys, wrap_output_data

# The modules of ComfyUI's own nodes, except those in its folder of custom nodes.
_STOCK_MODULES = ("nodes", "comfy_extras")
_PULSE_SECONDS = 5.0
_FLAG_SECONDS = 0.02
_EXECUTOR_THREAD = "prompt_worker"
_PULSE_FLAG = "moyin_pulse"
_FOLDERS = ("output", "temp")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The form of names that `moyin.render.protocol.graph.make_input_name` returns.
_INPUT = re.compile(r"moyin/[0-9a-f]{64}(\.[a-z0-9]{1,8})?( \[input\])?")


def register() -> None:
    """Add the routes and limits to ComfyUI; the node package's ``__init__.py`` calls it."""
    import execution  # type: ignore[import-not-found]
    import folder_paths  # type: ignore[import-not-found]
    import nodes  # type: ignore[import-not-found]
    from aiohttp import web
    from comfy import model_management  # type: ignore[import-not-found]
    from comfy_execution.caching import (  # type: ignore[import-not-found]
        CacheKeySetID,
        CacheKeySetInputSignature,
    )
    from comfy_execution.utils import get_executing_context  # type: ignore[import-not-found]
    from server import PromptServer  # type: ignore[import-not-found]

    server = PromptServer.instance
    executor = ExecutorThread()
    # Bound before the guard wraps the function, because the gateway has checked these graphs.
    validate_prompt = execution.validate_prompt

    async def handle_validate(request: web.Request) -> web.Response:
        request_body = await request.json()
        status, body = await validate_graph(validate_prompt, request_body)
        if status == 200:
            body["free"] = find_unchecked_inputs(request_body["prompt"], nodes.NODE_CLASS_MAPPINGS)
        return web.json_response(body, status=status)

    async def handle_look(request: web.Request) -> web.Response:
        return web.json_response(read_prompt_state(server.prompt_queue, await request.json()))

    async def handle_volatile(_request: web.Request) -> web.Response:
        return web.json_response(find_volatile_classes(nodes.NODE_CLASS_MAPPINGS))

    async def handle_pulse(_request: web.Request) -> web.Response:
        is_alive = executor.is_alive() and await is_executor_responsive(server.prompt_queue)
        return web.json_response({"alive": is_alive}, status=200 if is_alive else 503)

    server.routes.post("/moyin/validate")(handle_validate)
    server.routes.post("/moyin/look")(handle_look)
    server.routes.get("/moyin/pulse")(handle_pulse)
    server.routes.get("/moyin/volatile")(handle_volatile)
    folder_paths.get_save_image_path = wrap_save_path(
        folder_paths.get_save_image_path, get_executing_context
    )
    rules = guard.NodeRules(nodes.NODE_CLASS_MAPPINGS)
    server.add_on_prompt_handler(guard.store_patterns)
    execution.validate_prompt = guard.wrap_validation(execution.validate_prompt, rules)
    execution.get_input_data = guard.wrap_input_data(execution.get_input_data, rules)
    execution.get_output_data = wrap_output_data(execution.get_output_data)
    execution.PromptExecutor.execute_async = wrap_execution(
        execution.PromptExecutor.execute_async, nodes.NODE_CLASS_MAPPINGS, rules
    )
    for key_set in (CacheKeySetID, CacheKeySetInputSignature):
        key_set.add_keys = wrap_keys(key_set.add_keys)
    server.send_sync = wrap_send(server.send_sync, folder_paths.get_directory_by_type)
    folder_paths.exists_annotated_filepath = wrap_file_check(folder_paths.exists_annotated_filepath)
    # Called at the startup of the server, when all nodes have been imported.
    server.app.on_startup.append(freeze_startup_objects)
    share = float(os.environ.get("MOYIN_GPU_SHARE", "1"))
    if share < 1:
        limit_gpu_memory(share, model_management)


async def freeze_startup_objects(_app: Any) -> None:
    """Exempt all present objects from garbage collection; they live as long as the process."""
    gc.collect()
    gc.freeze()


async def validate_graph(
    validate_prompt: Callable[..., Any], body: dict[str, Any]
) -> tuple[int, Any]:
    """Validate the body of ``POST /prompt`` as ComfyUI does, without queueing the prompt.

    Returns:
        The response's status and body. Unlike ComfyUI's response, the body of a valid graph has no
            ``number``; it has the ids of the valid ``outputs``.
    """
    if "prompt" not in body:
        error = {
            "type": "no_prompt",
            "message": "No prompt provided",
            "details": "No prompt provided",
            "extra_info": {},
        }
        return 400, {"error": error, "node_errors": {}}
    prompt_id = str(body.get("prompt_id") or uuid.uuid4())
    targets = body.get("partial_execution_targets")
    is_valid, error, outputs, node_errors = await validate_prompt(
        prompt_id, body["prompt"], targets
    )
    if not is_valid:
        return 400, {"error": error, "node_errors": node_errors}
    # Sorted, because ComfyUI's order of the outputs is that of a set.
    return 200, {"prompt_id": prompt_id, "node_errors": node_errors, "outputs": sorted(outputs)}


def find_unchecked_inputs(
    graph: Mapping[str, Any], classes: Mapping[str, Any]
) -> dict[str, dict[str, list[Any]]]:
    """Return the inputs that ComfyUI checks only for type and range, by node id and input name.

    The value for each input is a list of its type, minimum and maximum.
    """
    inputs_by_node: dict[str, dict[str, list[Any]]] = {}
    for node_id, node in graph.items():
        node_class = classes.get(node["class_type"])
        # These methods of old and new nodes may check all inputs of a node, so that none of its
        # inputs is unchecked.
        if node_class is None or _defines_method(node_class, "VALIDATE_INPUTS", "validate_inputs"):
            continue
        try:
            inputs = _list_simple_inputs(node_class.INPUT_TYPES(), node.get("inputs", {}))
        except Exception:
            continue  # the inputs may be malformed, since ComfyUI does not check unused nodes
        if inputs:
            inputs_by_node[node_id] = inputs
    return inputs_by_node


def _list_simple_inputs(
    input_types: Mapping[str, Any], input_values: Mapping[str, Any]
) -> dict[str, list[Any]]:
    specs = {**input_types.get("optional", {}), **input_types.get("required", {})}
    inputs = {}
    for name in specs.keys() & input_values.keys():
        kind, *option_list = specs[name]
        options = option_list[0] if option_list else {}
        bounds = [options.get("min"), options.get("max")]
        if kind in ("INT", "FLOAT", "STRING", "BOOLEAN") and all(
            bound is None or isinstance(bound, (int, float)) for bound in bounds
        ):
            inputs[name] = [kind, *bounds]
    return inputs


def read_prompt_state(queue: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a `PromptState` for the prompt that the body names.

    The entries of the prompts in the body's ``forget`` are dropped from the history.
    """
    prompt_id = body["prompt_id"]
    with queue.mutex:
        for read_id in body.get("forget", ()):
            queue.history.pop(read_id, None)
        entry = queue.history.get(prompt_id)
        unfinished_items = (*queue.currently_running.values(), *queue.queue)
        is_queued = any(item[1] == prompt_id for item in unfinished_items)
    if entry is not None:
        entry = {name: value for name, value in entry.items() if name != "prompt"}
    return {"queued": is_queued, "entry": entry}


def find_volatile_classes(classes: Mapping[str, Any]) -> list[str]:
    """Return the node classes whose outputs may differ although their inputs are equal.

    Such a class defines a method by which ComfyUI decides whether to execute the node again.
    ComfyUI's own classes are left out: their methods compare the content of files, but a file of
    Moyin with another content also has another name, which is a different input.
    """
    return sorted(
        name
        for name, node_class in classes.items()
        if _defines_method(node_class, "IS_CHANGED", "fingerprint_inputs")
        and not getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes").startswith(_STOCK_MODULES)
    )


def _defines_method(node_class: Any, *method_names: str) -> bool:
    """Return True if the class, or a base class outside ``comfy_api``, defines one of the methods."""
    return any(
        name in vars(base)
        for base in node_class.__mro__
        if not base.__module__.startswith("comfy_api")
        for name in method_names
    )


class ExecutorThread:
    """Watches ComfyUI's thread that executes prompts, which ends after an unhandled exception."""

    def __init__(self) -> None:
        self._was_seen = False

    def is_alive(self) -> bool:
        """Return whether the thread is alive, or True if the thread has not been found yet."""
        is_present = any(_EXECUTOR_THREAD in thread.name for thread in threading.enumerate())
        self._was_seen = self._was_seen or is_present
        return is_present or not self._was_seen


async def is_executor_responsive(queue: Any, timeout_seconds: float = _PULSE_SECONDS) -> bool:
    """Return True if the executor runs a prompt or responds to a signal in time."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        # Repeated, because an executor that is finishing a prompt may miss the notification.
        queue.set_flag(_PULSE_FLAG, True)
        await asyncio.sleep(_FLAG_SECONDS)
        if queue.currently_running or _PULSE_FLAG not in queue.get_flags(reset=False):
            return True
    return False


def wrap_save_path(
    original_function: Callable[..., Any], get_context: Callable[[], Any]
) -> Callable[..., Any]:
    """Wrap ``folder_paths.get_save_image_path`` to use a folder named after the prompt.

    Args:
        get_context: returns ComfyUI's context of the executing prompt, or None.
    """

    @functools.wraps(original_function)
    def get_save_image_path(filename_prefix: str, *args: Any, **kwargs: Any) -> Any:
        context = get_context()
        if context is not None:
            if leads_outside(filename_prefix):
                raise ValueError("filename_prefix must be a relative name without '..'")
            filename_prefix = posixpath.join(context.prompt_id, filename_prefix)
        return original_function(filename_prefix, *args, **kwargs)

    return get_save_image_path


def wrap_send(
    original_function: Callable[..., None], get_folder: Callable[[str], str]
) -> Callable[..., None]:
    """Wrap ``PromptServer.send_sync`` so that events report each file in the folder of its prompt.

    Nodes that choose their own paths write outside the folder of their prompt. The wrapper changes
    the lists in the event, not copies, because ComfyUI's history and cache use the same lists.

    Args:
        get_folder: returns the path of the folder for a file type, such as ``output``.
    """

    @functools.wraps(original_function)
    def send_sync(event: Any, data: Any, *args: Any, **kwargs: Any) -> None:
        if event == "executed" and isinstance(data, dict):
            output, prompt_id = data.get("output"), str(data.get("prompt_id"))
            for items in output.values() if isinstance(output, dict) else ():
                if isinstance(items, list):
                    items[:] = [_add_prompt_folder(item, prompt_id, get_folder) for item in items]
        original_function(event, data, *args, **kwargs)

    return send_sync


def _add_prompt_folder(item: Any, prompt_id: str, get_folder: Callable[[str], str]) -> Any:
    """Return an item of a node's output with the prompt's folder in its ``subfolder``.

    An item that names no existing file is returned unchanged.
    """
    if not isinstance(item, dict) or item.get("type") not in _FOLDERS:
        return item
    subfolder, name = str(item.get("subfolder") or ""), str(item.get("filename") or "")
    root = Path(get_folder(item["type"]))
    try:
        # Some nodes report an absolute path or a path with dots.
        path = Path(os.path.normpath(root / subfolder / name)).relative_to(root)
        if not name or not (root / path).is_file():
            return item
    except (OSError, ValueError):
        return item
    folder = path.parent.as_posix()
    if not _UUID.fullmatch(path.parts[0]) and _UUID.fullmatch(prompt_id):
        folder = posixpath.normpath(posixpath.join(prompt_id, folder))
    return {**item, "filename": path.name, "subfolder": folder}


def wrap_file_check(original_function: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Wrap ``folder_paths.exists_annotated_filepath`` to accept names of Moyin's input files.

    The renderer places these files after the validation, just before it submits the prompt.
    """

    @functools.wraps(original_function)
    def exists_annotated_filepath(name: Any) -> bool:
        is_input_file = isinstance(name, str) and _INPUT.fullmatch(name) is not None
        return is_input_file or original_function(name)

    return exists_annotated_filepath


def limit_gpu_memory(share: float, model_management: Any) -> None:
    """Limit this process, and ComfyUI's memory management, to a fraction of the GPU's memory.

    The launcher can't do that, because ComfyUI must set the allocator before torch is imported.

    Args:
        share: the fraction, from 0 to 1.
        model_management: ComfyUI's module of this name.
    """
    import torch

    if not torch.cuda.is_available():
        return
    torch.cuda.set_per_process_memory_fraction(share)
    limit_bytes = share * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    original_function = model_management.get_free_memory

    @functools.wraps(original_function)
    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        free_bytes, cached_bytes = original_function(dev, True)
        if getattr(dev, "type", "cuda") == "cuda":
            # Add the memory that may still be reserved and the unused part of the reserved memory.
            free_bytes = min(
                free_bytes, max(0, limit_bytes - torch.cuda.memory_reserved(dev)) + cached_bytes
            )
        return (free_bytes, cached_bytes) if torch_free_too else free_bytes

    model_management.get_free_memory = get_free_memory
