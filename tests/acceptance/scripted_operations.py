"""A mock back end for moderations, rerankings, speech, transcriptions and pictures.

Like `tests.acceptance.scripted`, it rejects requests that violate OpenAI's own OpenAPI document
with status 400. It checks rerankings by hand, because the document does not contain them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import BodyPartReader, web
from llm_comply.schema import SpecLoader

KEY = "sk-operations"
SPEECH = [b"ID3" + bytes(2000), bytes(4000), b"end"]
TRANSCRIPT = "It is sunny."
PICTURE = "iVBORw0KGgo="
TOKENS = {"input_tokens": 30, "output_tokens": 5, "total_tokens": 35}
_NUMBERS = {"temperature": float, "n": int, "partial_images": int, "output_compression": int}
_FLAGS = {"stream"}
_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual",
    "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


class OperationServer:
    """Serves the operations below ``/v1``.

    Attributes:
        uploads: the files of the last form, by field, with their names and types.
    """

    def __init__(self, spec: SpecLoader) -> None:
        self._spec = spec
        self.uploads: dict[str, list[tuple[str, str, bytes]]] = {}

    def add_routes(self, app: web.Application) -> None:
        handlers = {
            "moderations": self.moderate,
            "rerank": self.rerank,
            "audio/speech": self.speak,
            "audio/transcriptions": self.transcribe,
            "audio/translations": self.translate,
            "images/edits": self.edit_picture,
            "images/variations": self.vary_picture,
        }
        for path, handler in handlers.items():
            app.router.add_post(f"/v1/{path}", handler)

    def _validate(self, body: Mapping[str, Any], schema_name: str) -> None:
        if problems := self._spec.validate(body, schema_name):
            message = f"violates OpenAI's document: {problems[0]}"[:500]
            raise web.HTTPBadRequest(
                text=json.dumps({"error": {"message": message}}), content_type="application/json"
            )

    async def _read_form(self, request: web.Request, schema_name: str) -> dict[str, Any]:
        """Read and validate a form; return its fields with the types in OpenAI's document.

        A file is returned as the text ``file``, and its content is added to ``uploads``.

        Args:
            schema_name: the name of the request's schema in OpenAI's document.
        """
        assert request.content_length is not None
        self.uploads = {}
        body: dict[str, Any] = {}
        async for form_part in await request.multipart():
            assert isinstance(form_part, BodyPartReader) and form_part.name is not None
            name = form_part.name
            if form_part.filename is not None:
                content = bytes(await form_part.read())
                media_type = form_part.headers["content-type"]
                self.uploads.setdefault(name, []).append((form_part.filename, media_type, content))
                field_value: Any = "file"
            else:
                field_value = await form_part.text()
                if (field := name.removesuffix("[]")) in _NUMBERS:
                    field_value = _NUMBERS[field](field_value)
                elif field in _FLAGS:
                    field_value = field_value == "true"
            if name.endswith("[]"):
                # The document names lists of files without, and others with brackets.
                field = name.removesuffix("[]") if form_part.filename else name
                body.setdefault(field, []).append(field_value)
            else:
                assert name not in body, f"the form has the field {name} twice"
                body[name] = field_value
        self._validate(body, schema_name)
        return body

    async def moderate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._validate(body, "CreateModerationRequest")
        inputs = body["input"]
        is_list = isinstance(inputs, list) and isinstance(inputs[0], str)
        moderation = {
            "flagged": "kill" in json.dumps(inputs),
            "categories": dict.fromkeys(_CATEGORIES, False),
            "category_scores": dict.fromkeys(_CATEGORIES, 0.01),
        }
        moderations = [moderation] * (len(inputs) if is_list else 1)
        return web.json_response({"id": "modr-1", "model": body["model"], "results": moderations})

    async def rerank(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body.keys() <= {"model", "query", "documents", "top_n", "return_documents"}, body
        document_texts = [d if isinstance(d, str) else d["text"] for d in body["documents"]]
        query_words = set(body["query"].lower().split())
        scores = [
            len(query_words & set(text.lower().split())) / len(query_words)
            for text in document_texts
        ]
        ranked_indexes = sorted(range(len(document_texts)), key=lambda index: -scores[index])
        rankings = [
            {"index": index, "relevance_score": scores[index]}
            for index in ranked_indexes[: body.get("top_n")]
        ]
        if body["model"] == "cohere-rerank":
            meta = {"billed_units": {"search_units": 3}}
            return web.json_response({"id": "1", "results": rankings, "meta": meta})
        usage = {"prompt_tokens": 40, "total_tokens": 40}
        return web.json_response({"model": body["model"], "usage": usage, "results": rankings})

    async def speak(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        # The document is older than this member.
        stream_format = body.pop("stream_format", "audio")
        self._validate(body, "CreateSpeechRequest")
        if stream_format == "sse":
            events: list[dict[str, Any]] = [
                {"type": "speech.audio.delta", "audio": "SUQz"},
                {"type": "speech.audio.done", "usage": TOKENS},
            ]
            return await _send_events(request, events)
        response = web.StreamResponse(headers={"content-type": "audio/mpeg"})
        await response.prepare(request)
        for chunk in SPEECH:
            await response.write(chunk)
        return response

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        body = await self._read_form(request, "CreateTranscriptionRequest")
        if body.get("stream"):
            events: list[dict[str, Any]] = [
                {"type": "transcript.text.delta", "delta": TRANSCRIPT},
                {
                    "type": "transcript.text.done",
                    "text": TRANSCRIPT,
                    "usage": {"type": "tokens", **TOKENS},
                },
            ]
            return await _send_events(request, events)
        response_format = body.get("response_format", "json")
        if response_format == "verbose_json":
            verbose_members = {
                "task": "transcribe",
                "language": "english",
                "duration": 7.2,
                "segments": [],
            }
            return web.json_response({**verbose_members, "text": TRANSCRIPT})
        if response_format != "json":
            return web.Response(text=f"{TRANSCRIPT}\n")
        usage = {"type": "duration", "seconds": 9}
        return web.json_response({"text": TRANSCRIPT, "usage": usage})

    async def translate(self, request: web.Request) -> web.Response:
        await self._read_form(request, "CreateTranslationRequest")
        return web.json_response({"text": TRANSCRIPT})

    async def edit_picture(self, request: web.Request) -> web.StreamResponse:
        body = await self._read_form(request, "CreateImageEditRequest")
        usage = {**TOKENS, "input_tokens_details": {"text_tokens": 10, "image_tokens": 20}}
        if body.get("stream"):
            common_members = {
                "b64_json": PICTURE,
                "created_at": 1,
                "size": "1024x1024",
                "quality": "high",
            }
            common_members |= {"background": "opaque", "output_format": "png"}
            events: list[dict[str, Any]] = [
                {"type": "image_edit.partial_image", "partial_image_index": 0, **common_members},
                {"type": "image_edit.completed", "usage": usage, **common_members},
            ]
            return await _send_events(request, events)
        pictures = [{"b64_json": PICTURE}] * body.get("n", 1)
        return web.json_response({"created": 1, "data": pictures, "usage": usage})

    async def vary_picture(self, request: web.Request) -> web.Response:
        body = await self._read_form(request, "CreateImageVariationRequest")
        pictures = [{"url": "https://example.com/1.png"}] * body.get("n", 1)
        return web.json_response({"data": pictures})


async def _send_events(request: web.Request, events: list[dict[str, Any]]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    return response


def build_operations_backend(url: str) -> dict[str, Any]:
    """Return the configuration of a back end with a priced model for each operation."""
    speech_abilities = ["transcription", "translation"]
    models = [
        {"name": "omni-moderation-latest", "abilities": ["moderation"], "price": 0},
        {
            "name": "rerank",
            "abilities": ["rerank"],
            "price": {"usd_per_thousand_searches": 2},
        },
        {
            "name": "cohere",
            "upstream": "cohere-rerank",
            "abilities": ["rerank"],
            "price": {"usd_per_thousand_searches": 2},
        },
        {
            "name": "tts",
            "upstream": "tts-1",
            "abilities": ["speech"],
            "price": {"usd_per_million_characters": 15},
        },
        {
            "name": "whisper",
            "upstream": "whisper-1",
            "abilities": speech_abilities,
            "price": {"usd_per_minute": 0.006},
        },
        {
            "name": "gpt-4o-transcribe",
            "abilities": ["transcription"],
            "price": {"input": 6, "output": 10},
        },
        {
            "name": "pictures",
            "upstream": "gpt-image-1",
            "abilities": ["image_edit", "image_variation"],
            "price": {"usd_per_image": 0.04, "input": 5, "output": 40},
        },
    ]
    return {
        "name": "operations",
        "type": "openai",
        "base_url": f"{url}/v1",
        "models": models,
    }
