"""Tests quality routing with the shipped configuration, a small real model and a mock Claude."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.stack.apps import load_serve_config
from moyin.stack.ports import Ports
from moyin.text.quality.question import FIRST_MEANING_FEATURE, MEANING_DIMENSIONS
from moyin.text.routing.request_quality import question_from_json
from tests.integration.text.fixtures import ModelsApp, serving
from tests.integration.text.upstreams import BEGUN, Upstream

SORT, HELLO = "Write merge sort in Go", "Say hello"
# A whole stream of Claude.
CLAUDE = BEGUN["anthropic"] + (
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    '"usage":{"output_tokens":1}}\n\n'
    'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


def build_shipped_rules(
    llama_url: str, claude_url: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the back ends, with a test's servers, and the other settings of serve_config.yaml."""
    config = load_serve_config(Path("serve_config.yaml"), Ports())
    (app,) = (app for app in config["applications"] if app["name"] == "models")
    rules = dict(app["deployments"][0]["user_config"])
    small_backend, cloud_backend = rules.pop("backends")
    server = {"type": "openai", "base_url": f"{llama_url}/v1", "api_key_env": "LLAMA_KEY"}
    # The server in this test knows its model under another name.
    models = [{**small_backend["models"][0], "upstream": "smollm2"}]
    return [
        {"name": "local", "models": models, **server},
        {**cloud_backend, "base_url": claude_url},
    ], rules


@asynccontextmanager
async def serve_shipped_rules(
    folder: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[ModelsApp, Upstream]]:
    """Run the models app with the shipped rules and a fake key for Claude."""
    monkeypatch.setenv("MOYIN_ANTHROPIC_API_KEY", "anything")
    async with Upstream(CLAUDE).running() as claude:
        backends, rules = build_shipped_rules(llama, claude.url)
        aliases = rules.pop("aliases")
        async with serving(folder, *backends, rules=rules, **aliases) as models_app:
            yield models_app, claude


async def run_moyin(models_app: ModelsApp, *arguments: str) -> tuple[int, str, str]:
    """Run a `moyin` command for this app in a separate process.

    Returns its exit status, its output and its error output.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "moyin.cli.main",
        *arguments,
        env={**os.environ, "MOYIN_URL": models_app.url, "MOYIN_API_KEY": models_app.api_key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    return process.returncode or 0, stdout.decode(), stderr.decode()


async def test_hard_requests_go_to_claude_and_routes_explain_why(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_shipped_rules(tmp_path, llama, monkeypatch) as (models_app, claude):
        for model in ("auto", "fast"):
            status, stdout, stderr = await run_moyin(models_app, "chat", SORT, "--model", model)
            assert (status, stdout) == (0, "Hi\n"), stderr
            assert "claude-haiku-5-5" in stderr
            assert "better; claude-haiku-5-5: code, p_good 0." in stderr
            reason_line, request_line = stderr.splitlines()
            assert reason_line.endswith("of smollm2-135m")
            assert request_line.startswith("request ")
        assert claude.request_count == 2


async def test_easy_requests_use_the_local_model_and_explain_why(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_shipped_rules(tmp_path, llama, monkeypatch) as (models_app, claude):
        status, _, stderr = await run_moyin(models_app, "chat", HELLO)
        assert status == 0
        assert "free; smollm2-135m: greeting, p_good " in stderr
        assert claude.request_count == 0


async def test_route_command_explains_the_choice_of_a_model(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_shipped_rules(tmp_path, llama, monkeypatch) as (models_app, claude):
        status, stdout, _ = await run_moyin(models_app, "route", SORT)
        assert status == 0
        first_row, *other_rows = [line.split("\t") for line in stdout.splitlines()]
        assert (first_row[0], first_row[4], first_row[-1]) == (
            "claude-haiku-5-5",
            "table",
            "better",
        )
        assert any(row[0] == "smollm2-135m" and "answers worse" in row[-1] for row in other_rows)
        status, stdout, _ = await run_moyin(
            models_app, "route", SORT, "--json", "--usd-per-bad-answer", "0"
        )
        explanation = json.loads(stdout)
        assert (explanation["quality"], explanation["chosen"]["model"]) == (None, "smollm2-135m")
        status, _, stderr = await run_moyin(models_app, "route", SORT, "--quality", "1")
        assert status == 1
        assert stderr.startswith("quality_unreachable: no model under this name reaches p_good 1")
        assert claude.request_count == 0


PATHS: dict[str, dict[str, Any]] = {
    "chat/completions": {},
    "messages": {"max_tokens": 300},
    "ollama/api/chat": {"stream": False},
}


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_quality_headers_apply_in_every_protocol(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with (
        serve_shipped_rules(tmp_path, llama, monkeypatch) as (models_app, claude),
        aiohttp.ClientSession(headers={"authorization": f"Bearer {models_app.api_key}"}) as http,
    ):

        async def send_chat(prompt: str, **headers: str) -> tuple[int, str, dict[str, str]]:
            body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
            request_headers = {name.replace("_", "-"): value for name, value in headers.items()}
            async with http.post(
                f"{models_app.url}/v1/{path}", json={**body, **PATHS[path]}, headers=request_headers
            ) as response:
                return response.status, await response.text(), dict(response.headers)

        status, response_text, _ = await send_chat(SORT, x_moyin_quality="much")
        assert status == 400
        assert "must be a number between 0 and 1" in response_text
        status, response_text, _ = await send_chat(SORT, x_moyin_usd_per_bad_answer="-1")
        assert status == 400
        assert "must be a number of at least 0" in response_text
        status, response_text, _ = await send_chat(SORT, x_moyin_quality="1")
        assert status == 400
        assert "the best is 'claude-opus-5-5'" in response_text
        assert claude.request_count == 0
        status, response_text, headers = await send_chat(HELLO)
        assert status == 200, response_text
        assert headers["x-moyin-route"].startswith("free; smollm2-135m: greeting")


async def test_configured_embedder_adds_meaning_features(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOYIN_ANTHROPIC_API_KEY", "anything")
    async with Upstream(CLAUDE).running() as claude:
        backends, rules = build_shipped_rules(llama, claude.url)
        aliases = rules.pop("aliases")
        rules["routing"] = {**rules.get("routing", {}), "embedder": "wordllama"}
        async with serving(tmp_path, *backends, rules=rules, **aliases) as models_app:
            status, _, stderr = await run_moyin(models_app, "chat", SORT, "--model", "auto")
            assert status == 0, stderr
            await models_app.learning.flush()
            (request_id,) = re.findall(r"request (\S+)", stderr)
            decision = await models_app.learning.find_decision("ada", request_id)
    assert decision is not None, stderr
    features = question_from_json(decision.question).features
    meaning_features = [number for number in features if number >= FIRST_MEANING_FEATURE]
    assert len(meaning_features) == MEANING_DIMENSIONS
