"""Runs the client `comfy-api-client` on graphs in a folder, and prints the results as JSON.

It renders a picture, uploads it and renders it inverted, runs a graph that fails, interrupts a long
prompt, and fetches the page at ``/``. Arguments: the URL, and the folder of ``graphs.json``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from comfy_api_client import create_client
from comfy_api_client.client import ComfyExecutionError

url, folder = sys.argv[1], Path(sys.argv[2])
graphs = json.loads((folder / "graphs.json").read_text())


async def main() -> None:
    # Entering it fetches the page at `/`. Its WebSocket tracker calls a method that it lacks.
    async with create_client(url, start_state_tracker="http") as client:
        prompt = await client.submit_workflow(graphs["picture"])
        [picture] = (await prompt.future).output_images
        picture.image.save(folder / "picture.png")
        uploaded_image = await client.upload_image(
            "picture.png", picture.image, subfolder="api-client"
        )
        graphs["inverted"]["1"]["inputs"]["image"] = (
            f"{uploaded_image.subfolder}/{uploaded_image.name}"
        )
        [inverted_picture] = (
            await (await client.submit_workflow(graphs["inverted"])).future
        ).output_images
        inverted_picture.image.save(folder / "inverted.png")
        broken_prompt = await client.submit_workflow(graphs["broken"])
        try:
            await broken_prompt.future
            error_message = ""
        except ComfyExecutionError as raised:
            error_message = str(raised)
        long_prompt = await client.submit_workflow(graphs["long"], return_future=False)
        while long_prompt.prompt_id not in [  # noqa: ASYNC110
            row.prompt_id for row in (await client.get_queue()).running
        ]:
            await asyncio.sleep(0.1)
        await client.interrupt_processing()
        summary = {
            "page": await client.get_index(),
            "job": prompt.prompt_id,
            "name": picture.filename,
            "error": error_message,
            "long": long_prompt.prompt_id,
            "devices": [device.type for device in (await client.get_system_stats()).devices],
            "embeddings": list(await client.get_embeddings()),
            "completed": list(await client.get_completed_prompts()),
        }
    print(json.dumps(summary))


asyncio.run(main())
