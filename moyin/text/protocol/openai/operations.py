"""Defines the router's interface to requests for moderations, rerankings, speech and pictures.

Requests with JSON bodies are implemented here: moderations, rerankings and speech. Requests with
files are in `uploads`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeGuard

from pydantic import Field, field_validator
from pydantic_core import to_json

from moyin.domain.money import Usage
from moyin.domain.needs import count_utf8_bytes
from moyin.domain.operation import Operation, OperationUsage
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.http.validation import (
    WireModel,
    new_malformed_response_error,
    parse_object,
    parse_token_count,
    validate,
)

JSON_TYPE = "application/json"
EVENT_STREAM_TYPE = "text/event-stream"
# The name that lets the router choose a model.
_AUTO = "auto"
# Cohere bills a longer document as several ones, and a hundred documents as one search.
_TOKENS_PER_DOCUMENT = 500
_DOCUMENTS_PER_SEARCH = 100
# Upper bound of the audio tokens that a model writes per character, even in slow speech.
_MAX_TOKENS_PER_CHARACTER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class UpstreamBody:
    """The body of a request to a back end.

    Attributes:
        get_content: returns an iterator over the bytes; each attempt calls it again.
        length: the size in bytes.
    """

    content_type: str
    get_content: Callable[[], bytes | AsyncIterable[bytes]]
    length: int


class OperationRequest(Protocol):
    """A validated request of an operation, which is a call such as speech or a moderation.

    Attributes:
        path: the path of the call below a back end's base URL.
    """

    operation: ClassVar[Operation]
    path: ClassVar[str]

    @property
    def model(self) -> str:
        """The name that the client requested; ``auto`` if it requested none."""

    @property
    def expected_usage(self) -> OperationUsage:
        """The usage (units and tokens) as estimated from the request alone."""

    @property
    def max_usage(self) -> OperationUsage:
        """The highest possible usage (units and tokens), for which money is reserved."""

    def to_upstream(self, model: str) -> UpstreamBody:
        """Encode the request with the back end's name of the model."""

    def accepts(self, media_type: str) -> bool:
        """Return True if a successful response may have this media type."""

    def read_usage(self, data: Mapping[str, Any] | None) -> OperationUsage:
        """Return the usage that a response reports, or else `expected_usage`.

        Args:
            data: a JSON response, or the last event of a stream; None for other media types.
        """

    def complete_response(self, raw: bytes, data: dict[str, Any], request_id: str) -> bytes:
        """Return a JSON response with the members that the vendor's API reference requires.

        Args:
            raw: the response, which is returned unchanged if no member is missing.
            data: the parsed response.
            request_id: the id of the request, used if the response lacks an id.

        Raises:
            BackendUnavailable: the response lacks the member that holds the answer.
        """


def add_members(raw: bytes, data: Mapping[str, Any], members: Mapping[str, Any]) -> bytes:
    """Return a JSON object as bytes, after adding those ``members`` that it lacks.

    Args:
        raw: the object as bytes, which is returned if nothing is missing.
        data: the parsed object.
    """
    missing_members = {name: value for name, value in members.items() if data.get(name) is None}
    return to_json({**data, **missing_members}) if missing_members else raw


def read_token_usage(data: Mapping[str, Any] | None) -> Usage:
    """Return the token counts that a response reports; zero counts if it reports none.

    The response may have the format of OpenAI or of another vendor.
    """
    usage = (data or {}).get("usage")
    if not isinstance(usage, Mapping):
        return Usage()
    input_tokens = parse_token_count(usage.get("input_tokens", usage.get("prompt_tokens")))
    output_tokens = parse_token_count(usage.get("output_tokens", usage.get("completion_tokens")))
    # Servers that only rerank report only the total.
    return Usage(
        input_tokens=input_tokens
        or max(parse_token_count(usage.get("total_tokens")) - output_tokens, 0),
        output_tokens=output_tokens,
    )


class _JsonRequest(WireModel):
    """Base of requests with a JSON body."""

    model: str = Field(_AUTO, min_length=1, max_length=256)

    def to_upstream(self, model: str) -> UpstreamBody:
        body = to_json({**self.model_dump(exclude_unset=True, by_alias=True), "model": model})
        return UpstreamBody(content_type=JSON_TYPE, get_content=lambda: body, length=len(body))

    def accepts(self, media_type: str) -> bool:
        return media_type == JSON_TYPE


class _PictureUrl(WireModel):
    url: str


