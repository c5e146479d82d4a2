"""Writes hostile ComfyUI nodes, which run any code that a graph contains."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from moyin.domain.artifact import Artifact
from moyin.domain.renderer import RenderRequest, RenderSucceeded
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.render.protocol.graph import make_input_name

_NODES = """
import json

import folder_paths

# It stays in the process, as whatever a package keeps does.
KEPT = {}

class Attempt:
    INPUT_TYPES = classmethod(lambda cls: {"required": {
        "code": ("STRING", {"multiline": True}), "given": ("STRING", {"default": "null"}),
    }})
    RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "run", "test"
    IS_CHANGED = classmethod(lambda cls, **_: float("nan"))
    def run(self, code, given):
        scope = {"given": json.loads(given), "found": None, "files": [], "kept": KEPT,
                 "folder_paths": folder_paths}
        exec(code, scope)
        return {"ui": {"text": [json.dumps(scope["found"])], "files": scope["files"]}}

NODE_CLASS_MAPPINGS = {"Attempt": Attempt}
"""


def write_hostile_nodes(folder: Path) -> Path:
    """Write the package below ``folder``, and return its folder.

    Its node ``Attempt`` runs any ``code``, which can read the variable ``given``, stores its
    findings in ``found``, and may add ``files`` to the node's output.
    """
    package = folder / "hostile-nodes"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_NODES)
    return package


def build_hostile_graph(code: str, arguments: Any = None) -> dict[str, Any]:
    """Return a graph that runs ``code`` in ComfyUI's process.

    Args:
        arguments: a value that the code can read.
    """
    inputs = {"code": code, "given": json.dumps(arguments)}
    return {"1": {"class_type": "Attempt", "inputs": inputs}}


def read_finding(outputs: Any) -> Any:
    """Return what the code stored in ``found``, from the outputs of its node."""
    return json.loads(outputs["1"]["text"][0])


async def run_hostile_code(
    renderer: ComfyRenderer, code: str, arguments: Any = None, **kwargs: Any
) -> Any:
    """Run ``code`` in ComfyUI's process, and return its findings.

    Args:
        arguments: a value that the code can read.
    """
    return read_finding(
        (await render_graph(renderer, build_hostile_graph(code, arguments), **kwargs)).values
    )


async def render_graph(
    renderer: ComfyRenderer, graph: dict[str, Any], **kwargs: Any
) -> RenderSucceeded:
    return await render_to_end(
        renderer, RenderRequest(prompt_id=str(uuid.uuid4()), graph=graph, **kwargs)
    )


async def render_to_end(renderer: ComfyRenderer, request: RenderRequest) -> RenderSucceeded:
    [*_, last_event] = [event async for event in renderer.render(request)]
    assert isinstance(last_event, RenderSucceeded)
    return last_event


async def store_input(renderer: ComfyRenderer, content: bytes) -> dict[str, str]:
    """Store an input file, and return a mapping from its name to its digest."""
    sha256 = await renderer._blobs.put(content)
    file = Artifact(id="a", name="a.png", media_type="image/png", size=1, sha256=sha256)
    return {make_input_name(file): sha256}
