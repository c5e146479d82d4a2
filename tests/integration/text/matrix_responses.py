"""Uses OpenAI's SDK with the Responses API as a client of the matrix."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
from openai.types.responses import Response

from tests.integration.text.matrix_features import (
    HISTORY,
    SYSTEM,
    ReceivedAnswer,
    Refused,
    RequestedFeatures,
)
from tests.integration.text.wires.script import SCHEMA


class ResponsesClient:
    """Sends the whole conversation with each request, so that the gateway stores nothing."""

    def __init__(self, sdk: openai.AsyncOpenAI) -> None:
        self._sdk = sdk

    async def send_request(
        self, model: str, features: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        # The Responses API has neither of them.
        if features.stop is not None or features.seed is not None:
            return None
        body: dict[str, Any] = {
            "model": model,
            "input": self._build_input(features),
            "store": False,
        }
        if features.history:
            body["instructions"] = SYSTEM
        if features.tools:
            body["tools"] = [{"type": "function", "name": "weather", "parameters": SCHEMA}]
        if features.forces_tool:
            body["tool_choice"] = "required"
        if features.allows_single_tool_call:
            body["parallel_tool_calls"] = False
        if features.has_schema:
            text_format = {"type": "json_schema", "name": "city", "schema": SCHEMA}
            body["text"] = {"format": text_format}
        if features.wants_json:
            body["text"] = {"format": {"type": "json_object"}}
        if features.thinking:
            body["reasoning"] = {"effort": "low"}
        try:
            if not stream:
                return self._to_answer(await self._sdk.responses.create(**body))
            events = [
                event async for event in await self._sdk.responses.create(**body, stream=True)
            ]
        except openai.APIStatusError as error:
            raise Refused(error.status_code, str(error.code), error.param) from None
        return self._check_stream(events)

    def _build_input(self, features: RequestedFeatures) -> list[Any]:
        items: list[Any] = []
        if features.history:
            items += [{"role": role, "content": text} for role, text in HISTORY]
        content: list[Any] = [{"type": "input_text", "text": features.text}]
        if features.picture is not None:
            url = features.picture
            if isinstance(url, bytes):
                url = f"data:image/png;base64,{base64.b64encode(url).decode()}"
            content.append({"type": "input_image", "image_url": url, "detail": "auto"})
        items.append({"role": "user", "content": content})
        if features.previous_answer is not None:
            items += features.previous_answer.message
            calls = [
                item for item in features.previous_answer.message if item["type"] == "function_call"
            ]
            items += [
                {"type": "function_call_output", "call_id": call["call_id"], "output": result}
                for call, result in zip(calls, features.results, strict=True)
            ]
        return items

    def _check_stream(self, events: list[Any]) -> ReceivedAnswer:
        """Return the final response, which must be consistent with the events before it."""
        answer = self._to_answer(events[-1].response)
        output_items = [
            event.item.to_dict() for event in events if event.type.endswith("output_item.done")
        ]
        assert output_items == answer.message, events
        for event_kind, expected_text in (
            ("output_text", answer.text),
            ("reasoning_summary_text", answer.thinking),
        ):
            deltas = [
                event.delta for event in events if event.type == f"response.{event_kind}.delta"
            ]
            assert "".join(deltas) == expected_text, events
        return answer

    def _to_answer(self, response: Response) -> ReceivedAnswer:
        assert response.usage is not None
        answer = ReceivedAnswer(
            text=response.output_text,
            reason=response.status,
            message=[item.to_dict() for item in response.output],
            prompt=response.usage.input_tokens,
            cached=response.usage.input_tokens_details.cached_tokens,
            output=response.usage.output_tokens,
        )
        for item in response.output:
            if item.type == "reasoning":
                answer.thinking += "".join(part.text for part in item.summary)
            elif item.type == "function_call":
                answer.calls.append((item.name, json.loads(item.arguments)))
        return answer
