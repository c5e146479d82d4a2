"""Runs the client `comfy-api-simplified` on graphs in a folder, and prints the results as JSON.

It changes a graph and renders it, then uploads the picture and renders it inverted. Arguments: the
URL, and the folder of ``graphs.json``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

url, folder = sys.argv[1], Path(sys.argv[2])
graphs = json.loads((folder / "graphs.json").read_text())
api = ComfyApiWrapper(url)


def wrap_graph(name: str) -> ComfyWorkflowWrapper:
    (folder / f"{name}.json").write_text(json.dumps(graphs[name]))
    return ComfyWorkflowWrapper(str(folder / f"{name}.json"))


picture = wrap_graph("picture")
picture.set_node_param("Plain", "height", 16)
[(name, data)] = api.queue_and_wait_images(picture, "Save").items()
(folder / "picture.png").write_bytes(data)
kept = api.upload_image(str(folder / "picture.png"), subfolder="simplified")
inverted = wrap_graph("inverted")
inverted.set_node_param("Load", "image", f"{kept['subfolder']}/{kept['name']}")
[(_, data)] = api.queue_and_wait_images(inverted, "Save").items()
(folder / "inverted.png").write_bytes(data)
api.get_object_info("EmptyImage")
job, _ = asyncio.run(api.queue_prompt_and_wait(picture))
print(json.dumps({"name": name, "kept": kept, "job": job}))
