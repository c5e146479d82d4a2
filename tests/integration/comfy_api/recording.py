"""Records what a ComfyUI client receives over HTTP and WebSocket, to compare two servers.

A `Recorder` plays a scene and keeps every response and frame in order. `Recorder.normalize` removes
what differs between any two servers: ids, times and file locations. Further functions remove the
known differences between ComfyUI and the farm, and state their reasons; docs/farm.md lists the
differences for users.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import aiohttp
from PIL import Image

from moyin.render.protocol.binary import parse_image_metadata, read_frame_type

_SECONDS = 120
_FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
_ROW = ("number", "prompt_id", "prompt", "extra_data", "outputs")
_MOMENTS = ("timestamp", "create_time")
# ComfyUI makes these lists of sets: their order is another one in every process.
_SETS = ("executed", "current_outputs", "dependent_outputs", "outputs")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The farm puts a prompt's files below its id, and cached ones below a part of their origin's too.
_FARM_FOLDER = re.compile(rf"^{_UUID.pattern}(/[0-9a-f]{{8}})?(/|$)")
_COUNTER = re.compile(r"_\d{5}_\.")
_TEMPORARY = re.compile(r"_temp_[a-z]{5}_")
# The farm says `<comfyui>` and the like in the place of folders of its machine.
_PLACES = re.compile(r'File "[^"]*/(?=[^"/]+")')


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Consecutive prompts of one client on one WebSocket.

    Attributes:
        further_members: further members of the body of ``POST /prompt``.
        features: True if the client sends its feature flags, which ask for previews with metadata.
        interrupted: True to interrupt the first prompt as soon as it reports progress.
    """

    name: str
    graphs: Sequence[Mapping[str, Any]]
    further_members: Mapping[str, Any] = field(default_factory=dict)
    features: bool = False
    interrupted: bool = False


class Recorder:
    """Records the responses of one server.

    Args:
        inputs: content of the uploads that graphs load, by name.
    """

    def __init__(self, session: aiohttp.ClientSession, inputs: Mapping[str, bytes]) -> None:
        self._session = session
        self._inputs = inputs

    async def play(self, scene: Scene) -> dict[str, Any]:
        """Play a scene, and return everything that the client received, normalized."""
        client_id = str(uuid.uuid4())
        async with self._session.ws_connect(f"/ws?clientId={client_id}") as socket:
            first_messages = [await socket.receive_json(timeout=_SECONDS)]
            if scene.features:
                await socket.send_json(_FEATURES)
                first_messages.append(await self._receive_feature_flags(socket))
            prompts: list[Any] = []
            for graph in scene.graphs:
                body = {"prompt": graph, "client_id": client_id, **scene.further_members}
                is_interrupted = scene.interrupted and not prompts
                prompts.append(await self._run_prompt(socket, body, interrupt=is_interrupted))
        recording: dict[str, Any] = self.normalize({"greeting": first_messages, "prompts": prompts})
        return recording

    async def send_request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send a request, and return the normalized response."""
        response: dict[str, Any] = self.normalize(await self._call(method, path, body))
        return response

    async def upload(
        self, name: str, content: bytes, path: str = "/upload/image", **fields: str
    ) -> Any:
        """Upload a file, and return the response without the id that only the farm adds.

        Args:
            fields: further fields of the form.
        """
        form = aiohttp.FormData(fields, quote_fields=False)
        form.add_field("image", content, filename=name, content_type="image/png")
        async with self._session.post(path, data=form) as response:
            recording = await _reduce_response(response)
        (recording["body"] or {}).pop("artifact_id", None)
        return self.normalize(recording)

    async def view_file(self, **file: str) -> dict[str, Any]:
        """Return the pixels of a file and the metadata in it."""
        async with self._session.get("/view", params=file) as response:
            if response.status != 200:
                return {"status": response.status}
            recording = {"status": response.status, "type": response.content_type}
            picture = Image.open(BytesIO(await response.read()))
        texts = {name: json.loads(text) for name, text in getattr(picture, "text", {}).items()}
        return {**recording, "picture": _hash_pixels(picture), "texts": texts}

    async def _run_prompt(
        self, socket: aiohttp.ClientWebSocketResponse, body: dict[str, Any], *, interrupt: bool
    ) -> dict[str, Any]:
        recording: dict[str, Any] = {"answer": await self._call("POST", "/prompt", body)}
        prompt_id = (recording["answer"]["body"] or {}).get("prompt_id")
        if prompt_id is None:
            return recording
        events: list[Any] = []
        if interrupt:
            events += await _receive_messages(socket, lambda event: event["type"] == "progress")
            recording["queue"] = await self._read_queue()
            recording["interrupt"] = await self._call(
                "POST", "/interrupt", {"prompt_id": prompt_id}
            )
        events += await _receive_messages(socket, _is_end)
        history_entry = (await self._call("GET", f"/history/{prompt_id}"))["body"][prompt_id]
        history_entry["prompt"] = _name_columns(history_entry["prompt"])
        recording["history"] = history_entry
        recording["files"] = [
            await self.view_file(**file) for file in _list_files(history_entry["outputs"])
        ]
        recording["queue afterwards"] = await self._call("GET", "/queue")
        recording["events"] = _drop_repeated_statuses(events)
        if interrupt:
            _remove_interruption_details(recording)
        return recording

    async def _read_queue(self) -> dict[str, Any]:
        queue = (await self._call("GET", "/queue"))["body"]
        rows_by_name = {name: [_name_columns(row) for row in rows] for name, rows in queue.items()}
        for row in (row for rows in rows_by_name.values() for row in rows):
            # The farm says where the prompt stands.
            row["extra_data"].pop("moyin", None)
        return rows_by_name

    async def _receive_feature_flags(self, socket: aiohttp.ClientWebSocketResponse) -> Any:
        while True:
            event = await socket.receive_json(timeout=_SECONDS)
            if event["type"] == "feature_flags":
                # How large uploads may be is a setting.
                return {**event, "data": {**event["data"], "max_upload_size": "its own"}}

    async def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        async with self._session.request(method, path, json=body) as response:
            return await _reduce_response(response)

    def normalize(self, response_part: Any, member: str = "") -> Any:
        """Return ``response_part`` without ids, times and file locations."""
        if isinstance(response_part, Mapping):
            return {name: self.normalize(item, name) for name, item in response_part.items()}
        if isinstance(response_part, list | tuple):
            items = [self.normalize(item) for item in response_part]
            return sorted(items) if member in _SETS else items
        if member in _MOMENTS:
            return "<moment>"
        if member == "number":
            return "<number>"
        if not isinstance(response_part, str):
            return response_part
        return self._normalize_text(
            _FARM_FOLDER.sub("", response_part) if member == "subfolder" else response_part
        )

    def _normalize_text(self, text: str) -> str:
        for name, content in self._inputs.items():
            # The name under which the farm has put the upload into ComfyUI's input folder.
            text = text.replace(f"moyin/{hashlib.sha256(content).hexdigest()}.png", name)
        text = _COUNTER.sub("_<number>_.", _TEMPORARY.sub("_temp_<id>_", text))
        return _UUID.sub("<id>", _PLACES.sub('File "<folder>/', text))


async def _reduce_response(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return status and body of a response, reduced to the parts that ComfyUI and the farm share.

    ComfyUI's errors have no body, unless they concern a graph. The farm's errors always have a
    body; if they concern a graph, it contains a ``code`` and the ``request_id``, too.
    """
    content = await response.read()
    recording: dict[str, Any] = {"status": response.status, "body": None}
    if response.status >= 400 and response.url.path != "/prompt":
        return recording
    if content:
        recording["type"] = response.content_type
        recording["body"] = json.loads(content)
    if response.status >= 400:
        recording["body"] = {name: recording["body"][name] for name in ("error", "node_errors")}
    return recording


