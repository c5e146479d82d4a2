"""Implements the codec of ``POST /v1/responses``."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingResponse, Image
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.errors import MoyinError
from moyin.http.sse import EVENT_STREAM, encode_cost_comment
from moyin.http.validation import (
    NO_MEMBERS,
    count_text_bytes,
    new_malformed_response_error,
    parse_object,
    validate,
)
from moyin.text.protocol.codec import ParsedRequest, Turn, select_newest_turns
from moyin.text.protocol.documents import NO_FILES, PromptFile
from moyin.text.protocol.responses import wire
from moyin.text.protocol.responses.errors import encode_error_event, render_error
from moyin.text.protocol.responses.request_to_domain import (
    chat_request_to_domain,
    derive_chat_needs,
    iterate_turns_newest_first,
)
from moyin.text.protocol.responses.response import (
    ResponseTemplate,
    chat_response_to_domain,
    new_id,
    usage_to_domain,
)
from moyin.text.protocol.responses.stream import StreamWriter
from moyin.text.protocol.responses.tools import list_tools


@dataclass(slots=True)
class AnswerRecord:
    """Collects the whole answers to a request, so that the one sent to the client can be stored.

    A request has several answers if the first one failed a check, or if calls were hedged.

    Attributes:
        responses: the completely encoded response objects, by id.
        proofs: the ``encrypted_content`` of the responses' reasoning items, by item id.
        writers: the encoders of the streams that were started.
    """

    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    proofs: dict[str, str] = field(default_factory=dict)
    writers: list[StreamWriter] = field(default_factory=list)

    def add(self, response: dict[str, Any], proofs: Mapping[str, str]) -> None:
        """Add a completely encoded response and the proofs of its reasoning."""
        self.responses[response["id"]] = response
        self.proofs.update(proofs)


@dataclass(frozen=True, slots=True)
class ParsedResponseRequest:
    """A validated request; ``data`` is ``raw``, the client's bytes, parsed as JSON.

    Attributes:
        chat: the request as a `ChatRequest`.
        record: collects the answers to the request.
        own_items: the client's own input, without the earlier conversation.
        files: the files that the request references, by id.
    """

    raw: bytes
    data: Mapping[str, Any]
    body: wire.ResponseBody
    chat: ChatRequest
    record: AnswerRecord
    own_items: list[dict[str, Any]]
    files: Mapping[str, PromptFile] = field(default_factory=lambda: NO_FILES)

    @property
    def model(self) -> str:
        return self.body.model

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.stream)

    def derive_needs(self) -> Needs:
        return derive_chat_needs(self.chat)

    def iterate_schemas(self) -> Iterator[tuple[str, Any]]:
        for offered_tool in list_tools(self.body).values():
            tool = offered_tool.tool
            if isinstance(tool, wire.FunctionTool) and tool.parameters is not None:
                yield f"{offered_tool.field}.parameters", tool.parameters
        if self.chat.output is not None and self.chat.output.schema is not None:
            yield "text.format.schema", self.chat.output.schema

    def derive_constraints(self) -> ResponseConstraints:
        output = self.chat.output
        return ResponseConstraints(
            json=output is not None,
            schema=None if output is None else output.schema,
            tools=frozenset(tool.name for tool in self.chat.tools),
        )

    def select_recent_turns(self) -> tuple[Turn, ...]:
        return select_newest_turns(iterate_turns_newest_first(self.chat))

    @property
    def picture_urls(self) -> tuple[str, ...]:
        urls = (image["image_url"] for image in _iterate_url_images(self.data.get("input")))
        return tuple(dict.fromkeys(url for url in urls if not url.startswith("data:")))

    def with_pictures(self, pictures: Mapping[str, Image]) -> ParsedResponseRequest:
        data = {**self.data, "input": _inline_pictures(self.data["input"], pictures)}
        parsed_request = _build_parsed_request(
            to_json(data), data, validate(wire.ResponseBody, data), self.files
        )
        return replace(parsed_request, record=self.record, own_items=self.own_items)

    def to_domain(self, model: str) -> ChatRequest:
        return replace(self.chat, model=model)

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> NoReturn:
        raise AssertionError("to_upstream was called, but no back end accepts Responses requests")

    def create_stream_tap(self, additions: Mapping[str, Any]) -> NoReturn:
        raise AssertionError("create_stream_tap was called, but no back end sends such streams")

    def create_stream_writer(self) -> StreamWriter:
        writer = StreamWriter(self._create_template(), self.record.add)
        self.record.writers.append(writer)
        return writer

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        template = self._create_template()
        output = template.encode_items(response)
        response_object = template.build_ended_response(
            response.model, output, response.usage, response.stop
        )
        self.record.add(response_object, template.proofs)
        return to_json(response_object)

    def render_queued(self, response_id: str) -> dict[str, Any]:
        """Return the queued response object of a background request, before its job answers."""
        template = ResponseTemplate(response_id, int(time.time()), self.body)
        return template.build_started_response(self.model) | {"status": "queued"}

    def _create_template(self) -> ResponseTemplate:
        return ResponseTemplate(new_id("resp"), int(time.time()), self.body)


class ResponsesCodec:
    """The codec of ``POST /v1/responses``.

    Args:
        record: the answers to a streamed request; None for other requests. If the stream breaks,
            the number of its last event is needed to number the event with the error.
    """

    api_format = ApiFormat.RESPONSES
    path = "/responses"
    stream_content_type = EVENT_STREAM
    read_response = staticmethod(chat_response_to_domain)
    render_error = staticmethod(render_error)
    encode_cost_trailer = staticmethod(encode_cost_comment)
    request_fields_by_ability: Mapping[str, tuple[str, ...]] = {
        "tools": ("tools", "tool_choice", "parallel_tool_calls"),
        "thinking": ("reasoning",),
    }

    def __init__(self, record: AnswerRecord | None = None) -> None:
        self._record = record

    def parse(self, body: bytes) -> ParsedResponseRequest:
        return self.parse_continuation(body, parse_object(body), ())

    def parse_continuation(
        self,
        body: bytes,
        data: Mapping[str, Any],
        earlier_items: Sequence[Mapping[str, Any]],
        files: Mapping[str, PromptFile] = NO_FILES,
    ) -> ParsedResponseRequest:
        """Parse a request that continues a conversation.

        Args:
            body: the client's bytes.
            data: ``body`` parsed as JSON.
            earlier_items: the items of the conversation so far.
            files: the files that the request and the earlier items reference, by id.

        Raises:
            InvalidRequest: the body is invalid; the error names the field.
        """
        own_body = validate(wire.ResponseBody, data)
        if not earlier_items:
            return _build_parsed_request(body, data, own_body, files)
        merged_data = {**data, "input": [*earlier_items, *_list_items(data["input"])]}
        return replace(
            _build_parsed_request(
                to_json(merged_data), merged_data, validate(wire.ResponseBody, merged_data), files
            ),
            own_items=_list_items(data["input"]),
        )

    def replace_body(
        self, request: ParsedRequest, data: Mapping[str, Any]
    ) -> ParsedResponseRequest:
        """Return a copy of the request with another body and the same `AnswerRecord`."""
        assert isinstance(request, ParsedResponseRequest)
        body = validate(wire.ResponseBody, data)
        parsed_request = _build_parsed_request(to_json(data), data, body, request.files)
        return replace(parsed_request, record=request.record, own_items=request.own_items)

    def select_forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def read_usage(self, body: Mapping[str, Any]) -> Usage:
        return usage_to_domain(body.get("usage"))

    def count_output_bytes(self, body: Mapping[str, Any]) -> int:
        return count_text_bytes(body.get("output"))

    def require_answer_member(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("output"), list):
            raise new_malformed_response_error()

    def add_missing_members(
        self, raw: bytes, body: dict[str, Any], estimated_usage: Usage | None
    ) -> bytes:
        return raw

    def render_error_event(self, error: MoyinError, request_id: str) -> bytes:
        """Render the event that ends a broken stream, with the next sequence number.

        If the next number is unknown, the event gets the greatest number, because clients only
        sort by it.
        """
        writers = () if self._record is None else self._record.writers
        sequence_number = max(
            (writer.next_number for writer in writers), default=_MAX_SEQUENCE_NUMBER
        )
        return encode_error_event(error, request_id, sequence_number)


def find_response_id(first_bytes: bytes) -> str | None:
    """Return the response id in the first bytes of a response or stream; None if it is missing."""
    match = _ID.search(first_bytes)
    return None if match is None else match[1].decode()


_ID = re.compile(rb'"id":"(resp_[0-9a-f]+)"')
# A sequence number greater than that of any answer's event.
_MAX_SEQUENCE_NUMBER = 2**31 - 1


def _build_parsed_request(
    raw: bytes,
    data: Mapping[str, Any],
    body: wire.ResponseBody,
    files: Mapping[str, PromptFile],
) -> ParsedResponseRequest:
    chat = chat_request_to_domain(body, files)
    items = _list_items(data["input"])
    return ParsedResponseRequest(raw, data, body, chat, AnswerRecord(), items, files)


def _list_items(input_value: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items of a valid ``input``; a string becomes one message of the user."""
    if isinstance(input_value, str):
        content = [{"type": "input_text", "text": input_value}]
        return [{"type": "message", "role": "user", "content": content}]
    return [{"type": "message", **item} for item in input_value]


def _iterate_url_images(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the image parts of the input that have a URL, including those in tool results."""
    for part in content if isinstance(content, list) else ():
        if part.get("type") == "input_image" and isinstance(part.get("image_url"), str):
            yield part
        else:
            yield from _iterate_url_images(part.get("content"))
            yield from _iterate_url_images(part.get("output"))


def _inline_pictures(content: Any, pictures: Mapping[str, Image]) -> Any:
    if not isinstance(content, list):
        return content
    return [_inline_part(part, pictures) for part in content]


def _inline_part(part: dict[str, Any], pictures: Mapping[str, Image]) -> dict[str, Any]:
    if part.get("type") == "input_image":
        picture = pictures.get(part.get("image_url") or "")
        if picture is None:
            return part
        return {**part, "image_url": f"data:{picture.media_type};base64,{picture.data}"}
    nested_parts = {name: part[name] for name in ("content", "output") if name in part}
    return part | {name: _inline_pictures(value, pictures) for name, value in nested_parts.items()}
