"""Runs the client `comfyapi` on graphs in a folder, and prints the results as JSON.

It changes a graph, renders it, downloads the picture by its file name alone, and runs a graph that
fails. Arguments: the URL, and the folder of ``graphs.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from comfyapi import ComfyAPIManager, ExecutionError

url, folder = sys.argv[1], Path(sys.argv[2])
graphs = json.loads((folder / "graphs.json").read_text())
manager = ComfyAPIManager()
manager.set_base_url(url)


def load_graph(name: str) -> None:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(graphs[name]))
    manager.load_workflow(str(path))


def render(file_name: str) -> tuple[str, str]:
    job = manager.submit_workflow()
    name, address = manager.wait_for_finish(job, poll_interval=0.2)
    assert manager.check_queue(job)
    manager.download_output(address, save_path=str(folder), filename=file_name)
    return job, name


load_graph("picture")
older = render("older.png")
color = graphs["picture"]["1"]["inputs"]["color"]
manager.edit_workflow(["1", "inputs", "color"], 0xFFFFFF - color)
newer = render("newer.png")
seeds = manager.batch_submit(
    seeds=[color, 0xFFFFFF - color], seed_node_path=["1", "inputs", "color"]
)
outputs, errors = manager.wait_and_get_all_outputs(seeds)
load_graph("broken")
try:
    manager.wait_for_finish(manager.submit_workflow(), poll_interval=0.2)
    error = ""
except ExecutionError as raised:
    error = str(raised)
print(
    json.dumps(
        {
            "jobs": [older[0], newer[0], *seeds],
            "names": [older[1], newer[1], *(name for name, _ in outputs)],
            "errors": [str(raised) for raised in errors],
            "error": error,
        }
    )
)
