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
    """Keeps the conversation itself: it sends all items, and stores nothing on the gateway."""

    def __init__(self, sdk: openai.AsyncOpenAI) -> None:
        self._sdk = sdk

    async def ask(
        self, model: str, wish: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        # The Responses API has neither of them.
        if wish.stop is not None or wish.seed is not None:
            return None
        body: dict[str, Any] = {"model": model, "input": self._items(wish), "store": False}
        if wish.history:
            body["instructions"] = SYSTEM
        if wish.tools:
            body["tools"] = [{"type": "function", "name": "weather", "parameters": SCHEMA}]
        if wish.forced:
            body["tool_choice"] = "required"
        if wish.single:
            body["parallel_tool_calls"] = False
        if wish.schema:
            form = {"type": "json_schema", "name": "city", "schema": SCHEMA}
            body["text"] = {"format": form}
        if wish.json:
            body["text"] = {"format": {"type": "json_object"}}
        if wish.thinking:
            body["reasoning"] = {"effort": "low"}
        try:
            if not stream:
                return self._heard(await self._sdk.responses.create(**body))
            events = [
                event async for event in await self._sdk.responses.create(**body, stream=True)
            ]
        except openai.APIStatusError as error:
            raise Refused(error.status_code, str(error.code), error.param) from None
        return self._streamed(events)

    def _items(self, wish: RequestedFeatures) -> list[Any]:
        items: list[Any] = []
        if wish.history:
            items += [{"role": role, "content": text} for role, text in HISTORY]
        content: list[Any] = [{"type": "input_text", "text": wish.text}]
        if wish.picture is not None:
            url = wish.picture
            if isinstance(url, bytes):
                url = f"data:image/png;base64,{base64.b64encode(url).decode()}"
            content.append({"type": "input_image", "image_url": url, "detail": "auto"})
        items.append({"role": "user", "content": content})
        if wish.heard is not None:
            items += wish.heard.said
            calls = [item for item in wish.heard.said if item["type"] == "function_call"]
            items += [
                {"type": "function_call_output", "call_id": call["call_id"], "output": result}
                for call, result in zip(calls, wish.results, strict=True)
            ]
        return items

    def _streamed(self, events: list[Any]) -> ReceivedAnswer:
        """Return the final response, which must be consistent with the events before it."""
        heard = self._heard(events[-1].response)
        made = [event.item.to_dict() for event in events if event.type.endswith("output_item.done")]
        assert made == heard.said, events
        for kind, text in (("output_text", heard.text), ("reasoning_summary_text", heard.thinking)):
            deltas = [event.delta for event in events if event.type == f"response.{kind}.delta"]
            assert "".join(deltas) == text, events
        return heard

    def _heard(self, response: Response) -> ReceivedAnswer:
        assert response.usage is not None
        heard = ReceivedAnswer(
            text=response.output_text,
            reason=response.status,
            said=[item.to_dict() for item in response.output],
            prompt=response.usage.input_tokens,
            cached=response.usage.input_tokens_details.cached_tokens,
            output=response.usage.output_tokens,
        )
        for item in response.output:
            if item.type == "reasoning":
                heard.thinking += "".join(part.text for part in item.summary)
            elif item.type == "function_call":
                heard.calls.append((item.name, json.loads(item.arguments)))
        return heard
