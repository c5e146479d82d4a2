"""Tests that models with few signals are tried on a share of requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.models.config import ModelsConfig
from deployments.models.fleet import FleetBuilder
from moyin.domain.money import FREE_TARIFF
from moyin.errors import BackendUnavailable
from moyin.settings import Settings
from moyin.testing.backends import FakeBackend
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.catalog import Alias, CachingPolicy
from moyin.text.routing.explanation import Explanation
from moyin.text.routing.router import Router
from tests.unit.text.routing.test_request_quality import (
    FLOOR,
    OPUS,
    PRICE,
    SORT,
    explain_route,
    make_rated_deployment,
    make_router,
)
from tests.unit.text.routing.test_rescue_streams import RecordingLearning

# The bounds of its estimate lie far apart, so that a trial may be worth its cost.
LOCAL = make_rated_deployment("qwen3-14b", "house", tariff=FREE_TARIFF)
DEPLOYMENTS = (OPUS, LOCAL)


def make_exploring_router(*deployments: Any, **rules: Any) -> Router:
    return make_router(
        *(deployments or DEPLOYMENTS), **({"explore": 1.0, "usd_per_bad_answer": 0.03} | rules)
    )


async def send_request(
    router: Router, *headers: tuple[bytes, bytes], model: str = "auto"
) -> tuple[str, str]:
    """Send a request; return the model that answered and the reported route."""
    messages = [{"role": "user", "content": SORT}]
    body = json.dumps({"model": model, "messages": messages}).encode()
    codec = OpenAICodec()
    context = RoutingContext(request_id="r", owner="ada", headers=headers, key_id="k")
    answer = await router.answer(codec, codec.parse(body), context)
    answer_headers = dict(answer.headers)
    return answer_headers[b"x-moyin-model"].decode(), answer_headers[b"x-moyin-route"].decode()


async def test_a_model_that_may_be_better_is_explored_and_the_route_shows_it() -> None:
    model, route = await send_request(make_exploring_router())
    assert model == "qwen3-14b"
    assert route.startswith("trying; qwen3-14b: code, p_good 0.")
    low_bound, _, rest_of_route = route.partition("p_good ")[2].partition(" to ")
    assert float(low_bound) < float(rest_of_route.partition(" against ")[0])
    assert route.endswith(" of claude-opus-5-5")


async def test_no_model_is_tried_without_an_exploration_share() -> None:
    assert (await send_request(make_exploring_router(explore=0.0)))[0] == "claude-opus-5-5"
    assert ModelsConfig().routing.explore == 0.0


async def test_exploration_is_decided_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    router, random_numbers = make_exploring_router(explore=0.25), iter([0.0, 0.249, 0.25, 0.9])
    monkeypatch.setattr("moyin.text.routing.router.random.random", lambda: next(random_numbers))
    models = [(await send_request(router))[0] for _ in range(4)]
    assert models == ["qwen3-14b", "qwen3-14b", "claude-opus-5-5", "claude-opus-5-5"]


@pytest.mark.parametrize(
    ("headers", "rules"),
    [
        (((FLOOR, b"0.1"),), {}),
        (((PRICE, b"0"), (FLOOR, b"0.9")), {}),
        ((), {"aliases": {"auto": Alias(explore=0.0)}}),
        ((), {"aliases": {"auto": Alias(cache=CachingPolicy(ttl=1, max_bytes=1, max_entries=1))}}),
    ],
)
async def test_no_model_is_tried_where_trials_are_not_allowed(
    headers: Any, rules: dict[str, Any]
) -> None:
    router = make_exploring_router(**rules)
    assert (await send_request(router, *headers))[0] == "claude-opus-5-5"
    explanation = explain_route(router, SORT, *headers)
    assert (explanation.explore, explanation.trial) == (0.0, None)


async def test_cost_alone_decides_if_bad_answers_cost_nothing() -> None:
    explanation = explain_route(make_exploring_router(), SORT, (PRICE, b"0"))
    assert (explanation.quality, explanation.explore) == (None, 0.0)


async def test_no_model_is_tried_after_an_unhelpful_answer() -> None:
    class FakeFollowUps:
        def may_match(self, _: Any) -> bool:
            return True

        def detect(self, *_: Any) -> bool:
            return True

        def remember_answer(self, *_: Any) -> None: ...

    router = make_exploring_router()
    router._reviewer._follow_ups = FakeFollowUps()  # type: ignore[assignment]
    router._reviewer._learning = RecordingLearning()  # type: ignore[assignment]
    assert (await send_request(router))[0] == "claude-opus-5-5"


async def test_fallback_after_a_failed_trial_uses_the_lower_bound() -> None:
    worse_deployment = make_rated_deployment("smollm2-135m", "local", tariff=FREE_TARIFF)
    router = make_exploring_router(worse_deployment, *DEPLOYMENTS)
    local_runtime = router.fleet.runtimes["house"]
    local_runtime.backend = local_runtime.pass_through = FakeBackend(
        error=BackendUnavailable("away")
    )
    assert (await send_request(router))[0] == "claude-opus-5-5"


async def test_missing_model_is_not_tried() -> None:
    router = make_exploring_router()
    model_breaker = router.fleet.runtimes["house"].get_model_breaker("x")
    for _ in range(3):
        model_breaker.fail()
    assert (await send_request(router))[0] == "claude-opus-5-5"


def test_explanation_names_the_share_and_the_trial_model() -> None:
    explanation: Explanation = explain_route(make_exploring_router(explore=0.05), SORT)
    assert explanation.explore == 0.05
    assert explanation.trial is not None
    assert explanation.trial.deployment.model.name == "qwen3-14b"
    assert explanation.candidates[0].deployment.model.name == "claude-opus-5-5"


def test_exploration_share_is_configured_and_bounded() -> None:
    config = ModelsConfig.model_validate(
        {"routing": {"explore": 0.05}, "aliases": {"own": {"explore": 0.1}}}
    )
    fleet = FleetBuilder(Settings(), {}).build(config)
    assert (fleet.explore, fleet.catalog.get_alias("own").explore) == (0.05, 0.1)
    for share in (-0.1, 0.6, "often"):
        with pytest.raises(ValidationError, match="explore"):
            ModelsConfig.model_validate({"routing": {"explore": share}})
