from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic_core import from_json, to_json

from deployments.models.batch_calls import BatchLineCaller
from deployments.models.routes.calls import CallRoute
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.domain.identity import Identity
from moyin.errors import BudgetExceeded, MoyinError
from moyin.store.usage import UsageEntry
from moyin.text.batches.runner import LineOutcome

ADA = Identity(owner="ada", key_id="k")


class FakeRoute(CallRoute):
    """Records an incomplete and a complete call, then sends back the body of the request.

    If ``error`` is not None, it is raised instead of the response.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.scope: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        body = (await receive())["body"]
        for is_complete in (False, True):
            scope["moyin.record_usage"](make_entry(is_complete))
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})


class FakeLedger(list[UsageEntry]):
    def record(self, entry: UsageEntry) -> None:
        self.append(entry)


def make_entry(is_complete: bool) -> UsageEntry:
    return UsageEntry(
        request_id="r",
        owner="ada",
        backend="b",
        model="m",
        input_tokens=1,
        cached_tokens=0,
        output_tokens=1,
        cost_usd=Decimal(1),
        complete=is_complete,
    )


async def call_line(
    route: FakeRoute, ledger: FakeLedger, endpoint: str = "/v1/embeddings"
) -> LineOutcome:
    line_caller = BatchLineCaller({"/v1/embeddings": route}, None, ledger)
    body = to_json({"model": "m"})
    return await line_caller.call(endpoint, body, number=7, request_id="batch-7", identity=ADA)


async def test_a_line_is_a_request_of_its_submitter() -> None:
    route, ledger = FakeRoute(), FakeLedger()
    outcome = await call_line(route, ledger)
    assert (outcome.result.number, outcome.result.http_status) == (7, 200)
    assert from_json(outcome.result.body) == {"model": "m"} and outcome.error is None
    # What is complete is written with the result, the rest at once.
    assert outcome.usage == [make_entry(True)] and ledger == [make_entry(False)]
    assert route.scope["moyin"].caller == ADA and route.scope["moyin"].request_id == "batch-7"


async def test_errors_are_rendered_for_the_endpoint() -> None:
    outcome = await call_line(FakeRoute(BudgetExceeded("spent")), FakeLedger())
    assert (outcome.result.http_status, outcome.result.error_code) == (402, "budget_exceeded")
    body: dict[str, Any] = from_json(outcome.result.body)
    assert body["error"]["code"] == "budget_exceeded" and body["request_id"] == "batch-7"
    assert isinstance(outcome.error, BudgetExceeded)
    # What was complete before the error is paid for.
    assert outcome.usage == [make_entry(True)]


async def test_bugs_and_unknown_endpoints_fail_the_line() -> None:
    outcome = await call_line(FakeRoute(RuntimeError("x")), FakeLedger())
    assert (outcome.result.http_status, outcome.result.error_code) == (500, MoyinError.code)
    assert b"RuntimeError" not in outcome.result.body
    outcome = await call_line(FakeRoute(), FakeLedger(), "/v1/moderations")
    assert outcome.result.error_code == "unsupported_feature"
