"""Tests which answers are sampled for the judge, and that sampling has no effect on clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic_core import from_json

from moyin.domain.serialization import decode
from moyin.store.response_cache import CachedResponse
from moyin.testing.backends import make_text_response
from moyin.text.judging.comparison import Comparison, derive_comparison_id
from moyin.text.judging.verdict import Outcome
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.answer_cache import AnswerCache
from moyin.text.routing.catalog import Alias, CachingPolicy, RescuePolicy, TenantPolicy
from tests.unit.text.judging.judge_rig import HAIKU, OPUS, RULES, SMALL, JudgeRig

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def load_comparison(rig: JudgeRig, comparison_id: str) -> Comparison:
    return decode(Comparison, rig.store.stored[comparison_id])


async def test_configured_share_of_answers_is_sampled() -> None:
    rig = JudgeRig(rules=replace(RULES, share=0.25))
    rig.random_numbers = [0.0, 0.2499, 0.25, 0.9]
    for number in range(4):
        await rig.ask(request_id=f"r{number}")
    samples = rig.sampler.samples
    request_ids = [samples.get_nowait().call.context.request_id for _ in range(samples.qsize())]
    assert request_ids == ["r0", "r1"]


async def test_nothing_is_sampled_without_rules() -> None:
    rig = JudgeRig()
    rig.sampler.rules = None
    await rig.ask()
    assert (rig.sampler.samples.qsize(), rig.counted_outcomes) == (0, [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("codec", [OpenAICodec(), AnthropicCodec(), OllamaChatCodec()])
async def test_an_answer_becomes_a_comparison(codec: Any, stream: bool) -> None:
    rig = JudgeRig()
    max_tokens = None if isinstance(codec, OllamaChatCodec) else 50
    comparison_id = await rig.start_and_get_id(codec=codec, stream=stream, max_tokens=max_tokens)
    sampled_comparison = load_comparison(rig, comparison_id)
    assert (sampled_comparison.model, sampled_comparison.second, sampled_comparison.answer) == (
        SMALL,
        HAIKU,
        "mine",
    )
    assert sampled_comparison.conversation == "USER:\nWrite merge sort in Go"
    assert sampled_comparison.request["model"] == HAIKU
    assert sampled_comparison.places == ("cloud", "on-premises")
    assert 0 < sampled_comparison.p_good < sampled_comparison.second_p_good < 1
    assert sampled_comparison.most_usd > 0
    assert "merge" not in str(sampled_comparison.question)


@pytest.mark.parametrize("codec", [OpenAICodec(), AnthropicCodec(), OllamaChatCodec()])
async def test_stream_that_was_held_back_is_judged(codec: Any) -> None:
    """A stream that was held back until it was complete is judged like any other answer."""
    rig = JudgeRig(rescue=RescuePolicy.CHECKED, hold_streams=True)
    rig.backends[SMALL].answer = make_text_response('{"sorted": [1, 2]}')
    schema = {"type": "object"}
    schemas: dict[str, dict[str, Any]] = {
        "openai": {"response_format": {"type": "json_object"}},
        "anthropic": {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        "ollama": {"format": "json", "max_tokens": None},
    }
    requested_schema = schemas[codec.api_format.value]
    comparison_id = await rig.start_and_get_id(codec=codec, stream=True, **requested_schema)
    assert load_comparison(rig, comparison_id).answer == '{"sorted": [1, 2]}'


async def test_sampling_does_not_change_the_answer() -> None:
    rig, unsampled_rig = JudgeRig(), JudgeRig()
    unsampled_rig.router.sampler = None
    answers = [await judge_rig.ask() for judge_rig in (rig, unsampled_rig)]
    texts = [from_json(answer.body)["choices"][0]["message"]["content"] for answer in answers]
    assert texts == ["mine", "mine"]
    assert answers[0].headers == answers[1].headers


async def test_a_stream_that_is_cut_is_not_judged() -> None:
    rig = JudgeRig()
    parsed_request = OpenAICodec().parse(
        b'{"model":"work","stream":true,"messages":[{"role":"user","content":"Write merge sort"}]}'
    )
    answer = await rig.router.answer(
        OpenAICodec(), parsed_request, RoutingContext(request_id="r", owner="ada", headers=())
    )
    assert answer.stream is not None
    await anext(answer.stream)
    await answer.stream.aclose()
    assert rig.sampler.samples.empty()


async def test_samples_beyond_the_queue_are_dropped_and_counted() -> None:
    rig = JudgeRig()
    for number in range(70):
        await rig.ask(request_id=f"r{number}")
    assert rig.sampler.samples.qsize() == 64
    assert rig.counted_outcomes == [Outcome.DROPPED] * 6


async def test_nothing_is_sampled_when_quality_does_not_count() -> None:
    rig = JudgeRig()
    await rig.ask(model=SMALL)
    await rig.ask(None, (b"x-moyin-usd-per-bad-answer", b"0"))
    assert (rig.sampler.samples.qsize(), rig.counted_outcomes) == (0, [])


async def test_embeddings_are_never_sampled() -> None:
    rig = JudgeRig()
    catalog = rig.router.fleet.catalog
    deployments = tuple(
        replace(deployment, model=replace(deployment.model, embeddings=True, chat=None))
        for deployment in catalog.deployments
    )
    rig.router.fleet = replace(rig.router.fleet, catalog=replace(catalog, deployments=deployments))
    parsed_request = OpenAIEmbeddingsCodec().parse(b'{"model": "work", "input": "text"}')
    context = RoutingContext(request_id="r", owner="ada", headers=())
    await rig.router.answer(OpenAIEmbeddingsCodec(), parsed_request, context)
    assert (rig.sampler.samples.qsize(), rig.counted_outcomes) == (0, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "Hi?"}]}]},
        {"n": 2},
        {"modalities": ["text", "audio"]},
        {"messages": [{"role": "user", "content": "word " * 8_000}]},
        # What counts as no prompt would be held in memory all the same.
        {"metadata": {"note": "x" * 2**20}},
    ],
    ids=["picture", "several", "sound", "long", "large"],
)
async def test_unsuitable_requests_are_not_sampled(changes: dict[str, Any]) -> None:
    rig = JudgeRig()
    # It takes whatever the client sends.
    rig.runtimes["local"].pass_through = rig.backends[SMALL]
    await rig.ask(**changes)
    assert rig.sampler.samples.empty()
    assert rig.counted_outcomes == [Outcome.UNSUITABLE]


@pytest.mark.parametrize("modalities", [5, True, "audio"])
async def test_invalid_member_that_nothing_validates_does_not_fail_the_answer(
    modalities: Any,
) -> None:
    """The client gets its answer although ``modalities``, which nothing validates, is invalid."""
    rig = JudgeRig()
    raw_response = b'{"choices": [{"message": {"role": "assistant", "content": "mine"}}]}'
    rig.runtimes["local"].pass_through, rig.backends[SMALL].raw = rig.backends[SMALL], raw_response
    answer = await rig.ask(modalities=modalities)
    assert b"mine" in answer.body


async def test_a_long_answer_is_not_sampled() -> None:
    rig = JudgeRig(rules=replace(RULES, max_answer_tokens=3))
    rig.backends[SMALL].answer = make_text_response("one two three four")
    assert await rig.ask_and_start() is Outcome.UNSUITABLE


async def test_tenant_can_opt_out() -> None:
    rig = JudgeRig(policies={"ada": TenantPolicy(is_judged=False)})
    assert await rig.ask_and_start(owner="ada") is Outcome.OPTED_OUT
    assert await rig.ask_and_start(owner="bob") is Outcome.STARTED
    assert load_comparison(rig, rig.queue.started_ids[-1]).owner == "bob"


HOME = frozenset({"on-premises"})


@pytest.mark.parametrize(
    ("fleet_settings", "headers", "model"),
    [
        ({"policies": {"ada": TenantPolicy(residency=HOME)}}, (), "work"),
        ({"aliases": {"home": Alias(residency=("on-premises",))}}, (), "home"),
        ({}, ((b"x-moyin-residency", b"on-premises"),), "work"),
    ],
    ids=["tenant", "alias", "header"],
)
async def test_where_residency_forbids_the_judge_nothing_is_compared(
    fleet_settings: dict[str, Any], headers: Any, model: str
) -> None:
    rig = JudgeRig(**fleet_settings)
    # A second local model, so that quality has something to weigh within the house.
    deployments = rig.router.fleet.catalog.deployments
    twin_deployment = replace(deployments[1], residency="on-premises")
    catalog = replace(
        rig.router.fleet.catalog, deployments=(deployments[0], twin_deployment, deployments[2])
    )
    rig.router.fleet = replace(rig.router.fleet, catalog=catalog)
    assert await rig.ask_and_start(None, *headers, model=model) is Outcome.RESIDENCY
    assert rig.store.stored == {}
    assert rig.queue.started_ids == []


async def test_residency_rules_can_prevent_the_comparison() -> None:
    """Without a second model that may process the data, there is no comparison.

    The judge's own model may process the data here.
    """
    rig = JudgeRig(rules=replace(RULES, second=HAIKU))
    deployments = rig.router.fleet.catalog.deployments
    moved_deployments = (
        deployments[0],
        replace(deployments[1], residency="eu"),
        replace(deployments[2], residency="on-premises"),
    )
    catalog = replace(rig.router.fleet.catalog, deployments=moved_deployments)
    rig.router.fleet = replace(rig.router.fleet, catalog=catalog)
    header = (b"x-moyin-residency", b"on-premises")
    assert await rig.ask_and_start(None, header, model="any") is Outcome.RESIDENCY


async def test_removed_alias_prevents_the_comparison() -> None:
    """If the requested alias was removed after the answer, there is no comparison.

    Its residency rules are then unknown, so the judge must not get the data.
    """
    rig = JudgeRig(aliases={"home": Alias(residency=("on-premises",))})
    deployments = rig.router.fleet.catalog.deployments
    twin_deployment = replace(deployments[1], residency="on-premises")
    catalog = replace(
        rig.router.fleet.catalog, deployments=(deployments[0], twin_deployment, deployments[2])
    )
    rig.router.fleet = replace(rig.router.fleet, catalog=catalog)
    await rig.ask(model="home")
    catalog_without_aliases = replace(catalog, aliases={})
    rig.router.fleet = replace(
        rig.router.fleet, catalog=catalog_without_aliases, policies=rig.policies
    )
    assert await rig.start_comparison() is Outcome.UNSUITABLE
    assert rig.store.stored == {}


async def test_the_second_model_is_the_next_better_else_the_next_cheaper() -> None:
    rig = JudgeRig()
    assert load_comparison(rig, await rig.start_and_get_id()).second == HAIKU
    # Haiku answers now, and nothing but the judge's own model is better.
    fleet = replace(rig.router.fleet, usd_per_bad_answer=1.0)
    rig.router.fleet = fleet
    assert load_comparison(rig, await rig.start_and_get_id(request_id="r2")).model == HAIKU
    assert load_comparison(rig, rig.queue.started_ids[-1]).second == SMALL


async def test_a_configured_second_model_need_not_be_a_candidate() -> None:
    aliases = {"lone": Alias(models=(SMALL, OPUS))}
    rig = JudgeRig(rules=replace(RULES, second=HAIKU), aliases=aliases)
    assert load_comparison(rig, await rig.start_and_get_id(model="lone")).second == HAIKU
    rig_with_aliases = JudgeRig(aliases=aliases)
    assert await rig_with_aliases.ask_and_start(model="lone") is Outcome.NO_SECOND_MODEL


async def test_judge_never_evaluates_its_own_answer() -> None:
    rig = JudgeRig(rules=replace(RULES, model=SMALL))
    assert await rig.ask_and_start() is Outcome.NO_SECOND_MODEL


async def test_the_same_request_id_is_compared_once() -> None:
    rig = JudgeRig()
    assert await rig.ask_and_start() is Outcome.STARTED
    assert await rig.ask_and_start() is Outcome.REPEATED
    (comparison_id,) = rig.queue.started_ids
    assert comparison_id == derive_comparison_id("ada", "r1")
    assert derive_comparison_id("ad", "ar1") != comparison_id
    # The job has ended, and its id is known to the queue.
    await rig.store.remove(comparison_id)
    assert await rig.ask_and_start() is Outcome.REPEATED
    assert rig.store.stored == {}


async def test_order_of_the_answers_is_random() -> None:
    rig = JudgeRig()
    swapped_counts = Counter[bool]()
    for number in range(200):
        swapped_counts[
            load_comparison(rig, await rig.start_and_get_id(request_id=f"r{number}")).swapped
        ] += 1
    # Fewer than 60 or more than 140 of 200 by chance: once in 100 million.
    assert min(swapped_counts.values()) > 60


@pytest.mark.parametrize("unavailable_part", ["valkey", "temporal", "room"])
async def test_outages_drop_samples_and_store_no_prompt(unavailable_part: str) -> None:
    rig = JudgeRig()
    rig.budget.is_unavailable = unavailable_part == "valkey"
    rig.queue.is_unavailable = unavailable_part == "temporal"
    rig.store.has_room = unavailable_part != "room"
    expected_outcome = Outcome.DROPPED if unavailable_part == "room" else Outcome.UNAVAILABLE
    assert await rig.ask_and_start() is expected_outcome
    assert rig.store.stored == {}


async def test_above_the_budget_no_job_is_started() -> None:
    rig = JudgeRig(rules=replace(RULES, usd_per_month=Decimal("0.5")))
    rig.budget.booked_usd = Decimal("0.499")
    assert await rig.ask_and_start() is Outcome.BUDGET
    rig.budget.booked_usd = Decimal(0)
    assert await rig.ask_and_start() is Outcome.STARTED


async def test_frozen_tenant_causes_no_judge_calls() -> None:
    rig = JudgeRig()
    rig.estimator.freeze("ada")
    assert await rig.ask_and_start() is Outcome.FROZEN


async def test_cached_answers_are_sampled_once() -> None:
    cached_responses: dict[str, CachedResponse] = {}

    class FakeCache:
        async def get(self, owner: str, digest: str) -> CachedResponse | None:
            return cached_responses.get(digest)

        async def put(self, owner: str, digest: str, response: CachedResponse, **_: Any) -> None:
            cached_responses[digest] = response

    caching_policy = CachingPolicy(ttl=60, max_bytes=10_000, max_entries=10)
    rig = JudgeRig(aliases={"faq": Alias(models=(SMALL, HAIKU), cache=caching_policy)})
    rig.router._answer_cache = AnswerCache(FakeCache())
    await rig.ask(model="faq")
    await asyncio.sleep(0)
    await rig.ask(model="faq")
    assert len(cached_responses) == 1
    assert rig.sampler.samples.qsize() == 1


async def test_comparison_starter_survives_a_failing_sample() -> None:
    rig = JudgeRig()
    await rig.ask()
    await rig.ask(request_id="r2")
    broken_sample = rig.sampler.samples.get_nowait()
    broken_sample.candidates = ()
    rig.sampler.samples.put_nowait(broken_sample)
    starter_task = asyncio.create_task(rig.starter.run())
    async with asyncio.timeout(5):
        while len(rig.counted_outcomes) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    starter_task.cancel()
    await asyncio.gather(starter_task, return_exceptions=True)
    assert rig.counted_outcomes == [Outcome.STARTED, Outcome.FAILED]
