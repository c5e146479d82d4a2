"""Calls `litellm.responses`, whole and streamed, with a tool and with a continued conversation."""

from __future__ import annotations

import json
import os
import sys

# Otherwise it fetches its price list.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

base_url, api_key, model = sys.argv[1:]
place = {"model": f"openai/{model}", "api_base": base_url, "api_key": api_key}
weather = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
whole = litellm.responses(input="Say hello.", instructions="Be kind.", **place)
events = list(litellm.responses(input="Say hello.", stream=True, **place))
asked = litellm.responses(input="What is the weather in 'Paris'?", tools=[weather], **place)
[call] = [item for item in asked.output if item.type == "function_call"]
result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
answer = litellm.responses(input=[result], tools=[weather], previous_response_id=asked.id, **place)
found = {
    "whole": whole.output[0].content[0].text,
    "streamed": "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    ),
    "last": events[-1].type,
    "arguments": call.arguments,
    "answer": answer.output[0].content[0].text,
}
print(json.dumps(found))
