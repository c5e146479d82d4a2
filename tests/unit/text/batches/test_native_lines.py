from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
from pydantic_core import to_json

from moyin.domain.text_batch import BatchDialect, TextBatch
from moyin.http.problems import ErrorBody
from moyin.testing.backends import FakeBackend
from moyin.text.backends.batches import RemoteOutcome, RemoteResult
from moyin.text.backends.openai_batches import OpenAIBatches
from moyin.text.batches.native_lines import NativeLines
from moyin.text.routing.catalog import Alias, Catalog
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.router import Router
from tests.unit.text.routing.router_rig import CHEAP, Rig

TOOL = {"name": "find", "input_schema": {"type": "object"}}


def make_batch(endpoint: str = "/v1/messages") -> TextBatch:
    created_at = datetime.now(UTC)
    return TextBatch(
        id="batch_1", owner="ada", dialect=BatchDialect.ANTHROPIC, endpoint=endpoint,
        input_file_id="file-1", created_at=created_at, expires_at=created_at,
    )  # fmt: skip


def make_native_lines(
    *abilities: str, omitted_abilities: frozenset[str] = frozenset()
) -> NativeLines:
    """Return the `NativeLines` of a gateway whose only back end has OpenAI's format.

    Args:
        abilities: what the back end's model supports, such as tools.
        omitted_abilities: the abilities that the alias drops from requests.
    """
    rig = Rig(FakeBackend(), tariff=CHEAP, abilities=abilities)
    rig.runtimes[0].batch_api = OpenAIBatches(cast(Any, None))
    [deployment] = rig.router.fleet.catalog.deployments
    catalog = Catalog(
        deployments=(replace(deployment, batch_tariff=CHEAP),),
        aliases={"chat": Alias(models=("m0",), omitted_abilities=omitted_abilities)},
    )
    fleet = Fleet(catalog=catalog, runtimes={"b0": rig.runtimes[0]})
    router = Router(fleet, rig.ledger, None, rig.telemetry, None)
    return NativeLines(
        router, lambda error, *_: ErrorBody(status=502, headers={}, body=error.code.encode())
    )


def make_body(**changes: Any) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    return to_json({"model": "chat", "max_tokens": 9, "messages": messages, **changes})


def test_line_whose_tools_would_be_omitted_is_not_sent_natively() -> None:
    lines = make_native_lines(omitted_abilities=frozenset({"tools"}))
    assert lines.choose_backend(make_batch(), make_body()) is not None
    assert lines.choose_backend(make_batch(), make_body(tools=[TOOL])) is None
    assert (
        make_native_lines("tools").choose_backend(make_batch(), make_body(tools=[TOOL])) is not None
    )


@pytest.mark.parametrize(("abilities", "is_sent"), [((), False), (("thinking",), True)])
def test_model_without_thinking_gets_no_reasoning_effort(
    abilities: tuple[str, ...], is_sent: bool
) -> None:
    chosen_line = make_native_lines(*abilities).choose_backend(
        make_batch(), make_body(output_config={"effort": "low"})
    )
    assert chosen_line is not None
    assert ("reasoning_effort" in chosen_line[1].body) is is_sent


def test_an_answer_that_the_clients_protocol_cannot_express_is_booked() -> None:
    lines = make_native_lines("tools")
    tool_call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{oh"}}
    response_body = {
        "id": "a", "model": "up",
        "choices": [
            {"message": {"role": "assistant", "tool_calls": [tool_call]}, "finish_reason": "tool_calls"}
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 500},
    }  # fmt: skip
    remote_result = RemoteResult(
        custom_id="x-1", outcome=RemoteOutcome.ANSWERED, body=response_body
    )
    deployment, api = lines.find_deployment("b0", "m0"), lines.get_api("b0")
    assert deployment is not None and api is not None
    decoded_line = lines.decode_result(
        make_batch(), 1, make_body(tools=[TOOL]), remote_result, deployment, api
    )
    assert decoded_line is not None
    result, [usage_entry] = decoded_line
    assert result.error_code is not None and usage_entry.error == result.error_code
    assert not usage_entry.complete
    assert (usage_entry.input_tokens, usage_entry.output_tokens) == (1000, 500)
    assert usage_entry.cost_usd == Decimal("0.002")
