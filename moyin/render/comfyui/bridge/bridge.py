"""Routes and limits inside ComfyUI's own process. Imports ComfyUI only when registered.

* ``POST /moyin/validate`` answers as ``POST /prompt`` would, without queueing, and tells of which
  inputs nothing but type and range was checked.
* ``POST /moyin/look`` tells how a prompt stands, and drops others from the history.
* ``GET /moyin/volatile`` names the nodes that may make something else of the same inputs.
* ``GET /moyin/pulse`` answers 200 when the thread that executes prompts is alive, else 503.
* Files of a prompt go into a folder named after the prompt, so names never clash, the graph and
  its cache keys stay as the client wrote them, and cached outputs still name where they came from.
  Those that a node has named by itself are told of as if they were there: the renderer, which moves
  all files away when the prompt ends, knows both places.
* Our own input files count as there when a graph is validated: they come with the prompt.
* Nodes and names of files that a prompt may not have are refused (``guard``).
* What is put out with a prompt's own graph in it is not given to another tenant (``tenants``).
* What ComfyUI and its nodes imported is left out of garbage collections: it collects after a prompt,
  every ten seconds at most, and walking all of that holds everything up for a quarter of a second.
* ``MOYIN_GPU_SHARE``: the largest part of the card's memory that this process may take.
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
from .names import escapes
from .tenants import by_tenant, for_tenant

__all__ = ["register"]

# Modules of nodes that come with ComfyUI, but for those in its folder of custom nodes.
_OWN = ("nodes", "comfy_extras")
_PULSE_SECONDS = 5.0
_WAKE_SECONDS = 0.02
_EXECUTOR = "prompt_worker"
_PULSE_FLAG = "moyin_pulse"
_FOLDERS = ("output", "temp")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# As `moyin.render.protocol.graph.input_name` makes them.
_INPUT = re.compile(r"moyin/[0-9a-f]{64}(\.[a-z0-9]{1,8})?( \[input\])?")


def register() -> None:
    """Called by the custom node's ``__init__.py``, with ComfyUI's modules importable."""
    import execution  # type: ignore[import-not-found]
    import folder_paths  # type: ignore[import-not-found]
    import nodes  # type: ignore[import-not-found]
    from aiohttp import web
    from comfy import model_management  # type: ignore[import-not-found]
    from comfy_execution.caching import (  # type: ignore[import-not-found]
        CacheKeySetInputSignature,
    )
    from comfy_execution.utils import get_executing_context  # type: ignore[import-not-found]
    from server import PromptServer  # type: ignore[import-not-found]

    server = PromptServer.instance
    executor = Executor()
    # For graphs that the gateway has looked at.
    validate_prompt = execution.validate_prompt

    async def validate(request: web.Request) -> web.Response:
        asked = await request.json()
        status, body = await verdict(validate_prompt, asked)
        if status == 200:
            body["free"] = free_inputs(asked["prompt"], nodes.NODE_CLASS_MAPPINGS)
        return web.json_response(body, status=status)

    async def look(request: web.Request) -> web.Response:
        return web.json_response(standing(server.prompt_queue, await request.json()))

    async def volatile(_request: web.Request) -> web.Response:
        return web.json_response(volatile_classes(nodes.NODE_CLASS_MAPPINGS))

    async def pulse(_request: web.Request) -> web.Response:
        alive = executor.runs() and await beats(server.prompt_queue)
        return web.json_response({"alive": alive}, status=200 if alive else 503)

    server.routes.post("/moyin/validate")(validate)
    server.routes.post("/moyin/look")(look)
    server.routes.get("/moyin/pulse")(pulse)
    server.routes.get("/moyin/volatile")(volatile)
    folder_paths.get_save_image_path = by_prompt(
        folder_paths.get_save_image_path, get_executing_context
    )
    rules = guard.Rules(nodes.NODE_CLASS_MAPPINGS)
    server.add_on_prompt_handler(guard.noted)
    execution.validate_prompt = guard.first_checked(execution.validate_prompt, rules)
    execution.get_input_data = guard.while_executed(execution.get_input_data, rules)
    execution.PromptExecutor.execute_async = for_tenant(execution.PromptExecutor.execute_async)
    CacheKeySetInputSignature.get_immediate_node_signature = by_tenant(
        CacheKeySetInputSignature.get_immediate_node_signature, nodes.NODE_CLASS_MAPPINGS
    )
    server.send_sync = with_origin(server.send_sync, folder_paths.get_directory_by_type)
    folder_paths.exists_annotated_filepath = in_time(folder_paths.exists_annotated_filepath)
    # Not now: other nodes are still to be imported.
    server.app.on_startup.append(leave_startup_to_rest)
    share = float(os.environ.get("MOYIN_GPU_SHARE", "1"))
    if share < 1:
        cap_memory(share, model_management)


async def leave_startup_to_rest(_app: Any) -> None:
    """Take what is there out of the garbage collector's sight; it lives as long as the process."""
    gc.collect()
    gc.freeze()


