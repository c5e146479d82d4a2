"""Runs the client `comfy-script`, which builds graphs from Python functions; prints the results.

Its HTTP session sends an API key. Arguments: the URL, the folder of ``graphs.json``, and the key.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import aiohttp
from comfy_script.client import Client
from comfy_script.runtime import Workflow, load, queue

url, folder, key = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
headers = {"authorization": f"Bearer {key}"}
load(Client(url, session_factory=lambda: aiohttp.ClientSession(headers=headers)))
from comfy_script.runtime.nodes import *  # noqa: E402, F403

remaining: list[int] = []
queue.add_queue_remaining_callback(remaining.append)
color = json.loads((folder / "graphs.json").read_text())["picture"]["1"]["inputs"]["color"]
with Workflow(wait=True) as workflow:
    # The client notes a prompt only after the response to it, in another thread than that of the
    # WebSocket, and waits forever for one that has ended before.
    image = TestSleep(EmptyImage(40, 24, 1, color), 1)  # noqa: F405
    saved = SaveImage(image, "script")  # noqa: F405
[picture] = saved.wait()
picture.save(folder / "picture.png")
made = workflow.task.prompt_id

with Workflow() as workflow:
    late = TestSleep(EmptyImage(8, 8, 1, color + 1), 60)  # noqa: F405
    SaveImage(late, "script")  # noqa: F405
long = workflow.task
while queue.queue_remaining == 0:
    time.sleep(0.1)
queue.cancel_all()
outputs = long.wait()
print(
    json.dumps({"made": made, "long": long.prompt_id, "outputs": outputs, "remaining": remaining})
)
