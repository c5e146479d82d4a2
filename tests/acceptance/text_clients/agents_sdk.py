"""Checks openai-agents with its default model class, which uses the Responses API."""

from __future__ import annotations

import asyncio
import json
import sys

from agents import Agent, Runner, function_tool
from checking import run_page_snippet
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


async def main(url: str, key: str, model: str) -> None:
    plain_agent = run_page_snippet("openai_agents", url, key, model)["agent"]
    hello_run = await Runner.run(plain_agent, "Say hello.")
    agent = Agent(name="forecaster", instructions="Be kind.", model=model, tools=[weather])
    tool_run = await Runner.run(agent, "What is the weather in 'Paris'?")
    streamed_run = Runner.run_streamed(agent, "What is the weather in 'Paris'?")
    event_types = {event.type async for event in streamed_run.stream_events()}
    continued_run = await Runner.run(
        agent, "And now?", previous_response_id=tool_run.last_response_id
    )
    typed_agent = Agent(name="reader", model=model, output_type=Person)
    typed_run = await Runner.run(typed_agent, "The person 'Ada' is 36 years old.")
    first_agent = Agent(name="first", model=model, handoffs=[Agent(name="second", model=model)])
    handoff_run = await Runner.run(first_agent, "Say hello.")
    tool_outputs = [
        item.output for item in tool_run.new_items if item.type == "tool_call_output_item"
    ]
    summary = {
        "hello": hello_run.final_output,
        "results": tool_outputs,
        "answer": tool_run.final_output,
        "streamed": streamed_run.final_output,
        "kinds": sorted(event_types),
        "continued": continued_run.final_output,
        "person": typed_run.final_output.model_dump(),
        "last_agent": handoff_run.last_agent.name,
    }
    print(json.dumps(summary))


asyncio.run(main(*sys.argv[1:]))