async def verdict(validate_prompt: Callable[..., Any], body: dict[str, Any]) -> tuple[int, Any]:
    """Status and body that ``POST /prompt`` would answer, but for the queue number."""
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
    valid, error, outputs, node_errors = await validate_prompt(prompt_id, body["prompt"], targets)
    if not valid:
        return 400, {"error": error, "node_errors": node_errors}
    # ComfyUI takes them from a set: their order means nothing.
    return 200, {"prompt_id": prompt_id, "node_errors": node_errors, "outputs": sorted(outputs)}


def free_inputs(
    graph: Mapping[str, Any], classes: Mapping[str, Any]
) -> dict[str, dict[str, list[Any]]]:
    """Inputs of a valid graph of which ComfyUI checked nothing but type and range, by node and
    name: type, least and greatest value (None: any).
    """
    free: dict[str, dict[str, list[Any]]] = {}
    for node, content in graph.items():
        kind = classes.get(content["class_type"])
        # Old nodes check inputs by the one, new ones by the other; whole nodes, because what they
        # look at is their own affair.
        if kind is None or _overrides(kind, "VALIDATE_INPUTS", "validate_inputs"):
            continue
        try:
            found = _simple_inputs(kind.INPUT_TYPES(), content.get("inputs", {}))
        except Exception:
            # ComfyUI has not asked a node that leads to no output, and it may be any nonsense.
            continue
        if found:
            free[node] = found
    return free


def _simple_inputs(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, list[Any]]:
    specs = {**wanted.get("optional", {}), **wanted.get("required", {})}
    found = {}
    for name in specs.keys() & given.keys():
        kind, *more = specs[name]
        rules = more[0] if more else {}
        bounds = [rules.get("min"), rules.get("max")]
        if kind in ("INT", "FLOAT", "STRING", "BOOLEAN") and all(
            bound is None or isinstance(bound, (int, float)) for bound in bounds
        ):
            found[name] = [kind, *bounds]
    return found