class _ModerationPart(WireModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: _PictureUrl | None = None


class ModerationBody(_JsonRequest):
    """The body of ``POST /v1/moderations``; without ``model`` the router chooses one."""

    operation: ClassVar = Operation.MODERATION
    path: ClassVar = "/moderations"

    input: str | list[str] | list[_ModerationPart] = Field(min_length=1)

    @field_validator("model", mode="before")
    @classmethod
    def _expand_null(cls, model: Any) -> Any:
        return _AUTO if model is None else model

    @property
    def expected_usage(self) -> OperationUsage:
        has_texts = isinstance(self.input, list) and isinstance(self.input[0], str)
        return OperationUsage(quantity=len(self.input) if has_texts else 1)

    @property
    def max_usage(self) -> OperationUsage:
        token_usage = Usage(input_tokens=len(to_json(self.input)))
        return OperationUsage(quantity=self.expected_usage.quantity, tokens=token_usage)

    def read_usage(self, data: Mapping[str, Any] | None) -> OperationUsage:
        return OperationUsage(quantity=self.expected_usage.quantity, tokens=read_token_usage(data))

    def complete_response(self, raw: bytes, data: dict[str, Any], request_id: str) -> bytes:
        results = data.get("results")
        if not _is_list_of_objects(results):
            raise new_malformed_response_error()
        incomplete_results = [
            result
            for result in results
            if isinstance(result.get("categories"), Mapping)
            and result.get("category_applied_input_types") is None
        ]
        for result in incomplete_results:
            types = {category: ["text"] for category in result["categories"]}
            result["category_applied_input_types"] = types
        if incomplete_results:
            raw = to_json(data)
        return add_members(raw, data, {"id": f"modr-{request_id}", "model": self.model})


class _Document(WireModel):
    text: str


class RerankBody(_JsonRequest):
    """The body of ``POST /v1/rerank``, in the format of Cohere and Jina.

    Attributes:
        top_n: the maximum number of results; None for all documents.
        return_documents: True if the results contain the documents.
    """

    operation: ClassVar = Operation.RERANK
    path: ClassVar = "/rerank"

    query: str = Field(min_length=1)
    documents: list[str | _Document] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None

    def check_documents(self) -> None:
        """Reject documents with members other than ``text``, such as the URL of a picture.

        Raises:
            UnsupportedFeature: a document has another member than ``text``.
        """
        for number, document in enumerate(self.documents):
            if isinstance(document, _Document) and document.extras:
                field = f"documents.{number}.{next(iter(document.extras))}"[:128]
                raise UnsupportedFeature(
                    f"{field} is not supported: a document must be a string or have only 'text'",
                    field=field,
                )

    @property
    def expected_usage(self) -> OperationUsage:
        return OperationUsage(quantity=-(-len(self.documents) // _DOCUMENTS_PER_SEARCH))

    @property
    def max_usage(self) -> OperationUsage:
        # A token has at least one byte, and each part of a long document is sent with the query.
        query_bytes = count_utf8_bytes(self.query)
        sizes = [
            count_utf8_bytes(document if isinstance(document, str) else document.text)
            for document in self.documents
        ]
        part_count = sum(1 + size // _TOKENS_PER_DOCUMENT for size in sizes)
        return OperationUsage(
            quantity=-(-part_count // _DOCUMENTS_PER_SEARCH),
            tokens=Usage(input_tokens=sum(sizes) + part_count * query_bytes),
        )

    def read_usage(self, data: Mapping[str, Any] | None) -> OperationUsage:
        token_usage, quantity = read_token_usage(data), self.expected_usage.quantity
        meta = (data or {}).get("meta")
        billed_units = meta.get("billed_units") if isinstance(meta, Mapping) else None
        if isinstance(billed_units, Mapping):
            # Cohere's SDKs type the number as a float.
            search_count = billed_units.get("search_units")
            if isinstance(search_count, int | float) and 0 < search_count < 1e9:
                quantity = -int(-search_count // 1)
            if token_usage == Usage():
                token_usage = read_token_usage({"usage": billed_units})
        return OperationUsage(quantity=quantity, tokens=token_usage)

    def complete_response(self, raw: bytes, data: dict[str, Any], request_id: str) -> bytes:
        results = data.get("results")
        if not _is_list_of_objects(results) or not all(map(self._is_result, results)):
            raise new_malformed_response_error()
        incomplete_results = [result for result in results if result.get("document") is None]
        if self.return_documents and incomplete_results:
            for result in incomplete_results:
                document = self.documents[result["index"]]
                text = document if isinstance(document, str) else document.text
                result["document"] = {"text": text}
            raw = to_json(data)
        return add_members(raw, data, {"id": f"rerank-{request_id}", "model": self.model})

    def _is_result(self, result: Mapping[str, Any]) -> bool:
        index, score = result.get("index"), result.get("relevance_score")
        return (
            isinstance(index, int)
            and 0 <= index < len(self.documents)
            and isinstance(score, int | float)
        )


class SpeechBody(_JsonRequest):
    """The body of ``POST /v1/audio/speech``.

    Attributes:
        voice: the name of a voice; OpenAI also accepts an object with the id of a custom voice.
        stream_format: ``audio``, the default, for bytes of audio, or ``sse`` for events.
    """

    operation: ClassVar = Operation.SPEECH
    path: ClassVar = "/audio/speech"

    model: str = Field(min_length=1, max_length=256)
    input: str = Field(min_length=1, max_length=1_000_000)
    voice: str | dict[str, Any] | None = None
    response_format: str | None = None
    speed: float | None = Field(None, ge=0.25, le=4)
    stream_format: Literal["audio", "sse"] | None = None

    def accepts(self, media_type: str) -> bool:
        if self.stream_format == "sse":
            return media_type == EVENT_STREAM_TYPE
        # Some servers send no media type or a generic one instead of an audio type.
        return media_type not in (JSON_TYPE, EVENT_STREAM_TYPE, "text/html", "text/plain")

    @property
    def expected_usage(self) -> OperationUsage:
        return OperationUsage(quantity=len(self.input))

    @property
    def max_usage(self) -> OperationUsage:
        character_count = len(self.input)
        instructions = self.extras.get("instructions")
        input_bytes = count_utf8_bytes(f"{self.input}{instructions or ''}")
        token_usage = Usage(
            input_tokens=input_bytes,
            output_tokens=_MAX_TOKENS_PER_CHARACTER * character_count + 1_000,
        )
        return OperationUsage(quantity=character_count, tokens=token_usage)

    def read_usage(self, data: Mapping[str, Any] | None) -> OperationUsage:
        return OperationUsage(quantity=len(self.input), tokens=read_token_usage(data))

    def complete_response(self, raw: bytes, data: dict[str, Any], request_id: str) -> bytes:
        raise AssertionError(
            "SpeechBody.complete_response was called, but speech is never answered in JSON"
        )


def parse_moderation(body: bytes) -> ModerationBody:
    """Parse and validate a request for moderations.

    Raises:
        InvalidJson, InvalidRequest: the body is invalid; the error names the field.
        UnsupportedFeature: a picture is given by URL.
    """
    moderation_body = validate(ModerationBody, parse_object(body))
    for number, part in enumerate(
        moderation_body.input if isinstance(moderation_body.input, list) else ()
    ):
        if not isinstance(part, _ModerationPart):
            continue
        field = f"input.{number}.{part.type}"
        if getattr(part, part.type) is None:
            raise InvalidRequest(f"{field}: Field required", field=field)
        if part.image_url is not None and not part.image_url.url.startswith("data:"):
            # A server in our network would fetch any URL, including internal ones.
            raise UnsupportedFeature(
                f"{field}.url: URLs of pictures are not fetched; send the picture as a base64 `data:` URL",
                field=f"{field}.url",
            )
    return moderation_body


def parse_rerank(body: bytes) -> RerankBody:
    """Parse and validate a request for a reranking.

    Raises:
        InvalidJson, InvalidRequest: the body is invalid; the error names the field.
        UnsupportedFeature: a document has another member than ``text``.
    """
    rerank_body = validate(RerankBody, parse_object(body))
    rerank_body.check_documents()
    return rerank_body


def parse_speech(body: bytes) -> SpeechBody:
    """Parse and validate a request for speech.

    Raises:
        InvalidJson, InvalidRequest: the body is invalid; the error names the field.
    """
    return validate(SpeechBody, parse_object(body))


def complete_images(raw: bytes, data: dict[str, Any]) -> bytes:
    """Add the members that OpenAI's API reference requires to a response that contains pictures.

    Raises:
        BackendUnavailable: the response has no pictures.
    """
    if not _is_list_of_objects(data.get("data")) or not data["data"]:
        raise new_malformed_response_error()
    usage = data.get("usage")
    if isinstance(usage, dict) and not isinstance(usage.get("input_tokens_details"), dict):
        input_tokens = parse_token_count(usage.get("input_tokens"))
        usage["input_tokens_details"] = {"image_tokens": 0, "text_tokens": input_tokens}
        raw = to_json(data)
    return add_members(raw, data, {"created": int(time.time())})


def _is_list_of_objects(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
