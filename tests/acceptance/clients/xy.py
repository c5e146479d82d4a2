"""Runs the client `comfyui-xy` on graphs in a folder, and prints the results as JSON.

It renders a picture, uploads it and renders it inverted, reads the nodes and the queue, and
interrupts a long prompt. Arguments: the URL, the folder of ``graphs.json``, and an API key.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path

import aiohttp
import requests
from comfyui_xy import AsyncComfyUiClient, ComfyUiClient

url, folder = sys.argv[1], Path(sys.argv[2])
headers = {"authorization": f"Bearer {sys.argv[3]}"}
graphs = json.loads((folder / "graphs.json").read_text())
session = requests.Session()
session.headers.update(headers)
client = ComfyUiClient(url=url, raise_on_error=True, session=session)

[made] = client.process_workflow(graphs["picture"])
made.save(folder / "picture.png")
name = client.upload_image(str(folder / "picture.png"))
graphs["inverted"]["1"]["inputs"]["image"] = name


async def render_inverted_picture() -> None:
    async with (
        aiohttp.ClientSession(headers=headers) as own_session,
        AsyncComfyUiClient(url=url, raise_on_error=True, session=own_session) as async_client,
    ):
        [inverted_image] = await async_client.process_workflow(graphs["inverted"])
        inverted_image.save(folder / "inverted.png")


asyncio.run(render_inverted_picture())

long = client.queue_prompt(graphs["long"])
while not [row for row in client.get_queue()["queue_running"] if row[1] == long]:
    time.sleep(0.1)
waiting = threading.Thread(target=client.wait_for_execution, args=(long, 0.1))
waiting.start()
interrupted = client.interrupt()
waiting.join()
print(
    json.dumps(
        {
            "name": made.filename,
            "size": made.image.size,
            "nodes": list(client.get_object_info("EmptyImage")),
            "long": long,
            "interrupted": interrupted,
            "status": client.get_history(long)[long]["status"]["status_str"],
            "messages": [kind for kind, _ in client.get_history(long)[long]["status"]["messages"]],
        }
    )
)