def standing(queue: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """``queued``, and the history's ``entry`` of prompt ``prompt_id`` without its graph.

    ``forget`` names prompts whose entries have been read: ComfyUI keeps them in memory.
    """
    prompt_id = body["prompt_id"]
    with queue.mutex:
        for seen in body.get("forget", ()):
            queue.history.pop(seen, None)
        entry = queue.history.get(prompt_id)
        waiting = (*queue.currently_running.values(), *queue.queue)
        queued = any(item[1] == prompt_id for item in waiting)
    if entry is not None:
        entry = {name: value for name, value in entry.items() if name != "prompt"}
    return {"queued": queued, "entry": entry}


def volatile_classes(classes: Mapping[str, Any]) -> list[str]:
    """Names of the nodes that decide for themselves whether they have changed.

    ComfyUI's own do so by the content of the files that they load, which have a new name here when
    they have another content. Of what others write nothing is known.
    """
    return sorted(
        name
        for name, node in classes.items()
        if _overrides(node, "IS_CHANGED", "fingerprint_inputs")
        and not getattr(node, "RELATIVE_PYTHON_MODULE", "nodes").startswith(_OWN)
    )


def _overrides(node: Any, *names: str) -> bool:
    """Whether it, and not only the base of new nodes, has a function of one of the names."""
    return any(
        name in vars(base)
        for base in node.__mro__
        if not base.__module__.startswith("comfy_api")
        for name in names
    )


class Executor:
    """The thread that executes prompts. An exception that no node may raise ends it for good."""

    def __init__(self) -> None:
        self._seen = False

    def runs(self) -> bool:
        """False when it was there and is gone; a ComfyUI that names it otherwise gets the doubt."""
        there = any(_EXECUTOR in thread.name for thread in threading.enumerate())
        self._seen = self._seen or there
        return there or not self._seen


async def beats(queue: Any, seconds: float = _PULSE_SECONDS) -> bool:
    """Whether the executor takes a flag, as it does between prompts, or is at one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # Again and again: an executor that is just finishing a prompt misses the wake-up.
        queue.set_flag(_PULSE_FLAG, True)
        await asyncio.sleep(_WAKE_SECONDS)
        if queue.currently_running or _PULSE_FLAG not in queue.get_flags(reset=False):
            return True
    return False


def by_prompt(original: Callable[..., Any], context: Callable[[], Any]) -> Callable[..., Any]:
    """``folder_paths.get_save_image_path`` that puts a running prompt's files into its folder."""

    @functools.wraps(original)
    def get_save_image_path(filename_prefix: str, *args: Any, **kwargs: Any) -> Any:
        running = context()
        if running is not None:
            if escapes(filename_prefix):
                raise ValueError("filename_prefix must be a name within the prompt's own folder")
            filename_prefix = posixpath.join(running.prompt_id, filename_prefix)
        return original(filename_prefix, *args, **kwargs)

    return get_save_image_path


def with_origin(
    original: Callable[..., None], folder_of: Callable[[str], str]
) -> Callable[..., None]:
    """``PromptServer.send_sync`` that tells of files as in the folder of their prompt.

    So do history and cache, which have the same lists. Nodes that choose their files' names themselves
    write them elsewhere: whoever collects the files knows both places.

    Args:
        folder_of: path of the folder for files of a type.
    """

    @functools.wraps(original)
    def send_sync(event: Any, data: Any, *args: Any, **kwargs: Any) -> None:
        if event == "executed" and isinstance(data, dict):
            output, prompt_id = data.get("output"), str(data.get("prompt_id"))
            for items in output.values() if isinstance(output, dict) else ():
                if isinstance(items, list):
                    items[:] = [_placed(item, prompt_id, folder_of) for item in items]
        original(event, data, *args, **kwargs)

    return send_sync


def _placed(item: Any, prompt_id: str, folder_of: Callable[[str], str]) -> Any:
    """The item, which the node may use again, or another that says which prompt wrote the file."""
    if not isinstance(item, dict) or item.get("type") not in _FOLDERS:
        return item
    subfolder, name = str(item.get("subfolder") or ""), str(item.get("filename") or "")
    root = Path(folder_of(item["type"]))
    try:
        # Some nodes tell of the whole path, or of one with dots.
        place = Path(os.path.normpath(root / subfolder / name)).relative_to(root)
        if not name or not (root / place).is_file():
            return item
    except (OSError, ValueError):
        return item
    folder = place.parent.as_posix()
    if not _UUID.fullmatch(place.parts[0]) and _UUID.fullmatch(prompt_id):
        folder = posixpath.normpath(posixpath.join(prompt_id, folder))
    return {**item, "filename": place.name, "subfolder": folder}


def in_time(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """``folder_paths.exists_annotated_filepath`` for graphs whose files are still to come.

    Whoever renders the graph copies them before it submits the prompt.
    """

    @functools.wraps(original)
    def exists_annotated_filepath(name: Any) -> bool:
        ours = isinstance(name, str) and _INPUT.fullmatch(name) is not None
        return ours or original(name)

    return exists_annotated_filepath


def cap_memory(share: float, model_management: Any) -> None:
    """Hold this process to ``share`` of the card, and tell ComfyUI's own planning about it.

    Here and not in the launcher, because ComfyUI must choose the allocator before torch loads.
    """
    import torch

    if not torch.cuda.is_available():
        return
    torch.cuda.set_per_process_memory_fraction(share)
    limit = share * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    original = model_management.get_free_memory

    @functools.wraps(original)
    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        total, cached = original(dev, True)
        if getattr(dev, "type", "cuda") == "cuda":
            # What we may still reserve, and what we have reserved and not used.
            total = min(total, max(0, limit - torch.cuda.memory_reserved(dev)) + cached)
        return (total, cached) if torch_free_too else total

    model_management.get_free_memory = get_free_memory