async def _receive_messages(socket: aiohttp.ClientWebSocketResponse, is_last: Any) -> list[Any]:
    """Return the received messages up to the first text message that ``is_last`` accepts.

    A binary message is replaced by a description.
    """
    messages: list[Any] = []
    while True:
        message = await socket.receive(timeout=_SECONDS)
        if message.type is aiohttp.WSMsgType.BINARY:
            messages.append(_reduce_frame(message.data))
            continue
        assert message.type is aiohttp.WSMsgType.TEXT, message
        messages.append(json.loads(message.data))
        if is_last(messages[-1]):
            return messages


def _is_end(event: Mapping[str, Any]) -> bool:
    return event["type"] == "executing" and event["data"]["node"] is None


def _reduce_frame(frame: bytes) -> dict[str, Any]:
    metadata, start = parse_image_metadata(frame)
    start = start if metadata else 8
    picture = _hash_pixels(Image.open(BytesIO(frame[start:])))
    format_hex = "" if metadata else frame[4:8].hex()
    return {
        "type": f"binary {read_frame_type(frame)}",
        "about": metadata,
        "format": format_hex,
        "picture": picture,
    }


def _hash_pixels(picture: Image.Image) -> dict[str, Any]:
    content = hashlib.sha256(picture.tobytes()).hexdigest()
    return {"format": picture.format, "mode": picture.mode, "size": picture.size, "of": content}


def _name_columns(row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_ROW, row, strict=True))


def _list_files(outputs: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    for node in sorted(outputs):
        for items in outputs[node].values():
            yield from (item for item in items if isinstance(item, dict) and "filename" in item)


def _drop_repeated_statuses(events: list[Any]) -> list[Any]:
    """Remove all messages about the length of the queue except the last one.

    ComfyUI sends such a message at every change of the queue. The farm sends one when the client's
    own prompts change, and one with the current length every few seconds.
    """
    statuses = [event for event in events if event["type"] == "status"]
    return [event for event in events if event["type"] != "status" or event is statuses[-1]]


def _remove_interruption_details(recording: dict[str, Any]) -> None:
    """Remove the messages that depend on the moment at which a prompt was interrupted.

    On the farm, the prompt ends as soon as it is cancelled, before ComfyUI reports which node it has
    interrupted.
    """
    recording["events"] = [
        event for event in recording["events"] if "progress" not in event["type"]
    ]
    messages_data = [event["data"] for event in recording["events"]]
    messages_data += [data for _, data in recording["history"]["status"]["messages"]]
    for data in messages_data:
        # The farm says by whom as well.
        for member in ("node_id", "node_type", "executed", "cancelled_by"):
            data.pop(member, None)
    recording["history"]["status"]["messages"] = recording["history"]["status"]["messages"][-1:]
