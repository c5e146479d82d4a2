"""Mocks of Anthropic's and OpenAI's APIs with calls, files and batches.

Requests that the SDKs' types do not allow get status 400, and all responses are built with the
SDKs' models.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from anthropic.types import Message
from anthropic.types.messages import (
    DeletedMessageBatch,
    MessageBatch,
    MessageBatchIndividualResponse,
)
from openai.types import Batch, FileObject
from openai.types.chat import ChatCompletion

KEY = "only-for-this-test"
ANSWER = "It is sunny."
# A prompt with this text is answered with an error.
BAD = "make an error"


@dataclass(kw_only=True)
class MockProvider:
    """The part that `MockAnthropic` and `MockOpenAI` share.

    Attributes:
        calls: the bodies of ordinary calls.
        batches: the received batches, by id, with their requests by custom id.
        holds: True to keep all batches running.
        loses_answer: True to break the connection after a batch has been received.
        refuses: the status with which new batches are refused; None to accept them.
        unanswered: the number of requests, at the end of each batch, that get no answer.
    """

    url: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    batches: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    holds: bool = False
    loses_answer: bool = False
    refuses: int | None = None
    unanswered: int = 0
    unanswered_kind: str = "expired"

    @property
    def prompts(self) -> list[str]:
        """Return the prompts of all requests in all batches."""
        return [
            _get_prompt(request)
            for requests in self.batches.values()
            for request in requests.values()
        ]

    def build_app(self) -> web.Application:
        raise NotImplementedError

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        runner = web.AppRunner(self.build_app())
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()

    def _is_over(self, batch_id: str) -> bool:
        return not self.holds or batch_id in self.cancelled

    def _split_ids(self, batch_id: str) -> tuple[list[str], list[str]]:
        """Return the custom ids of a batch that get an answer, and the custom ids that get none."""
        ids = list(self.batches[batch_id])
        answer_count = 0 if batch_id in self.cancelled else len(ids) - self.unanswered
        return ids[:answer_count], ids[answer_count:]

    def _drop_connection(self, request: web.Request) -> None:
        if self.loses_answer:
            self.loses_answer = False
            assert request.transport is not None
            request.transport.abort()


class MockAnthropic(MockProvider):
    """A mock of Anthropic's ``/v1/messages`` and ``/v1/messages/batches``."""

    created: dict[str, datetime]

    def build_app(self) -> web.Application:
        self.created = {}
        app = web.Application(client_max_size=2**28, middlewares=[self._authenticate])
        path = "/v1/messages/batches"
        app.router.add_get("/v1/models", _send_empty_list)
        app.router.add_post("/v1/messages", self._answer_call)
        app.router.add_post(path, self._create_batch)
        app.router.add_get(path, self._list_batches)
        app.router.add_get(path + "/{id}", self._get_batch)
        app.router.add_delete(path + "/{id}", self._delete_object)
        app.router.add_post(path + "/{id}/cancel", self._cancel_batch)
        app.router.add_get(path + "/{id}/results", self._send_results)
        return app

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        keys = (request.headers.get("x-api-key"), request.headers.get("authorization"))
        if keys not in ((KEY, None), (None, f"Bearer {KEY}")):
            return _build_anthropic_error(401, "authentication_error", "invalid x-api-key")
        if request.path != "/v1/models" and "anthropic-version" not in request.headers:
            return _build_anthropic_error(
                400, "invalid_request_error", "anthropic-version is required"
            )
        response: web.StreamResponse = await handler(request)
        return response

    async def _answer_call(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(body)
        if BAD in _get_prompt(body):
            return _build_anthropic_error(400, "invalid_request_error", "it is bad")
        return web.json_response(_build_message(body))

    async def _create_batch(self, request: web.Request) -> web.Response:
        if self.refuses is not None:
            return _build_anthropic_error(self.refuses, "invalid_request_error", "no batches")
        body = await request.json()
        if set(body) != {"requests"} or not body["requests"]:
            return _build_anthropic_error(400, "invalid_request_error", "requests is required")
        requests: dict[str, dict[str, Any]] = {}
        for request_item in body["requests"]:
            custom_id, params = request_item.pop("custom_id"), request_item.pop("params")
            problem = _find_problem(params)
            if request_item or not 1 <= len(custom_id) <= 64 or custom_id in requests or problem:
                return _build_anthropic_error(
                    400, "invalid_request_error", f"{custom_id}: {problem}"
                )
            requests[custom_id] = params
        batch_id = f"msgbatch_{len(self.batches)}"
        self.batches[batch_id] = requests
        self.created[batch_id] = datetime.now(UTC)
        self._drop_connection(request)
        return web.json_response(self._describe_batch(batch_id))

    async def _list_batches(self, request: web.Request) -> web.Response:
        ids = [i for i in reversed(self.batches) if i not in self.deleted]
        if (after_id := request.query.get("after_id")) is not None:
            ids = ids[ids.index(after_id) + 1 :]
        # One on a page, so that paging is tried.
        page = [self._describe_batch(i) for i in ids[:1]]
        return web.json_response(
            {
                "data": page,
                "has_more": len(ids) > 1,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
            }
        )

    async def _get_batch(self, request: web.Request) -> web.Response:
        return self._find_error(request) or web.json_response(
            self._describe_batch(request.match_info["id"])
        )

    async def _cancel_batch(self, request: web.Request) -> web.Response:
        if (error := self._find_error(request)) is not None:
            return error
        self.cancelled.append(request.match_info["id"])
        return web.json_response(self._describe_batch(request.match_info["id"]))

    async def _delete_object(self, request: web.Request) -> web.Response:
        if (error := self._find_error(request)) is not None:
            return error
        batch_id = request.match_info["id"]
        self.deleted.append(batch_id)
        body = DeletedMessageBatch(id=batch_id, type="message_batch_deleted")
        return web.json_response(body.to_dict(mode="json"))

    async def _send_results(self, request: web.Request) -> web.Response:
        if (error := self._find_error(request)) is not None:
            return error
        batch_id = request.match_info["id"]
        if not self._is_over(batch_id):
            return _build_anthropic_error(400, "invalid_request_error", "the batch has not ended")
        answered_ids, unanswered_ids = self._split_ids(batch_id)
        result_type = "canceled" if batch_id in self.cancelled else self.unanswered_kind
        results: dict[str, dict[str, Any]] = {i: {"type": result_type} for i in unanswered_ids}
        for custom_id in answered_ids:
            params = self.batches[batch_id][custom_id]
            if BAD in _get_prompt(params):
                error_body = {"type": "invalid_request_error", "message": "it is bad"}
                results[custom_id] = {
                    "type": "errored",
                    "error": {"type": "error", "error": error_body, "request_id": "req_1"},
                }
            else:
                results[custom_id] = {"type": "succeeded", "message": _build_message(params)}
        lines = [
            MessageBatchIndividualResponse.model_validate(
                {"custom_id": custom_id, "result": result}
            ).to_json(indent=None)
            for custom_id, result in results.items()
        ]
        # Results come in any order.
        return web.Response(text="\n".join(reversed(lines)), content_type="application/x-jsonl")

    def _find_error(self, request: web.Request) -> web.Response | None:
        batch_id = request.match_info["id"]
        if batch_id in self.batches and batch_id not in self.deleted:
            return None
        return _build_anthropic_error(404, "not_found_error", "no such batch")

    def _describe_batch(self, batch_id: str) -> dict[str, Any]:
        is_over = self._is_over(batch_id)
        request_count = len(self.batches[batch_id])
        answered_ids, unanswered_ids = self._split_ids(batch_id) if is_over else ([], [])
        is_cancelled = batch_id in self.cancelled
        created_at = self.created[batch_id]
        batch = MessageBatch(
            id=batch_id,
            type="message_batch",
            processing_status="ended" if is_over else "in_progress",
            request_counts={
                "processing": 0 if is_over else request_count,
                "succeeded": len(answered_ids),
                "errored": 0,
                "canceled": len(unanswered_ids) if is_cancelled else 0,
                "expired": 0 if is_cancelled else len(unanswered_ids),
            },
            created_at=created_at,
            expires_at=created_at + timedelta(days=1),
            ended_at=created_at if is_over else None,
            results_url=f"{self.url}/v1/messages/batches/{batch_id}/results" if is_over else None,
        )
        return batch.to_dict(mode="json")


class MockOpenAI(MockProvider):
    """A mock of OpenAI's ``/v1/chat/completions``, ``/v1/files`` and ``/v1/batches``."""

    files: dict[str, str]
    shown: dict[str, dict[str, Any]]

    def build_app(self) -> web.Application:
        self.files, self.shown = {}, {}
        app = web.Application(client_max_size=2**28, middlewares=[self._authenticate])
        app.router.add_get("/v1/models", _send_empty_list)
        app.router.add_post("/v1/chat/completions", self._answer_call)
        app.router.add_post("/v1/files", self._upload_file)
        app.router.add_get("/v1/files/{id}/content", self._send_content)
        app.router.add_delete("/v1/files/{id}", self._delete_object)
        app.router.add_post("/v1/batches", self._create_batch)
        app.router.add_get("/v1/batches", self._list_batches)
        app.router.add_get("/v1/batches/{id}", self._get_batch)
        app.router.add_post("/v1/batches/{id}/cancel", self._cancel_batch)
        return app

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _build_openai_error(401, "invalid key")
        response: web.StreamResponse = await handler(request)
        return response

    async def _answer_call(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(body)
        if BAD in _get_prompt(body):
            return _build_openai_error(400, "it is bad")
        return web.json_response(_build_completion(body))

    async def _upload_file(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form.get("file")
        if set(form) != {"file", "purpose"} or form["purpose"] != "batch":
            return _build_openai_error(400, "file and purpose are required")
        if not isinstance(file, web.FileField):
            return _build_openai_error(400, "file must be a file")
        file_id, content = f"file-{len(self.files)}", file.file.read()
        self.files[file_id] = content.decode()
        body = FileObject(
            id=file_id, bytes=len(content), created_at=int(time.time()), filename=file.filename,
            object="file", purpose="batch", status="processed",
        )  # fmt: skip
        return web.json_response(body.to_dict(mode="json"))

    async def _send_content(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        if file_id not in self.files or file_id in self.deleted:
            return _build_openai_error(404, "no such file")
        return web.Response(text=self.files[file_id], content_type="application/octet-stream")

    async def _delete_object(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        self.deleted.append(file_id)
        return web.json_response({"id": file_id, "object": "file", "deleted": True})

    async def _create_batch(self, request: web.Request) -> web.Response:
        if self.refuses is not None:
            return _build_openai_error(self.refuses, "no batches")
        body = await request.json()
        if body.get("completion_window") != "24h" or body.get("input_file_id") not in self.files:
            return _build_openai_error(400, "input_file_id and completion_window are required")
        requests: dict[str, dict[str, Any]] = {}
        for line in self.files[body["input_file_id"]].splitlines():
            request_item = json.loads(line)
            if (
                set(request_item) != {"custom_id", "method", "url", "body"}
                or request_item["method"] != "POST"
            ):
                return _build_openai_error(400, "a line has wrong members")
            if request_item["url"] != body["endpoint"] or request_item["custom_id"] in requests:
                return _build_openai_error(400, "a line has a wrong url, or its id is not unique")
            requests[request_item["custom_id"]] = request_item["body"]
        batch_id = f"batch_{len(self.batches)}"
        self.batches[batch_id] = requests
        self.shown[batch_id] = body | {"created_at": int(time.time())}
        self._drop_connection(request)
        return web.json_response(self._describe_batch(batch_id))

    async def _list_batches(self, request: web.Request) -> web.Response:
        ids = list(reversed(self.batches))
        if (after_id := request.query.get("after")) is not None:
            ids = ids[ids.index(after_id) + 1 :]
        page = [self._describe_batch(i) for i in ids[:1]]
        return web.json_response({"object": "list", "data": page, "has_more": len(ids) > 1})

    async def _get_batch(self, request: web.Request) -> web.Response:
        return web.json_response(self._describe_batch(request.match_info["id"]))

    async def _cancel_batch(self, request: web.Request) -> web.Response:
        self.cancelled.append(request.match_info["id"])
        return web.json_response(self._describe_batch(request.match_info["id"]))

    def _describe_batch(self, batch_id: str) -> dict[str, Any]:
        is_over = self._is_over(batch_id)
        body = self.shown[batch_id]
        status = "in_progress"
        files: dict[str, str | None] = {}
        if is_over:
            status = "cancelled" if batch_id in self.cancelled else "completed"
            if self.unanswered and status == "completed":
                status = "expired"
            files = self._write_results(batch_id)
        request_count = len(self.batches[batch_id])
        batch = Batch(
            id=batch_id,
            object="batch",
            endpoint=body["endpoint"],
            input_file_id=body["input_file_id"],
            completion_window="24h",
            status=status,
            created_at=body["created_at"],
            metadata=body.get("metadata"),
            request_counts={"total": request_count, "completed": 0, "failed": 0},
            **files,
        )
        return batch.to_dict(mode="json")

    def _write_results(self, batch_id: str) -> dict[str, str | None]:
        answered_ids, unanswered_ids = self._split_ids(batch_id)
        output_lines: list[dict[str, Any]] = []
        error_lines: list[dict[str, Any]] = []
        for custom_id in answered_ids:
            body = self.batches[batch_id][custom_id]
            is_bad = BAD in _get_prompt(body)
            response = {
                "status_code": 400 if is_bad else 200,
                "request_id": "req_1",
                "body": {"error": {"message": "it is bad"}} if is_bad else _build_completion(body),
            }
            (error_lines if is_bad else output_lines).append(
                {"id": "r", "custom_id": custom_id, "response": response, "error": None}
            )
        code = "batch_cancelled" if batch_id in self.cancelled else "batch_expired"
        for custom_id in unanswered_ids:
            error = {"code": code, "message": "it was not run"}
            error_lines.append(
                {"id": "r", "custom_id": custom_id, "response": None, "error": error}
            )
        files: dict[str, str | None] = {}
        for name, lines in (("output_file_id", output_lines), ("error_file_id", error_lines)):
            if lines:
                files[name] = f"file-{name}-{batch_id}"
                self.files[files[name] or ""] = "\n".join(json.dumps(line) for line in lines)
        return files


async def _send_empty_list(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [], "has_more": False})


def _find_problem(params: Any) -> str | None:
    """Return why Anthropic would refuse a batch request with these ``params``, or None."""
    if not isinstance(params, dict) or params.get("stream"):
        return "params must be an object without stream"
    missing_members = {"model", "max_tokens", "messages"} - set(params)
    return f"{missing_members} are required" if missing_members else None


def _get_prompt(body: Mapping[str, Any]) -> str:
    return json.dumps(body["messages"])


def _build_message(params: Mapping[str, Any]) -> dict[str, Any]:
    message = Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": params["model"],
            "content": [{"type": "text", "text": ANSWER}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1000, "output_tokens": 100},
        }
    )
    return message.to_dict(mode="json")


def _build_completion(body: Mapping[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    completion = ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
            ],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        }
    )
    return completion.to_dict(mode="json")


def _build_anthropic_error(status: int, error_type: str, message: str) -> web.Response:
    body = {
        "type": "error",
        "error": {"type": error_type, "message": message},
        "request_id": "req_1",
    }
    return web.json_response(body, status=status)


def _build_openai_error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=status)
