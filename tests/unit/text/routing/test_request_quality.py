"""Tests when quality affects the choice of a model, what clients may set, and what is reported."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moyin.domain.money import FREE_TARIFF
from moyin.errors import InvalidRequest, QualityUnreachable, ServiceUnavailable
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.quality.abilities import look_up_ability
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.catalog import Alias, Catalog, ModelDeployment, TenantPolicy
from moyin.text.routing.claude_prices import CLAUDE_TARIFFS
from moyin.text.routing.explanation import Explanation, explain_loss
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.request_preferences import parse_preferences
from moyin.text.routing.router import Router
from tests.unit.text.routing.factories import make_deployment, make_runtime
from tests.unit.text.routing.router_rig import RecordedLedger

SORT, HELLO = "Write merge sort in Go", "Say hello"
FLOOR, PRICE = b"x-moyin-quality", b"x-moyin-usd-per-bad-answer"


def make_rated_deployment(name: str, backend: str, **kwargs: Any) -> ModelDeployment:
    deployment = make_deployment(backend, model=name, context=200_000, **kwargs)
    fields = {field: getattr(deployment, field) for field in ModelDeployment.__dataclass_fields__}
    return ModelDeployment(**{**fields, "ability": look_up_ability(name)})


SMALL = make_rated_deployment("smollm2-135m", "local", tariff=FREE_TARIFF)
HAIKU = make_rated_deployment(
    "claude-haiku-5-5", "claude", tariff=CLAUDE_TARIFFS["claude-haiku-5-5"]
)
OPUS = make_rated_deployment("claude-opus-5-5", "claude", tariff=CLAUDE_TARIFFS["claude-opus-5-5"])


def make_router(*deployments: ModelDeployment, **rules: Any) -> Router:
    runtimes = {
        name: make_runtime(name) for name in {deployment.backend for deployment in deployments}
    }
    catalog = Catalog(deployments=deployments, aliases=rules.pop("aliases", {}))
    fleet = Fleet(catalog=catalog, runtimes=runtimes, **({"usd_per_bad_answer": 0.003} | rules))
    return Router(fleet, RecordedLedger(), estimator=Estimator())


def explain_route(
    router: Router, prompt: str, *headers: tuple[bytes, bytes], model: str = "auto"
) -> Explanation:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    codec = OpenAICodec()
    context = RoutingContext(request_id="r", owner="ada", headers=headers)
    return router.explain(codec, codec.parse(json.dumps(body).encode()), context)


def choose_model(*arguments: Any, **kwargs: Any) -> str:
    return explain_route(*arguments, **kwargs).candidates[0].deployment.model.name


def test_hard_work_goes_to_the_better_model_and_easy_work_stays() -> None:
    two_model_router = make_router(SMALL, HAIKU)
    assert choose_model(two_model_router, SORT) == "claude-haiku-5-5"
    assert choose_model(two_model_router, HELLO) == "smollm2-135m"


def test_text_is_not_read_without_a_price_of_bad_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_on_read(*_: object, **__: object) -> None:
        raise AssertionError("the text was read")

    monkeypatch.setattr("moyin.text.routing.request_quality.build_question", fail_on_read)
    two_model_router = make_router(SMALL, HAIKU, usd_per_bad_answer=0.0)
    assert choose_model(two_model_router, SORT) == "smollm2-135m"
    with pytest.raises(AssertionError):
        explain_route(make_router(SMALL, HAIKU), SORT)


async def test_single_candidate_needs_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moyin.text.routing.request_quality.build_question", None)
    two_model_router = make_router(SMALL, HAIKU)
    two_model_router.fleet.runtimes["claude"].is_up = False
    codec = OpenAICodec()
    body = {"model": "auto", "messages": [{"role": "user", "content": SORT}]}
    context = RoutingContext(request_id="r", owner="ada", headers=())
    answer = await two_model_router.answer(codec, codec.parse(json.dumps(body).encode()), context)
    assert dict(answer.headers)[b"x-moyin-route"] == b"free"


def test_model_name_selects_that_model() -> None:
    router_of_hosts = make_router(
        SMALL, make_rated_deployment("smollm2-135m", "other", tariff=FREE_TARIFF), HAIKU
    )
    explanation = explain_route(
        router_of_hosts, SORT, (FLOOR, b"0.99"), (PRICE, b"5"), model="smollm2-135m"
    )
    assert explanation.quality is None
    assert [candidate.deployment.backend for candidate in explanation.candidates] == [
        "local",
        "other",
    ]
    assert all(
        candidate.forecast and candidate.forecast.estimate is None
        for candidate in explanation.candidates
    )


def test_quality_is_not_weighed_for_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, two_model_router = OpenAIEmbeddingsCodec(), make_router(SMALL, HAIKU)
    parsed_request = codec.parse(b'{"model": "auto", "input": "x"}')
    context = RoutingContext(request_id="r", owner="ada", headers=((FLOOR, b"1"),))
    assert two_model_router.explain(codec, parsed_request, context).quality is None


def test_most_specific_price_of_bad_answers_wins() -> None:
    def get_usd_per_bad_answer(model: str = "auto", *headers: tuple[bytes, bytes]) -> float:
        rules = {"policies": {"ada": TenantPolicy(usd_per_bad_answer=0.2)}}
        aliases = {"own": Alias(usd_per_bad_answer=0.1), "plain": Alias()}
        router = make_router(SMALL, HAIKU, aliases=aliases, **rules)
        quality = explain_route(router, SORT, *headers, model=model).quality
        return 0.0 if quality is None else quality.usd_per_bad_answer

    assert (
        get_usd_per_bad_answer(),
        get_usd_per_bad_answer("plain"),
        get_usd_per_bad_answer("own"),
    ) == (0.2, 0.2, 0.1)
    assert get_usd_per_bad_answer("own", (PRICE, b"0.5")) == 0.5
    assert get_usd_per_bad_answer("own", (PRICE, b"0")) == 0.0


def test_floor_excludes_models_below_it() -> None:
    three_model_router = make_router(SMALL, HAIKU, OPUS)
    explanation = explain_route(three_model_router, HELLO, (FLOOR, b"0.99"))
    assert "smollm2-135m" not in {
        candidate.deployment.model.name for candidate in explanation.candidates
    }
    (exclusion,) = explanation.exclusions
    assert exclusion.deployment is SMALL
    assert exclusion.reason.startswith("p_good 0.9")
    assert exclusion.reason.endswith(" is below 0.99")


def test_unreachable_floor_names_the_best_model() -> None:
    three_model_router = make_router(SMALL, HAIKU, OPUS)
    error = explain_route(three_model_router, SORT, (FLOOR, b"1")).error
    assert isinstance(error, QualityUnreachable)
    assert (error.field, error.details["best"]) == ("x-moyin-quality", "claude-opus-5-5")
    assert error.details["kind"] == "code"
    # What it names can be asked for.
    reachable_floor = str(error.details["p_good"]).encode()
    assert choose_model(three_model_router, SORT, (FLOOR, reachable_floor)) == "claude-opus-5-5"


def test_unavailable_good_model_gives_a_retryable_error() -> None:
    two_model_router = make_router(SMALL, HAIKU)
    two_model_router.fleet.runtimes["claude"].is_up = False
    error = explain_route(two_model_router, SORT, (FLOOR, b"0.5")).error
    assert isinstance(error, ServiceUnavailable)
    assert error.retry_after is not None


def test_a_floor_holds_without_a_price() -> None:
    two_model_router = make_router(SMALL, HAIKU, usd_per_bad_answer=0.0)
    assert choose_model(two_model_router, SORT, (FLOOR, b"0.5")) == "claude-haiku-5-5"
    assert choose_model(two_model_router, HELLO, (FLOOR, b"0.5")) == "smollm2-135m"


@pytest.mark.parametrize("value", [b"", b"high", b"nan", b"-0.1", b"1.01", b"inf"])
def test_error_of_an_invalid_floor_names_its_header(value: bytes) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_preferences([(FLOOR, value)], frozenset())
    assert exc_info.value.field == "x-moyin-quality"
    assert exc_info.value.message == "x-moyin-quality: must be a number between 0 and 1"


@pytest.mark.parametrize("value", [b"", b"$1", b"nan", b"-1", b"inf"])
def test_error_of_an_invalid_price_names_its_header(value: bytes) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_preferences([(PRICE, value)], frozenset())
    assert exc_info.value.field == "x-moyin-usd-per-bad-answer"


def test_the_operator_bounds_the_price() -> None:
    two_model_router = make_router(SMALL, HAIKU, max_usd_per_bad_answer=0.5)
    assert choose_model(two_model_router, SORT, (PRICE, b"0.5")) == "claude-haiku-5-5"
    with pytest.raises(InvalidRequest) as exc_info:
        explain_route(two_model_router, SORT, (PRICE, b"0.6"))
    assert (
        exc_info.value.message == "x-moyin-usd-per-bad-answer: must be a number between 0 and 0.5"
    )


def test_explanation_compares_p_good() -> None:
    explanation = explain_route(make_router(SMALL, HAIKU), SORT)
    best_candidate, second_candidate = explanation.candidates
    assert best_candidate.reason == "better"
    assert best_candidate.forecast is not None and second_candidate.forecast is not None
    assert explain_loss(second_candidate, best_candidate, explanation.usd_per_second).startswith(
        "answers worse: p_good 0.0"
    )
    risk = (
        (1 - best_candidate.forecast.estimate.low) * 0.003
        if best_candidate.forecast.estimate
        else 0.0
    )
    assert best_candidate.forecast.risk == pytest.approx(risk)
    easy_candidate = explain_route(make_router(SMALL, HAIKU), HELLO).candidates[0]
    assert easy_candidate.reason == "free"


async def test_route_header_contains_the_reason() -> None:
    routes = {}
    for prompt in (SORT, HELLO):
        router = make_router(SMALL, HAIKU)
        codec = OpenAICodec()
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
        context = RoutingContext(request_id="r", owner="ada", headers=())
        answer = await router.answer(codec, codec.parse(json.dumps(body).encode()), context)
        routes[prompt] = dict(answer.headers)[b"x-moyin-route"].decode()
    reason, _, rest_of_route = routes[SORT].partition("; ")
    assert reason == "better"
    assert rest_of_route.startswith("claude-haiku-5-5: code, p_good 0.")
    assert rest_of_route.endswith(" of smollm2-135m")
    assert routes[HELLO].startswith("free; smollm2-135m: greeting, p_good 0.9")


def test_hosts_of_one_model_are_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    estimated_models: list[str] = []
    original_estimate = Estimator.estimate

    def estimate_and_count(self: Estimator, tenant: str, model: str, *arguments: Any) -> Any:
        estimated_models.append(model)
        return original_estimate(self, tenant, model, *arguments)

    monkeypatch.setattr(Estimator, "estimate", estimate_and_count)
    hosts = [make_rated_deployment("smollm2-135m", f"host{number}") for number in range(4)]
    explain_route(make_router(*hosts, HAIKU), SORT)
    assert sorted(estimated_models) == ["claude-haiku-5-5", "smollm2-135m"]
