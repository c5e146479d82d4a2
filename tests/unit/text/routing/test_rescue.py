"""Tests that an answer which fails a check is replaced by that of the next better model."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic_core import from_json

from deployments.models.config import ModelsConfig
from moyin.domain.backend import ApiFormat
from moyin.errors import BackendUnavailable
from moyin.testing.backends import FakeBackend, make_text_response
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.catalog import Alias, Catalog, RescuePolicy
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.router import Router
from tests.unit.text.routing.factories import make_runtime
from tests.unit.text.routing.router_rig import RecordedLedger
from tests.unit.text.routing.test_request_quality import HAIKU, SMALL

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
BAD, GOOD = "Sure! Here it is.", '{"ok": true}'


class FakeBudget:
    limits_spending = True

    def __init__(self) -> None:
        self.reserved, self.spent = Decimal(0), Decimal(0)

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        self.reserved = usd

    def record(self, usd: Decimal, tokens: int) -> None:
        self.spent += usd


class RescueGateway:
    """A gateway whose small model answers first; Claude, the better model, replaces bad answers."""

    def __init__(self, first_answer: str = BAD, second_answer: str = GOOD, **rules: Any) -> None:
        # Formats that no client here speaks, so that every answer is translated.
        self.small = FakeBackend(make_text_response(first_answer), api_format=ApiFormat.OLLAMA)
        self.claude = FakeBackend(make_text_response(second_answer), api_format=ApiFormat.OLLAMA)
        self.ledger = RecordedLedger()
        runtimes = {
            "local": make_runtime("local", self.small),
            "claude": make_runtime("claude", self.claude),
        }
        for backend_runtime in runtimes.values():
            backend_runtime.pass_through = None
        catalog = Catalog(deployments=(SMALL, HAIKU), aliases=rules.pop("aliases", {}))
        rules = {"usd_per_bad_answer": 1e-9, "rescue": RescuePolicy.CHECKED, **rules}
        fleet = Fleet(catalog=catalog, runtimes=runtimes, **rules)
        self.router = Router(fleet, self.ledger, estimator=Estimator())

    async def ask(
        self, codec: ProtocolCodec | None = None, budget: Any = None, **changes: Any
    ) -> tuple[str, str, Answer]:
        """Send a request, and return the model, the route and the answer.

        Args:
            codec: the client's protocol, by default OpenAI's.
            changes: other members of the request's body; None removes a member.
        """
        codec = codec or OpenAICodec()
        messages = [{"role": "user", "content": "Write merge sort in Go"}]
        body = {"model": "auto", "max_tokens": 50, "messages": messages, **changes}
        body = {name: value for name, value in body.items() if value is not None}
        parsed_request = codec.parse(json.dumps(body).encode())
        context = RoutingContext(request_id="r1", owner="ada", headers=(), budget=budget)
        answer = await self.router.answer(codec, parsed_request, context)
        headers = dict(answer.headers)
        return headers[b"x-moyin-model"].decode(), headers[b"x-moyin-route"].decode(), answer


async def test_answer_violating_its_schema_is_rescued_and_both_calls_are_recorded() -> None:
    gateway = RescueGateway()
    model, route, answer = await gateway.ask(response_format=FORMAT)
    assert model == "claude-haiku-5-5"
    assert route.startswith("rescue after json; claude-haiku-5-5: code, p_good 0.")
    assert route.endswith(" of smollm2-135m")
    assert from_json(answer.body)["choices"][0]["message"]["content"] == GOOD
    assert [(entry.model, entry.complete) for entry in gateway.ledger] == [
        ("smollm2-135m", True),
        ("claude-haiku-5-5", True),
    ]


async def test_good_answer_is_not_replaced() -> None:
    gateway = RescueGateway(first_answer=GOOD)
    model, route, _ = await gateway.ask(response_format=FORMAT)
    assert (model, route.partition(";")[0]) == ("smollm2-135m", "free")
    assert gateway.claude.requests == []


@pytest.mark.parametrize(
    ("policy", "has_format", "first_answer", "is_rescued"),
    [
        (RescuePolicy.OFF, True, BAD, False),
        (RescuePolicy.SCHEMA, True, BAD, True),
        (RescuePolicy.SCHEMA, False, "", False),
        (RescuePolicy.CHECKED, False, "", True),
        (RescuePolicy.CHECKED, False, BAD, False),
    ],
)
async def test_rescue_policy_decides_which_faults_are_rescued(
    policy: RescuePolicy, has_format: bool, first_answer: str, is_rescued: bool
) -> None:
    gateway = RescueGateway(
        first_answer=first_answer, rescue=RescuePolicy.OFF, aliases={"own": Alias(rescue=policy)}
    )
    members: dict[str, Any] = {"response_format": FORMAT} if has_format else {}
    model, _, _ = await gateway.ask(model="own", **members)
    assert (model == "claude-haiku-5-5") is is_rescued


@pytest.mark.parametrize(
    ("codec", "changes"),
    [
        (
            AnthropicCodec(),
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        (OllamaChatCodec(), {"max_tokens": None, "stream": False, "format": SCHEMA}),
        (
            OllamaGenerateCodec(),
            {
                "max_tokens": None,
                "messages": None,
                "stream": False,
                "format": "json",
                "prompt": "p",
            },
        ),
    ],
)
async def test_rescue_works_in_every_protocol(
    codec: ProtocolCodec, changes: dict[str, Any]
) -> None:
    model, route, _ = await RescueGateway().ask(codec, **changes)
    assert (model, route.partition(";")[0]) == ("claude-haiku-5-5", "rescue after json")


async def test_first_answer_is_kept_when_the_better_model_fails() -> None:
    gateway = RescueGateway()
    gateway.claude.error = BackendUnavailable("away")
    model, _, answer = await gateway.ask(response_format=FORMAT)
    assert model == "smollm2-135m"
    assert from_json(answer.body)["choices"][0]["message"]["content"] == BAD


async def test_named_models_are_not_rescued() -> None:
    gateway = RescueGateway()
    model, _, _ = await gateway.ask(response_format=FORMAT, model="smollm2-135m")
    assert model == "smollm2-135m"
    assert gateway.claude.requests == []


async def test_both_answers_stay_within_the_reservation() -> None:
    budget = FakeBudget()
    gateway = RescueGateway()
    assert (await gateway.ask(budget=budget, response_format=FORMAT))[0] == "claude-haiku-5-5"
    assert 0 < budget.spent <= budget.reserved


async def test_answer_without_time_left_is_not_rescued() -> None:
    gateway = RescueGateway(timeout=1.0)
    model, _, _ = await gateway.ask(response_format=FORMAT)
    assert model == "smollm2-135m"


def test_unquoted_off_is_valid_in_yaml() -> None:
    config = ModelsConfig.model_validate({"routing": {"rescue": False}, "aliases": {}})
    assert config.routing.rescue is RescuePolicy.OFF
    assert ModelsConfig.model_validate({}).routing.rescue is RescuePolicy.CHECKED
