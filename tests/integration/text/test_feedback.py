"""Tests feedback over HTTP: its effect, invalid feedback, and how a tenant views and resets it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.integration.text.fixtures import ModelsApp, serving
from tests.integration.text.test_quality import run_moyin
from tests.integration.text.upstreams import FINE, Upstream, build_backend_config
from tests.waiting import eventually

SORT = [{"role": "user", "content": "Write merge sort in Go"}]
CHAT = {"model": "auto", "messages": SORT, "max_tokens": 200}


def build_backend(url: str, name: str, price: float) -> dict[str, Any]:
    model = {"name": name, "context": 8_000, "price": {"input": price, "output": price}}
    return build_backend_config("openai", url) | {"name": name.partition("-")[0], "models": [model]}


class FeedbackClient:
    def __init__(self, models_app: ModelsApp, key: str) -> None:
        self._url = f"{models_app.url}/v1/"
        self._headers = {"authorization": f"Bearer {key}"}

    async def call(
        self, method: str, path: str, body: Any = None
    ) -> tuple[int, Any, dict[str, str]]:
        async with (
            aiohttp.ClientSession(headers=self._headers) as http,
            http.request(method, self._url + path, json=body) as response,
        ):
            text = await response.text()
            response_body = await response.json(content_type=None) if text else None
            return (
                response.status,
                response_body,
                {k.lower(): v for k, v in response.headers.items()},
            )

    async def send_chat(self) -> str:
        status, body, headers = await self.call("POST", "chat/completions", CHAT)
        assert status == 200, body
        return headers["x-request-id"]

    async def rate_request(self, request_id: str, **kwargs: Any) -> tuple[int, Any]:
        body = {"request_id": request_id, **kwargs}
        status, response_body, _ = await self.call("POST", "feedback", body)
        return status, response_body


async def create_key(folder: Path, owner: str, *scopes: str) -> str:
    from moyin.settings import Settings

    database = Database(Settings(data=folder).sql_url)
    try:
        _, key = await KeyStore(database).create(owner, "test", scopes=list(scopes) or ["*"])
    finally:
        await database.close()
    return key


async def test_feedback_moves_the_choice_of_its_tenant_only(tmp_path: Path) -> None:
    async with (
        Upstream(FINE).running() as upstream,
        serving(
            tmp_path,
            build_backend(upstream.url, "qwen3-8b", 1),
            build_backend(upstream.url, "smollm2-135m", 0),
        ) as models_app,
    ):
        ada, bob = (
            FeedbackClient(models_app, models_app.api_key),
            FeedbackClient(models_app, await create_key(tmp_path, "bob")),
        )

        async def read_p_good(client: FeedbackClient, model: str) -> float:
            _, body, _ = await client.call("POST", "route", CHAT)
            (candidate,) = (c for c in body["candidates"] if c["model"] == model)
            return float(candidate["quality"]["p_good"])

        request_id = await ada.send_chat()
        p_good_before = await read_p_good(ada, "qwen3-8b")
        assert await ada.rate_request(request_id, score=0.0, comment="does not compile") == (
            200,
            {"request_id": request_id, "learned": True, "scores": {request_id: 0.0}},
        )
        assert await read_p_good(ada, "qwen3-8b") < p_good_before
        assert await read_p_good(bob, "qwen3-8b") == p_good_before
        _, quality_page, _ = await ada.call("GET", "quality")
        (qwen_quality,) = (item for item in quality_page["models"] if item["model"] == "qwen3-8b")
        assert qwen_quality["signals"] == {"code": 1.0}
        assert qwen_quality["kinds"]["code"]["spread"] < qwen_quality["spread"]
        assert qwen_quality["kinds"]["code"]["source"].startswith("qwen3-8b, EvalPlus 67.7 %")
        (calibration_point,) = quality_page["calibration"]
        assert (calibration_point["signals"], calibration_point["good"]) == (1, 0.0)
        dearest_price = quality_page["prices"][-1]
        assert (dearest_price["usd_per_bad_answer"], dearest_price["models"]) == (
            0.3,
            {"qwen3-8b": 1},
        )
        _, exported_signals, _ = await ada.call("GET", "quality/export")
        assert exported_signals["signals"][0]["comment"] == "does not compile"
        assert "merge sort" not in str(exported_signals)
        assert (await bob.call("GET", "quality/export"))[1]["signals"] == []
        assert (await ada.call("POST", "quality/reset"))[0] == 204
        assert await read_p_good(ada, "qwen3-8b") == p_good_before


async def test_errors_name_the_field(tmp_path: Path) -> None:
    async with (
        Upstream(FINE).running() as upstream,
        serving(
            tmp_path,
            build_backend(upstream.url, "qwen3-8b", 1),
            build_backend(upstream.url, "smollm2-135m", 0),
        ) as models_app,
    ):
        ada, bob = (
            FeedbackClient(models_app, models_app.api_key),
            FeedbackClient(models_app, await create_key(tmp_path, "bob")),
        )
        request_id = await ada.send_chat()
        for score in (-0.1, 1.1, "1", True, None):
            status, body = await ada.rate_request(request_id, score=score)
            assert status == 400, score
        assert (await ada.rate_request(request_id, score=2))[1]["field"] == "score"
        assert (await ada.rate_request("", score=1))[1]["field"] == "request_id"
        assert (await ada.rate_request(request_id, score=1, comment="x" * 2_001))[1][
            "field"
        ] == "comment"
        assert (await ada.rate_request(request_id, score=1, stars=5))[1]["field"] == "stars"
        for feedback in (
            {},
            {"score": 1, "better_request_id": "x"},
            {"better_request_id": request_id},
        ):
            status, body = await ada.rate_request(request_id, **feedback)
            assert (status, body["code"]) == (400, "invalid_request"), feedback
        unknown_response = await ada.rate_request("unknown", score=1)
        foreign_response = await bob.rate_request(request_id, score=1)
        for status, body in (unknown_response, foreign_response):
            assert (status, body["code"]) == (404, "request_not_found")
        assert (await ada.rate_request(request_id, score=1))[0] == 200
        assert (await ada.rate_request(request_id, score=1))[0] == 200
        status, body = await ada.rate_request(request_id, score=0)
        assert (status, body["code"]) == (409, "feedback_given")


async def test_feedback_on_a_named_model_updates_its_quality(tmp_path: Path) -> None:
    async with (
        Upstream(FINE).running() as upstream,
        serving(
            tmp_path,
            build_backend(upstream.url, "qwen3-8b", 1),
            build_backend(upstream.url, "smollm2-135m", 0),
        ) as models_app,
    ):
        ada = FeedbackClient(models_app, models_app.api_key)
        body = {**CHAT, "model": "qwen3-8b"}
        _, _, headers = await ada.call("POST", "chat/completions", body)
        request_id = headers["x-request-id"]
        await eventually(partial(models_app.ledger.get, "ada", request_id))
        assert await ada.rate_request(request_id, score=1) == (
            200,
            {"request_id": request_id, "learned": True, "scores": {request_id: 1.0}},
        )
        _, quality_page, _ = await ada.call("GET", "quality")
        (qwen_quality,) = (item for item in quality_page["models"] if item["model"] == "qwen3-8b")
        assert qwen_quality["signals"] == {"unknown": 1.0}
        assert quality_page["calibration"] == []
        bob = FeedbackClient(models_app, await create_key(tmp_path, "bob"))
        assert (await bob.rate_request(request_id, score=1))[0] == 404
        chosen_request_id = await ada.send_chat()
        comparison_response = await ada.rate_request(
            chosen_request_id, better_request_id=request_id
        )
        assert comparison_response[1]["scores"] == {chosen_request_id: 0.2, request_id: 0.8}


@pytest.mark.parametrize(
    ("scope", "allowed_paths"),
    [("text", {"feedback", "quality"}), ("jobs:write", set()), ("org:admin", {"quality/reset"})],
)
async def test_quality_routes_require_their_scopes(
    tmp_path: Path, scope: str, allowed_paths: set[str]
) -> None:
    async with serving(tmp_path, build_backend("http://127.0.0.1:9", "qwen3-8b", 1)) as models_app:
        client = FeedbackClient(models_app, await create_key(tmp_path, "ada", scope))
        for method, path, body in (
            ("POST", "feedback", {"request_id": "r", "score": 1}),
            ("GET", "quality", None),
            ("POST", "quality/reset", None),
        ):
            status, response_body, _ = await client.call(method, path, body)
            is_refused = status == 403
            assert is_refused is (path not in allowed_paths), (path, status, response_body)


async def test_feedback_commands_rate_show_and_reset(tmp_path: Path) -> None:
    async with (
        Upstream(FINE).running() as upstream,
        serving(
            tmp_path,
            build_backend(upstream.url, "qwen3-8b", 1),
            build_backend(upstream.url, "smollm2-135m", 0),
        ) as models_app,
    ):
        request_id = await FeedbackClient(models_app, models_app.api_key).send_chat()
        assert await run_moyin(models_app, "feedback", request_id, "--score", "0.5") == (
            0,
            "learned\n",
            "",
        )
        status, stdout, _ = await run_moyin(models_app, "quality", "show")
        assert status == 0
        lines = [line.split("\t") for line in stdout.splitlines()]
        assert ["qwen3-8b", "code 1"] in [[line[0], *line[3:4]] for line in lines]
        assert ["$0.3", "qwen3-8b 1"] in [[line[0], line[-1]] for line in lines]
        assert (await run_moyin(models_app, "quality", "freeze"))[:2] == (0, "frozen\n")
        assert '"frozen": true' in (await run_moyin(models_app, "quality", "export"))[1]
        stderr = (await run_moyin(models_app, "feedback", request_id, "--score", "0.5"))[1]
        assert stderr.startswith("stored, but not learned, because learning is frozen")
        assert (await run_moyin(models_app, "quality", "thaw"))[:2] == (0, "learning\n")
        assert (await run_moyin(models_app, "quality", "reset"))[:2] == (0, "signals deleted\n")
        assert '"models": {}' in (await run_moyin(models_app, "quality", "export"))[1]
        status, _, stderr = await run_moyin(models_app, "feedback", "unknown", "--score", "1")
        assert (status, stderr.partition(":")[2].strip()[:17]) == (1, "request_not_found")
