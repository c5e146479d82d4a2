from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest
from moyin.errors import InvalidRequest, ServiceUnavailable, UnsupportedFeature
from moyin.testing.backends import FakeBackend
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.explanation import Explanation
from tests.unit.text.routing.router_rig import Rig

SEED = UnsupportedFeature("seed is not supported: omit it", field="seed")
ARGUMENTS = InvalidRequest("messages.1: must be a JSON object", field="messages.1")


def explain_route(rig: Rig, **changes: object) -> Explanation:
    codec = OpenAICodec()
    context = RoutingContext(request_id="r1", owner="ada", headers=())
    return rig.router.explain(codec, codec.parse(rig.make_body(**changes)), context)


def make_rig_with_gaps(*gaps: Any) -> Rig:
    """Return a router with a back end for each gap: the error for what it lacks, or None for no gap."""
    return Rig(
        *(FakeBackend(api_format=ApiFormat.ANTHROPIC, unsupported_error=gap) for gap in gaps)
    )


async def test_explanation_and_call_exclude_a_back_end_with_a_gap() -> None:
    rig = make_rig_with_gaps(SEED, None)
    explanation = explain_route(rig)
    assert [c.deployment.backend for c in explanation.candidates] == ["b1"]
    [exclusion] = explanation.exclusions
    assert (exclusion.deployment.backend, exclusion.reason) == ("b0", SEED.message)
    assert (exclusion.code, exclusion.parameters) == (SEED.code, {"field": SEED.field})
    answer = await rig.ask()
    assert dict(answer.headers)[b"x-moyin-backend"] == b"b1"
    # It was not called, and so it is not blamed.
    assert rig.runtimes[0].health.is_up


@pytest.mark.parametrize("gaps", [(SEED, ARGUMENTS), (ARGUMENTS, SEED), (SEED,)])
async def test_dry_run_reports_the_same_error_as_the_call(gaps: Any) -> None:
    rig = make_rig_with_gaps(*gaps)
    error = explain_route(rig).error
    with pytest.raises(type(gaps[0])) as exc_info:
        await rig.ask()
    assert error is not None and error.code == exc_info.value.code == gaps[0].code


async def test_a_back_end_that_is_down_may_have_no_gap() -> None:
    rig = Rig(FakeBackend(), FakeBackend(api_format=ApiFormat.ANTHROPIC, unsupported_error=SEED))
    rig.runtimes[0].is_up = False
    error = explain_route(rig).error
    with pytest.raises(ServiceUnavailable):
        await rig.ask()
    assert isinstance(error, ServiceUnavailable)


def test_members_that_only_the_clients_own_protocol_has_are_gaps_of_others() -> None:
    rig = Rig(FakeBackend(api_format=ApiFormat.ANTHROPIC), FakeBackend())
    explanation = explain_route(rig, n=2)
    assert [c.deployment.backend for c in explanation.candidates] == ["b1"]
    assert explanation.exclusions[0].reason.startswith("n requires")


async def test_files_are_translated_for_a_server_that_reads_none() -> None:
    file_part = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}}
    messages = [{"role": "user", "content": [file_part]}]
    file_error = UnsupportedFeature("files are not supported", field="messages")
    text_only_backend, able_backend = FakeBackend(unsupported_error=file_error), FakeBackend()
    text_only_backend.reads_files = False
    explanation = explain_route(Rig(text_only_backend, able_backend), messages=messages)
    assert [c.deployment.backend for c in explanation.candidates] == ["b1"]
    assert [e.reason for e in explanation.exclusions] == [file_error.message]
    # The same server gets the bytes of other requests.
    assert explain_route(Rig(text_only_backend)).error is None
    text_only_backend.unsupported_error = None
    await Rig(text_only_backend).ask(messages=messages)
    assert [type(request) for request in text_only_backend.requests] == [ChatRequest]
